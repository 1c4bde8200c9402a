"""What is different for a run that is a job on a Ray cluster (`ray job submit`, launch/submit.py)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it for the program of a submitted job, and for no other one."""


def job_id() -> str | None:
    """The submission id of the job that this process is the program of; None outside of a job."""
    try:
        found = json.loads(os.environ.get(_JOB_CONFIG, ""))["metadata"]["job_submission_id"]
    except (ValueError, KeyError, TypeError):
        return None
    return str(found)


def is_lasting(folder: str) -> bool:
    """Whether `folder` means the same place wherever a program starts: an absolute path or a URL."""
    return "://" in folder or Path(folder).is_absolute()


def job_folder(folder: str, tell: Callable[[str], None]) -> str:
    """`run.output_dir` as it outlives the job that this process is the program of; `tell` gets a change.

    A job starts in Ray's copy of what was uploaded, which Ray deletes later, with any run made in it: there a
    relative folder is one in the home folder of the job's user. Outside of jobs nothing changes.
    """
    if job_id() is None or is_lasting(folder):
        return folder
    lasting = str(Path.home() / folder)
    tell(f"run.output_dir={folder!r} is relative, and Ray deletes a job's working directory: using {lasting}")
    return lasting
