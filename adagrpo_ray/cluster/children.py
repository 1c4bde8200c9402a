"""Child processes that must not outlive this process, even if it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence


class ChildGuard:
    """Kills the children `pids` when this process ends in any way; without `pids`, all children started from now on.

    If its parent is killed, vLLM's engine process waits for messages forever, also during its start. Ray's agents try
    for a minute to report the loss of their raylet to a head that is gone too. So a shell in its own session waits for
    the end of a pipe that only this process holds open, and then kills the children. Without `pids` it kills the
    process group of this process, which becomes the leader of a new one if needed.
    """

    def __init__(self, pids: Sequence[int] | None = None) -> None:
        if pids is None and os.getpgrp() != os.getpid():  # a session leader leads its group and may not call setpgrp
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
        """Kill nothing from now on. Call it after the children ended, since other processes may get their ids."""
        self._shell.kill()
        self._shell.wait()


def _lead_a_group() -> None:
    """Make this process the leader of a group. It stays in the terminal's foreground, so that Ctrl-C works."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR)
    except OSError:
        os.setpgrp()
        return
    try:
        foreground = os.tcgetpgrp(terminal) == os.getpgrp()
        os.setpgrp()
        if foreground:  # SIGTTOU stops a background process that calls tcsetpgrp, unless the signal is blocked
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
            os.tcsetpgrp(terminal, os.getpgrp())
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    finally:
        os.close(terminal)
