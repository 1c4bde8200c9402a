"""Where the run folder of a job on a Ray cluster goes."""

from __future__ import annotations

import json

import pytest

from adagrpo_ray.cluster.jobs import check_job_folder, job_id
from adagrpo_ray.config import Config, load_config


def test_outside_of_a_job_a_relative_folder_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    told: list[str] = []
    assert job_id() is None
    assert check_job_folder(Config(), told.append) == Config()
    assert not told


@pytest.mark.parametrize("folder", ["/shared/runs", "s3://bucket/runs"])
def test_in_a_job_a_folder_that_lasts_stays(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "id"}}))
    told: list[str] = []
    config = load_config(None, [f"run.output_dir={folder}"])
    assert job_id() == "id"
    assert check_job_folder(config, told.append) == config
    assert not told
