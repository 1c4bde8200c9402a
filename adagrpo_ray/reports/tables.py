"""Makes the tables of a report as rows of text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from adagrpo_ray.config.listing import flat
from adagrpo_ray.config.secrets import holds_secret
from adagrpo_ray.reports.run_data import Run
from adagrpo_ray.runs.judge_counts import in_words
from adagrpo_ray.runs.measured import ratio
from adagrpo_ray.runs.wording import change, difficulties, duration, number, rungs, shown, whole

Row = tuple[str, ...]


def summary(runs: Sequence[Run]) -> list[Row]:
    """The totals of the runs: one row for each metric, with its name and one column for each run."""
    columns = [dict(_metrics(run)) for run in runs]
    names = dict.fromkeys(name for column in columns for name in column)
    return [(name, *(column.get(name, "-") for column in columns)) for name in names]


def by_difficulty(runs: Sequence[Run]) -> list[Row]:
    """Held-out accuracy, resamples and zero-std groups: one row for each difficulty and run; no rows if there are none.

    Columns: difficulty, run, accuracy before, after, change, resamples, share of zero-std groups before and after
    resampling.
    """
    names = difficulties(
        name
        for run in runs
        for mapping in (
            run.summary.eval_accuracy_by_difficulty_before,
            run.summary.eval_accuracy_by_difficulty_after,
            run.summary.resamples_by_difficulty,
        )
        for name in mapping
    )
    return [(shown(difficulty), run.label, *_of_difficulty(run, difficulty)) for difficulty in names for run in runs]


def settings(run: Run) -> str:
    """The settings of the run as YAML, without secrets."""
    return yaml.safe_dump(_bare(run.history.config), sort_keys=False, allow_unicode=True, width=110)


def differences(runs: Sequence[Run]) -> list[Row]:
    """The settings that differ between the runs: one row with the key and the value of each run, without `run.name`."""
    columns = [{key: _line(value) for key, value in flat(_bare(run.history.config))} for run in runs]
    keys = dict.fromkeys(key for column in columns for key in column)
    rows = [(key, *(column.get(key, "-") for column in columns)) for key in keys if key != "run.name"]
    return [row for row in rows if len(set(row[1:])) > 1]


def _metrics(run: Run) -> Iterator[tuple[str, str]]:
    s, steps = run.summary, run.history.steps
    planned = run.history.setting("run.steps")
    yield "state", "finished" if run.ended else "not finished"
    yield "steps", f"{s.steps:,}" if run.ended or planned is None else f"{s.steps:,} of {planned}"
    for name, key in (("model", "model.path"), ("data", "data.source"), ("method", "algorithm.name")):
        yield name, str(_bare(run.history.setting(key) or "-"))
    yield "held-out accuracy before", number(s.eval_accuracy_before)
    yield "held-out accuracy after", number(s.eval_accuracy_after)
    yield "change", change(s.eval_accuracy_before, s.eval_accuracy_after)
    for name, before, after in s.benchmarks:
        yield f"{name} accuracy before", number(before)
        yield f"{name} accuracy after", number(after)
    if run.history.evaluations:
        yield "last evaluated after step", f"{run.history.evaluations[-1].step:,}"
    yield "tokens generated", f"{s.generated_tokens:,}"
    yield "of these by resamples", f"{s.extra_tokens:,}"
    yield "tokens trained on", f"{s.trained_tokens:,}"
    yield "tokens generated for each informative group", whole(s.tokens_per_informative_group)
    yield "resamples", _counts(s.resamples)
    yield "of these met the criterion", _counts(s.rescued)
    yield "groups that never met it", f"{s.groups_exhausted:,}"
    yield "groups that could not be generated or scored", f"{s.groups_failed:,}"
    yield "updates skipped", f"{s.skipped_updates:,}"
    for name, counts in s.judges.items():
        yield f"judge {name}, with evaluations", in_words(counts)
    yield "time of all steps", duration(s.seconds)
    phases = dict.fromkeys(name for record in steps for name in record.time)
    for phase in phases:
        yield f"of this in {phase}", duration(math.fsum(record.time.get(phase, 0.0) for record in steps))
    yield "generated tokens per second", whole(ratio(s.generated_tokens, s.seconds))
    yield "rollout actors replaced", f"{steps[-1].rollout_restarts:,}"


def _counts(by_rung: tuple[int, ...]) -> str:
    """The sum, and in brackets the counts by rung if there are several rungs."""
    return f"{sum(by_rung):,}" + (f" (by rung {rungs(by_rung)})" if len(by_rung) > 1 else "")


def _of_difficulty(run: Run, difficulty: str) -> Row:
    s = run.summary
    before, after = (
        s.eval_accuracy_by_difficulty_before.get(difficulty),
        s.eval_accuracy_by_difficulty_after.get(difficulty),
    )
    return (
        number(before),
        number(after),
        change(before, after),
        f"{s.resamples_by_difficulty.get(difficulty, 0):,}",
        number(s.frac_reward_zero_std_by_difficulty.get(difficulty)),
        number(s.frac_reward_zero_std_after_by_difficulty.get(difficulty)),
    )


def _bare(value: Any) -> Any:
    """`value` without secrets: no run writes one, but a configuration may have been edited by hand."""
    if isinstance(value, Mapping):
        return {key: _bare(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_bare(item) for item in value]
    return "(withheld: it holds a secret)" if isinstance(value, str) and holds_secret(value) else value


def _line(value: object) -> str:
    """The value as one line of YAML."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
