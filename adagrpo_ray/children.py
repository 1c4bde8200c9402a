"""Child processes that must not outlive this one, even where it is killed and can say nothing any more."""

from __future__ import annotations

import os
import subprocess

import psutil


class ChildGuard:
    """Kills the present child processes of this process, and theirs, when it ends, however it ends.

    vLLM's engine process waits for messages for ever where its parent was killed. A shell in a session of its own waits
    for the end of a pipe that only this process holds open.
    """

    def __init__(self) -> None:
        pids = [str(child.pid) for child in psutil.Process(os.getpid()).children(recursive=True)]
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", 'cat >/dev/null; kill -9 "$@" 2>/dev/null', "guard", *pids],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """The children have ended in good order: kill nobody, since others may have their numbers by now."""
        self._shell.kill()
        self._shell.wait()
