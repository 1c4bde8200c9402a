"""Reads the runs of a report from their folders or URLs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from adagrpo_ray.errors import HistoryError
from adagrpo_ray.reports.examples import choose
from adagrpo_ray.runs.history import EVALUATIONS, METRICS, SAMPLES
from adagrpo_ray.runs.reader import CONFIG, SUMMARY, RunHistory, load
from adagrpo_ray.runs.samples import GroupSample
from adagrpo_ray.runs.summary import Summary, summarize
from adagrpo_ray.storage import places as storage

NEEDED = {CONFIG, METRICS, EVALUATIONS, SAMPLES, SUMMARY}


@dataclass(frozen=True)
class Run:
    """A run with at least one step.

    label: a name that no other run of the report has.
    home: the run folder, a path or a URL.
    summary: the totals of the steps so far, even if the run has not ended.
    examples: some of its groups.
    """

    label: str
    home: str
    history: RunHistory
    summary: Summary
    examples: tuple[GroupSample, ...]

    @cached_property
    def ended(self) -> bool:
        """Whether the run has finished: it has written its summary after its last step."""
        written = self.history.summary
        # A resumed run still has the summary of its first end.
        return written is not None and written.steps == len(self.history.steps)

    @cached_property
    def tokens(self) -> tuple[int, ...]:
        """Tokens generated up to the end of each step."""
        return tuple(accumulate(record.generated_tokens for record in self.history.steps))

    def tokens_until(self, step: int) -> int:
        """Tokens generated up to the end of `step`, which may be 0."""
        return sum(record.generated_tokens for record in self.history.steps if record.step <= step)


def read(home: str, copy: Path | None = None) -> Run:
    """The run at `home`, a path or a URL; `copy` is a local copy of it, if there is one.

    Raises HistoryError if there is no run or it has not finished a step, and ResourceError if it cannot be read.
    """
    if copy is None and storage.is_url(home):
        with storage.scratch() as scratch:
            folder = scratch / home.rstrip("/").rpartition("/")[2]
            storage.pull(home, folder, sorted(storage.files(home) & NEEDED))
            return read(home, folder)
    folder = copy or Path(storage.plain(home))
    try:
        history = load(folder, samples=False)
        examples = choose(folder / SAMPLES)
    except HistoryError as error:
        raise HistoryError(str(error).replace(str(folder), home)) from error
    if not history.steps:
        raise HistoryError(f"{home} has no finished step yet; try again after its first step")
    evaluations = history.evaluations
    summary = summarize(
        history.steps,
        evaluations[0] if evaluations else None,
        evaluations[-1] if len(evaluations) > 1 else None,
        evaluations,
        name=history.name,
        folder=home,
        adapter=storage.join(home, "adapter"),
    )
    return Run(history.name, home, history, summary, examples)


def labelled(runs: Sequence[Run]) -> list[Run]:
    """The runs with distinct labels: their names, or their paths and URLs if they have the same name."""
    names = Counter(run.history.name for run in runs)
    return [run if names[run.history.name] == 1 else replace(run, label=run.home) for run in runs]
