"""Formats the final report of a run for a terminal or a log."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table

from adagrpo_ray.runs.judge_counts import in_words
from adagrpo_ray.runs.summary import Interval, Summary
from adagrpo_ray.runs.wording import change, difficulties, few, number, printable, rungs, shown, whole


def report(summary: Summary) -> Iterator[RenderableType]:
    """The parts of the report, from top to bottom."""
    yield f"run {printable(summary.name)}: {summary.steps} steps in {summary.seconds:.1f} s"
    yield ""
    if summary.eval_accuracy_before is None and summary.eval_accuracy_after is None:
        yield "held-out accuracy: not evaluated"
    else:
        yield (
            f"held-out accuracy: {number(summary.eval_accuracy_before)} -> {number(summary.eval_accuracy_after)} "
            f"({change(summary.eval_accuracy_before, summary.eval_accuracy_after)})"
        )
    names = difficulties(
        [
            *summary.eval_accuracy_by_difficulty_before,
            *summary.eval_accuracy_by_difficulty_after,
            *summary.resamples_by_difficulty,
        ]
    )
    if names:
        yield _by_difficulty(summary, names)
    if summary.benchmarks:
        yield _benchmarks(summary)
    yield ""
    yield (
        f"resamples: {sum(summary.resamples)} (by rung {rungs(summary.resamples)}), of which "
        f"{sum(summary.rescued)} met the criterion ({rungs(summary.rescued)}); "
        f"{summary.groups_exhausted} groups never did"
    )
    if summary.skipped_updates:
        yield f"updates skipped: {summary.skipped_updates}, since a loss, log-probability or gradient was not finite"
    if summary.groups_failed:
        yield f"failed: {summary.groups_failed} groups, which could not be generated or scored"
    if summary.resamples_by_interval:
        yield _intervals(summary.resamples_by_interval)
    yield ""
    yield (
        f"tokens: {summary.generated_tokens:,} generated ({summary.extra_tokens:,} by resamples), "
        f"{summary.trained_tokens:,} trained; "
        f"{whole(summary.tokens_per_informative_group)} for each informative group"
    )
    for name, counts in summary.judges.items():
        yield f"judge {printable(name)}, with evaluations: {in_words(counts)}"
    yield f"adapter: {printable(str(summary.adapter))}"
    yield f"run folder: {printable(str(summary.folder))}"


def _by_difficulty(summary: Summary, names: list[str]) -> Table:
    table = _table("class", "before", "after", "change", "resamples", "zero std: before", "after")
    named, others = few(names)
    for name in named:
        before = summary.eval_accuracy_by_difficulty_before.get(name)
        after = summary.eval_accuracy_by_difficulty_after.get(name)
        resamples = str(summary.resamples_by_difficulty.get(name, 0))
        shares = (
            m.get(name)
            for m in (summary.frac_reward_zero_std_by_difficulty, summary.frac_reward_zero_std_after_by_difficulty)
        )
        table.add_row(
            shown(name), number(before), number(after), change(before, after), resamples, *map(number, shares)
        )
    if others:
        table.add_row(others)
    return table


def _benchmarks(summary: Summary) -> Table:
    table = _table("benchmark", "before", "after", "change")
    for name, before, after in summary.benchmarks:
        table.add_row(name, number(before), number(after), change(before, after))
    return table


def _intervals(intervals: tuple[Interval, ...]) -> Table:
    table = _table("steps", "resamples", "mean reward")
    for interval in intervals:
        table.add_row(f"{interval.first}-{interval.last}", str(interval.resamples), number(interval.reward))
    return table


def _table(name: str, *numbers: str) -> Table:
    """A table without rules, so that it looks the same in every encoding; names left, numbers right."""
    table = Table(box=None, padding=(0, 0, 0, 2))
    table.add_column(name, overflow="fold")
    for number_column in numbers:
        table.add_column(number_column, justify="right", overflow="fold")
    return table
