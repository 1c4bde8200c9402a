"""Runs that are a submitted job of a Ray cluster (`ray job submit`, launch/submit.py)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets this variable only for the program of a submitted job."""


def job_id() -> str | None:
    """Return the submission id of the job that runs this program; None outside of a job."""
    try:
        found = json.loads(os.environ.get(_JOB_CONFIG, ""))["metadata"]["job_submission_id"]
    except (ValueError, KeyError, TypeError):
        return None
    return str(found)


def is_lasting(folder: str) -> bool:
    """Return whether `folder` does not depend on the working directory: an absolute path or a URL."""
    return "://" in folder or Path(folder).is_absolute()


def job_folder(folder: str, notify: Callable[[str], None]) -> str:
    """Return `run.output_dir`; in a submitted job a folder that outlives the job. `notify` gets a notice of the change.

    A job starts in Ray's copy of the uploaded files, which Ray deletes later together with run folders in it. So in a
    job a relative folder is taken from the home folder of the job's user.
    """
    if job_id() is None or is_lasting(folder):
        return folder
    lasting = str(Path.home() / folder)
    notify(f"run.output_dir={folder!r} is relative, and Ray deletes a job's working directory: using {lasting}")
    return lasting
