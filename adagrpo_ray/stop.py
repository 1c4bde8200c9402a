"""A request to end a run before its last step."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, current_thread, main_thread
from types import FrameType


class Stop(Event):
    """Ends a run once it is `set`, from a callback or another thread.

    The run finishes or abandons its current step. It then writes a checkpoint of the last finished step, the adapter
    and the summary of its steps so far, without another evaluation. If a signal ended the run, it writes the checkpoint
    only and raises StoppedError.
    """

    interrupted = 0
    """The number of the signal that ended the run; 0 if none did."""

    notice = (
        b"stopping: the step is finished or abandoned, then a checkpoint is written; signal again to exit at once\n"
    )
    """The notice that the first signal writes to standard error."""

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM within the block: the first one interrupts the run, the second one calls `leave`.

        Does nothing outside of the main thread, which alone can handle signals.
        """
        if current_thread() is not main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def leave(self, number: int) -> None:
        """End the program after a second signal; KeyboardInterrupt ends a cell of a notebook, not the notebook."""
        raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted:
            self.leave(number)
        self.interrupted = number
        self.set()
        # Not print: the signal may have arrived in the middle of one.
        os.write(2, self.notice)
