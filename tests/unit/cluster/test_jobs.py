"""The run folder of a job on a Ray cluster."""

from __future__ import annotations

import json

import pytest

from adagrpo_ray.cluster.jobs import job_folder, job_id


def test_relative_folder_is_kept_outside_of_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    notices: list[str] = []
    assert job_id() is None
    assert job_folder("runs", notices.append) == "runs"
    assert not notices


@pytest.mark.parametrize("folder", ["/shared/runs", "s3://bucket/runs"])
def test_lasting_folder_is_kept_in_jobs(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "id"}}))
    notices: list[str] = []
    assert job_id() == "id"
    assert job_folder(folder, notices.append) == folder
    assert not notices


def test_relative_folder_is_below_home_in_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "id"}}))
    monkeypatch.setenv("HOME", "/home/me")
    notices: list[str] = []
    assert job_folder("runs", notices.append) == "/home/me/runs"
    assert "run.output_dir='runs' is relative" in notices[0]
    assert notices[0].endswith("using /home/me/runs")
