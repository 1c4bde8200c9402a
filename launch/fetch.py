"""Copies the results of a finished job to this machine."""

from __future__ import annotations

import base64
import binascii
import io
import shlex
import shutil
import tarfile
import time
from pathlib import Path

from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from adagrpo_ray.errors import ResourceError
from adagrpo_ray.storage import places as storage

LEFT_OUT = ("checkpoints", "tensorboard")
"""Folders that are not copied: they are large, or useful only on the cluster."""
BEGIN, END = "== files ==", "== end of files =="


def fetch(client: JobSubmissionClient, job: JobDetails, source: str, into: Path) -> str:
    """Copy the run folder `source` of a job, without LEFT_OUT, into the folder `into`. Returns the way in words.

    Raises ResourceError if it cannot be copied, and ConfigError if its URL cannot be used.
    """
    try:
        if storage.is_url(source):
            names = sorted(name for name in storage.files(source) if name.partition("/")[0] not in LEFT_OUT)
            storage.pull(source, into, names)
            return "from its URL"
        source = storage.plain(source)
        if _visible(Path(source), job):
            shutil.copytree(source, into, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
            return "from a shared folder"
    except OSError as error:
        raise ResourceError(f"cannot copy {source} to {into}: {error}; copy it by hand") from None
    over_cluster(client, job, source, into)
    return "through the cluster"


def _visible(source: Path, job: JobDetails) -> bool:
    """Whether the folder `source` is shared with the cluster, and not an older local folder of the same name."""
    summary = source / "summary.json"
    return summary.is_file() and summary.stat().st_mtime * 1000 >= (job.start_time or 0)


def over_cluster(client: JobSubmissionClient, job: JobDetails, source: str, into: Path) -> None:
    """Copy the run folder using only the dashboard: a second job, on the node of the first, logs the files as text.

    Raises ResourceError if the folder or its adapter is not on that node.
    """
    left_out = "".join(f" --exclude=./{name}" for name in LEFT_OUT)
    # Sleep, because Ray may still be writing its own first line to the log when the command begins.
    packing = f"tar -C {shlex.quote(source)}{left_out} -czf - . 2>/dev/null | base64"
    command = f"sleep 1; echo; echo '{BEGIN}'; {packing}; echo '{END}'"
    node = {"ray.io/node-id": job.driver_node_id} if job.driver_node_id else None
    second = client.submit_job(
        entrypoint=command, submission_id=f"{job.submission_id}-fetch-{time.time_ns()}", entrypoint_label_selector=node
    )
    while not client.get_job_status(second).is_terminal():
        time.sleep(0.5)
    log, status = client.get_job_logs(second), client.get_job_status(second)
    try:
        if status != JobStatus.SUCCEEDED:
            raise ValueError(f"job {second}: {status.value}")
        packed = base64.b64decode(log.rpartition(f"\n{BEGIN}\n")[2].partition(END)[0])
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
            archive.extractall(into, filter="data")
    except (binascii.Error, ValueError, tarfile.TarError, EOFError) as error:
        raise ResourceError(
            f"cannot copy {source} from the node of job {job.submission_id} ({error}); set run.output_dir to a folder "
            "that all nodes share, or to a URL"
        ) from None
    if not (into / "adapter").is_dir():
        raise ResourceError(
            f"{source} has no adapter on the node of job {job.submission_id}: the learner wrote it on another one; "
            "set run.output_dir to a folder that all nodes share, or to a URL"
        )
