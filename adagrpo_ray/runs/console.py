"""Shows a run on a terminal or in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

from adagrpo_ray.runs.final_lines import report
from adagrpo_ray.runs.observer import Observer
from adagrpo_ray.runs.progress import Bar, Clock, Lines, Progress
from adagrpo_ray.runs.records import EvaluationRecord, StepRecord
from adagrpo_ray.runs.summary import Summary
from adagrpo_ray.runs.terminal import is_terminal, rich_console
from adagrpo_ray.runs.wording import evaluation_lines, printable


class Console(Observer):
    """Shows a run of `steps` steps on `stream`: a live display on a terminal, else plain lines.

    `terminal` and `width` override the detection. Use it as a context manager: a live display that is not closed
    leaves the cursor hidden.
    """

    def __init__(
        self,
        steps: int,
        stream: TextIO | None = None,
        *,
        terminal: bool | None = None,
        width: int | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        stream = stream or sys.stdout
        live = is_terminal(stream) if terminal is None else terminal
        self._clock = clock
        self._began = clock()
        self._over = False
        self._rich = rich_console(stream, live=live, width=width)
        kind = Bar if live else Lines
        self._progress: Progress = kind(steps, self._rich, clock)

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def phase(self, text: str) -> None:
        """Print the phase that begins, after the seconds since the run began."""
        if not self._over:
            self._progress.start()
        self._line(f"[{self._clock() - self._began:7.1f} s] {printable(text)}")

    def step(self, record: StepRecord) -> None:
        """Show the step."""
        self._progress.step(record)

    def evaluation(self, label: str, record: EvaluationRecord) -> None:
        """Print the evaluation on the held-out prompts and benchmarks."""
        for line in evaluation_lines(label, record):
            self._line(line)

    def summary(self, summary: Summary) -> None:
        """End the progress display and print the report."""
        self.close()
        self._over = True
        self._line("")
        for part in report(summary):
            if isinstance(part, str):
                self._line(part)
            else:
                self._rich.print(part)

    def close(self) -> None:
        """End the progress display. Closing twice is fine."""
        self._progress.close()

    def _line(self, text: str) -> None:
        # The terminal wraps long lines itself, so that a path can be copied in one piece.
        self._rich.print(text, soft_wrap=True)
