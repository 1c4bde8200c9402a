"""Where the run folder of a job on a Ray cluster goes."""

from __future__ import annotations

import json

import pytest

from adagrpo_ray.cluster.jobs import job_folder, job_id


def test_outside_of_a_job_a_relative_folder_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    told: list[str] = []
    assert job_id() is None
    assert job_folder("runs", told.append) == "runs"
    assert not told


@pytest.mark.parametrize("folder", ["/shared/runs", "s3://bucket/runs"])
def test_in_a_job_a_folder_that_lasts_stays(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "id"}}))
    told: list[str] = []
    assert job_id() == "id"
    assert job_folder(folder, told.append) == folder
    assert not told


def test_in_a_job_a_relative_folder_is_one_in_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "id"}}))
    monkeypatch.setenv("HOME", "/home/me")
    told: list[str] = []
    assert job_folder("runs", told.append) == "/home/me/runs"
    assert "run.output_dir='runs' is relative" in told[0]
    assert told[0].endswith("using /home/me/runs")
