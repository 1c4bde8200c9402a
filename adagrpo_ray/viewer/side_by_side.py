"""Compares runs: their results, and the settings that differ."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from adagrpo_ray.config.listing import flat
from adagrpo_ray.runs import wording
from adagrpo_ray.runs.measured import mean, ratio
from adagrpo_ray.runs.reader import RunHistory
from adagrpo_ray.runs.summary import retries

NAMES = {"run.name", "run.output_dir"}
"""Settings that have no effect on the training."""
RECENT = 10
"""Number of last steps over which the reward is averaged."""

Row = tuple[str, ...]


def differences(runs: Sequence[RunHistory]) -> list[Row]:
    """The settings that differ: one row with the key and the value of each run, '-' if a run does not have it."""
    columns = [{key: _written(value) for key, value in flat(run.config)} for run in runs]
    keys = sorted({key for settings in columns for key in settings} - NAMES)
    rows = [(key, *(settings.get(key, "-") for settings in columns)) for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def results(runs: Sequence[RunHistory]) -> list[Row]:
    """The results of the runs so far: one row with the name of a metric and its value for each run."""
    columns = [_results(run) for run in runs]
    return [(name, *(column[name] for column in columns)) for name in (columns[0] if columns else ())]


def _results(run: RunHistory) -> dict[str, str]:
    steps, held_out = run.steps, run.evaluations
    before = held_out[0].accuracy if held_out and held_out[0].step == 0 else None
    last = held_out[-1].accuracy if held_out and held_out[-1].step > 0 else None
    best = max((record.accuracy for record in held_out if record.accuracy is not None), default=None)
    seconds, tokens = math.fsum(r.step_time for r in steps), sum(r.generated_tokens for r in steps)
    costs = retries(steps)
    planned = run.setting("run.steps")
    return {
        "steps": f"{len(steps)} of {planned}" if isinstance(planned, int) else str(len(steps)),
        "state": "ended" if run.summary is not None else "not ended",
        "held-out accuracy before": wording.number(before),
        "held-out accuracy, last": wording.number(last),
        "change": wording.change(before, last),
        "held-out accuracy, best": wording.number(best),
        f"mean reward, last {RECENT} steps": wording.number(mean(r.reward for r in steps[-RECENT:])),
        "time of all steps": wording.duration(seconds),
        "generated tokens": f"{tokens:,}",
        "generated tokens per second": wording.whole(ratio(tokens, seconds)),
        "trained tokens": f"{sum(r.trained_tokens for r in steps):,}",
        "updates skipped": f"{sum(r.skipped_updates for r in steps):,}",
        "tokens of resamples": f"{costs.extra_tokens:,}",
        "resamples": f"{sum(sum(r.resamples) for r in steps):,}",
        "resamples that met the criterion, by rung": wording.rungs(costs.rescued),
        "groups that never met it": f"{costs.groups_exhausted:,}",
        "tokens for each informative group": wording.whole(costs.tokens_per_informative_group),
    }


def _written(value: object) -> str:
    """The value as on the command line."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
