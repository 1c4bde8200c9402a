"""The runs of a report: each from its folder or its URL."""

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
    """A run with at least one step. `label` tells it from the others, `home` is where it is kept, a path or a URL.

    `summary` is of the steps so far, also where the run has not ended. `examples` are a few of its groups.
    """

    label: str
    home: str
    history: RunHistory
    summary: Summary
    examples: tuple[GroupSample, ...]

    @cached_property
    def ended(self) -> bool:
        """Whether the run has made all steps that it was to make, and said so."""
        kept = self.history.summary
        return kept is not None and kept.steps == len(self.history.steps)  # a resumed run still has its former one

    @cached_property
    def tokens(self) -> tuple[int, ...]:
        """Tokens generated until the end of each step."""
        return tuple(accumulate(record.generated_tokens for record in self.history.steps))

    def tokens_until(self, step: int) -> int:
        """Tokens generated until the end of `step`, which may be 0."""
        return sum(record.generated_tokens for record in self.history.steps if record.step <= step)


def read(home: str, copy: Path | None = None) -> Run:
    """The run at `home`, a path or a URL; `copy` is the same on this machine, where there is one already.

    HistoryError where there is no run, or none that has finished a step; ResourceError where it cannot be read.
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
        raise HistoryError(f"{home} has no finished step yet; ask again after its first one")
    evaluations = history.evaluations
    summary = summarize(
        history.steps,
        evaluations[0] if evaluations else None,
        evaluations[-1] if len(evaluations) > 1 else None,
        name=history.name,
        folder=home,
        adapter=storage.join(home, "adapter"),
    )
    return Run(history.name, home, history, summary, examples)


def labelled(runs: Sequence[Run]) -> list[Run]:
    """The runs with labels that tell them apart: their names, or where they are kept if names are the same."""
    names = Counter(run.history.name for run in runs)
    return [run if names[run.history.name] == 1 else replace(run, label=run.home) for run in runs]
