"""Showing the log of a job until it ends; launch/submit.py is the command."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

from adagrpo_ray.errors import first_line

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient


async def follow(client: JobSubmissionClient, job: str) -> JobDetails:
    """Show the log until the job has ended; the first Ctrl-C stops the job, the second cancels this task."""
    loop, task, asked = asyncio.get_running_loop(), asyncio.current_task(), False

    def interrupted() -> None:
        nonlocal asked
        if asked and task:
            task.cancel()
            return
        asked = True
        try:
            client.stop_job(job)
        except (RuntimeError, OSError) as error:
            say(f"cannot ask the cluster to stop the job ({first_line(error)}); Ctrl-C again leaves it running")
        else:
            say("asked the cluster to stop the job, which may write a checkpoint first; Ctrl-C again leaves it to that")

    loop.add_signal_handler(signal.SIGINT, interrupted)
    waiting_for, shown = None, 0
    while (info := client.get_job_info(job)).status == "PENDING":
        if info.message != waiting_for:
            waiting_for = info.message
            say(f"pending: {waiting_for}")
        await asyncio.sleep(0.5)
    while True:
        shown = await _show_log(client, job, shown)
        info = client.get_job_info(job)
        if info.status.is_terminal():
            return info
        await asyncio.sleep(1)  # the connection broke, not the job


async def _show_log(client: JobSubmissionClient, job: str, shown: int) -> int:
    """Print the log after its first `shown` characters, for as long as the connection holds; how many now are."""
    seen = 0
    try:
        async for text in client.tail_job_logs(job):
            print(text[max(0, shown - seen) :], end="", flush=True)
            seen += len(text)
            shown = max(shown, seen)
    except (RuntimeError, OSError):
        pass
    return shown


def say(text: str) -> None:
    print(f"submit: {text}", flush=True)
