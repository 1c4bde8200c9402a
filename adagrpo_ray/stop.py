"""Ending a run before its last step."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, current_thread, main_thread
from types import FrameType


class Stop(Event):
    """Once it is `set`, from a callback or another thread, a run ends its step or gives it up, and keeps the last one.

    It then has a checkpoint, an adapter and the summary of its steps so far, without another evaluation. Where signals
    `interrupted` it, it has the checkpoint alone and raises StoppedError.
    """

    interrupted = 0
    """The number of the signal that did, if one did."""

    told = b"stopping: the step is given up or ended, then kept; once more to leave at once\n"
    """What the first signal writes."""

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Within the block SIGINT and SIGTERM interrupt, and a second one leaves at once; in the main thread only."""
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
        """What a second signal does: KeyboardInterrupt, which ends a cell of a notebook and not the notebook."""
        raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted:
            self.leave(number)
        self.interrupted = number
        self.set()
        # Not print: the signal may have come in the middle of one.
        os.write(2, self.told)
