"""Child processes that must not outlive this one, even where it is killed and can say nothing any more."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence


class ChildGuard:
    """Kills the children `pids` when this process ends, however it ends; without them, all that it starts from now on.

    vLLM's engine process waits for messages for ever where its parent was killed, in the middle of its start too, and
    Ray's agents try for a minute to tell a head that is gone that their raylet is gone. Here a shell in a session of
    its own waits for the end of a pipe that only this process holds open, and then kills. Without `pids`, that is the
    process group that this process makes its own.
    """

    def __init__(self, pids: Sequence[int] | None = None) -> None:
        if pids is None and os.getpgrp() != os.getpid():  # a session's leader leads its group, and may not ask for it
            _lead_a_group()
        targets = [f"-{os.getpid()}"] if pids is None else [str(pid) for pid in pids]
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", 'cat >/dev/null; kill -9 "$@" 2>/dev/null', "guard", *targets],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """The children have ended in good order: kill nobody, since others may have their numbers by now."""
        self._shell.kill()
        self._shell.wait()


def _lead_a_group() -> None:
    """Make this process the leader of a group, in the terminal's foreground where the one before was: for Ctrl-C."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR)
    except OSError:
        os.setpgrp()
        return
    try:
        foreground = os.tcgetpgrp(terminal) == os.getpgrp()
        os.setpgrp()
        if foreground:  # who asks for it from the background is stopped by SIGTTOU, unless that is blocked
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
            os.tcsetpgrp(terminal, os.getpgrp())
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    finally:
        os.close(terminal)
