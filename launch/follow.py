"""Shows the log of a job until it ends, for launch/submit.py."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

from adagrpo_ray.errors import first_line

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient


async def follow(client: JobSubmissionClient, job: str) -> JobDetails:
    """Show the log until the job has ended. The first Ctrl-C stops the job, the second cancels this task."""
    loop, task, stopping = asyncio.get_running_loop(), asyncio.current_task(), False

    def interrupted() -> None:
        nonlocal stopping
        if stopping and task:
            task.cancel()
            return
        stopping = True
        try:
            client.stop_job(job)
        except (RuntimeError, OSError) as error:
            notify(f"cannot ask the cluster to stop the job ({first_line(error)}); Ctrl-C again leaves it running")
        else:
            notify("asked the cluster to stop the job, which may write a checkpoint first; Ctrl-C again does not wait")

    loop.add_signal_handler(signal.SIGINT, interrupted)
    waiting_for, shown = None, 0
    while (info := client.get_job_info(job)).status == "PENDING":
        if info.message != waiting_for:
            waiting_for = info.message
            notify(f"pending: {waiting_for}")
        await asyncio.sleep(0.5)
    while True:
        shown = await _show_log(client, job, shown)
        info = client.get_job_info(job)
        if info.status.is_terminal():
            return info
        await asyncio.sleep(1)  # only the connection ended, not the job


async def _show_log(client: JobSubmissionClient, job: str, shown: int) -> int:
    """Print the log after its first `shown` characters, until the connection ends. Returns the new number."""
    seen = 0
    try:
        async for text in client.tail_job_logs(job):
            print(text[max(0, shown - seen) :], end="", flush=True)
            seen += len(text)
            shown = max(shown, seen)
    except (RuntimeError, OSError):
        pass
    return shown


def notify(text: str) -> None:
    print(f"submit: {text}", flush=True)
