"""Shows the progress of a run: a bar on a terminal, lines in a log."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from adagrpo_ray.runs.records import StepRecord
from adagrpo_ray.runs.wording import duration, step_metrics

LINE_INTERVAL_S = 1.0
"""Minimum time between two lines of a log, in seconds."""

Clock = Callable[[], float]
"""Returns seconds since a fixed time."""


class Progress(Protocol):
    """A display of training steps."""

    def start(self) -> None:
        """Begin to show progress."""

    def step(self, record: StepRecord) -> None:
        """Show a finished step."""

    def close(self) -> None:
        """Leave the last step visible and release the terminal."""


class Pace:
    """Tokens per second and time left, from the last ten steps: the first step is slower than all others."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._latest: deque[StepRecord] = deque(maxlen=10)

    def texts(self, record: StepRecord) -> tuple[str, str]:
        """Tokens per second and time left after one more step."""
        self._latest.append(record)
        seconds = sum(r.step_time for r in self._latest)
        tokens = sum(r.generated_tokens for r in self._latest)
        left = max(0, self._steps - record.step) * seconds / len(self._latest)
        return f"{tokens / seconds if seconds else 0:,.0f} tokens/s", f"{duration(left)} left"


class Lines(Progress):
    """Prints one line for each step, but about one a second if steps are faster; always the first and the last."""

    def __init__(self, steps: int, console: Console, clock: Clock) -> None:
        self._steps, self._console, self._clock = steps, console, clock
        self._pace = Pace(steps)
        self._printed_at: float | None = None
        self._held_back: str | None = None

    def start(self) -> None:
        """Do nothing: a log shows nothing before the first step."""

    def step(self, record: StepRecord) -> None:
        """Print the step, or hold it back until the next step or the end."""
        count = f"step {record.step:>{len(str(self._steps))}}/{self._steps}"
        self._held_back = "  ".join(
            [count, *step_metrics(record), *self._pace.texts(record), f"{record.step_time:.2f} s"]
        )
        now = self._clock()
        if self._printed_at is None or record.step >= self._steps or now - self._printed_at >= LINE_INTERVAL_S:
            self._printed_at = now
            self.close()

    def close(self) -> None:
        """Print the step that was held back, which is the last one."""
        if self._held_back is not None:
            self._console.print(self._held_back, soft_wrap=True)
            self._held_back = None


class Bar(Progress):
    """A bar above the metrics of the newest step, redrawn in place at the current width of the window."""

    def __init__(self, steps: int, console: Console, clock: Clock) -> None:
        self._steps, self._clock = steps, clock
        self._pace = Pace(steps)
        self._began = clock()
        self._step = 0
        self._left: str | None = None
        self._texts: list[str] = []
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4)

    def start(self) -> None:
        """Draw the bar if it is not drawn yet."""
        self._live.start()

    def step(self, record: StepRecord) -> None:
        """Put the step's metrics under the bar."""
        tokens, left = self._pace.texts(record)
        # A new list, because the thread of the display may be reading the old one.
        self._texts = [*step_metrics(record), tokens]
        self._step, self._left = record.step, left
        self._live.start()

    def close(self) -> None:
        """Draw the bar a last time and leave it there."""
        self._live.stop()

    def _render(self) -> RenderableType:
        line = Table.grid(padding=(0, 1), expand=True)
        line.add_column(ratio=1)
        line.add_column(no_wrap=True)
        line.add_column(no_wrap=True)
        line.add_row(
            ProgressBar(total=self._steps, completed=self._step),
            f"{self._step}/{self._steps}",
            self._left or f"{duration(self._clock() - self._began)} elapsed",
        )
        return Group(line, Columns(self._texts, padding=(0, 2)))
