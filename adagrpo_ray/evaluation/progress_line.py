"""Shows the progress of an evaluation: a bar on a terminal, lines in a log."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from adagrpo_ray.runs.progress import Clock
from adagrpo_ray.runs.wording import duration, number, printable

LINE_INTERVAL_S = 5.0
"""Minimum time between two lines of a log, in seconds."""


class EvaluationProgress:
    """A `Watcher` that shows the progress on `console`. Use it as a context manager, or the cursor stays hidden.

    models: the number of models.
    unfinished: the number of unfinished problems, over all models.
    live: draw a bar that is updated in place.

    The time left is estimated from the pace since the first request.
    """

    def __init__(
        self, models: int, unfinished: int, console: Console, *, live: bool, clock: Clock = time.monotonic
    ) -> None:
        self._models, self._unfinished, self._console, self._clock = models, unfinished, console, clock
        self._began, self._requested_at, self._printed_at = clock(), clock(), -LINE_INTERVAL_S
        self._name, self._problems, self._number = "", 0, 0
        self._accuracies: list[float] = []
        self._done = self._tokens = 0  # by this program
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4) if live else None

    def __enter__(self) -> EvaluationProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def phase(self, text: str) -> None:
        """Print the text, after the seconds since the program began."""
        self._console.print(f"[{self._clock() - self._began:7.1f} s] {printable(text)}", soft_wrap=True)

    def model(self, name: str, finished: Sequence[float], problems: int) -> None:
        """Show that the evaluation of a model begins."""
        if not self._number:
            self._requested_at = self._clock()
        self._number, self._name, self._problems = self._number + 1, name, problems
        self._accuracies = list(finished)
        if finished:
            self.phase(f"{name}: {len(finished)} of {problems} problems were finished before")
        if self._live is not None:
            self._live.start()

    def problem(self, accuracy: float, tokens: int) -> None:
        """Count a finished problem. A log gets about one line in five seconds, and one for the last of each model."""
        self._accuracies.append(accuracy)
        self._done, self._tokens = self._done + 1, self._tokens + tokens
        now, ends = self._clock(), len(self._accuracies) == self._problems
        if self._live is None and (ends or now - self._printed_at >= LINE_INTERVAL_S):
            self._printed_at = now
            self._console.print("  ".join([self._count(), *self._metrics()]), soft_wrap=True)
        if self._live is not None and ends:
            self._live.console.print("  ".join([self._count(), *self._metrics()]), soft_wrap=True)

    def close(self) -> None:
        """Release the terminal. It may be closed twice."""
        if self._live is not None:
            self._live.stop()

    def _count(self) -> str:
        width = len(str(self._problems))
        return f"{printable(self._name)}  {len(self._accuracies):>{width}}/{self._problems}"

    def _metrics(self) -> list[str]:
        accuracies = self._accuracies
        seconds = max(self._clock() - self._requested_at, 1e-9)
        return [
            f"accuracy so far {number(sum(accuracies) / len(accuracies)) if accuracies else '-'}",
            f"{self._tokens / seconds:,.0f} tokens/s",
            f"{duration((self._unfinished - self._done) * seconds / self._done)} left" if self._done else "- left",
        ]

    def _render(self) -> RenderableType:
        line = Table.grid(padding=(0, 1), expand=True)
        line.add_column(no_wrap=True)
        line.add_column(ratio=1)
        line.add_column(no_wrap=True)
        line.add_row(
            f"{printable(self._name)} ({self._number}/{self._models})",
            ProgressBar(total=self._problems, completed=len(self._accuracies)),
            f"{len(self._accuracies)}/{self._problems}",
        )
        return Group(line, "  ".join(self._metrics()))
