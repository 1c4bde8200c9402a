"""Computes metrics with confidence intervals from finished problems, and differences between models. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from adagrpo_ray.algorithm.estimators import bootstrap_means, pass_at_k, powers_of_two, wilson
from adagrpo_ray.evaluation.results import ProblemResult
from adagrpo_ray.runs.judge_counts import added
from adagrpo_ray.runs.record import Record

DRAWS, SEED = 2000, 0
CONFIDENCE = (
    f"95 % intervals by the percentile bootstrap over problems ({DRAWS} draws, seed {SEED}); if a share is 0 or 1 "
    "on every problem, Wilson's interval for this number of problems; differences are paired by problem"
)
ACCURACY = "accuracy"
LENGTHS = ("tokens", "characters")


@dataclass(frozen=True)
class Estimate(Record):
    """A mean over problems with its 95 % interval; `low` and `high` are None if there is only one problem."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ModelMetrics(Record):
    """The metrics of one model.

    failed: the number of problems that could not be generated or scored; they count as wrong.
    metrics: shares, except for LENGTHS, which are means.
    judges: requests, tokens, cost and so on of judges and reward models, by their names.
    """

    name: str
    folder: str
    digest: str
    failed: int
    metrics: Mapping[str, Estimate]
    accuracy_by_difficulty: Mapping[str, Estimate]
    judges: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference(Record):
    """Two models compared.

    better, worse: the number of problems that `second` solves more often than `first`, and less often.
    metrics: those of `second` minus those of `first`.
    """

    first: str
    second: str
    better: int
    worse: int
    metrics: Mapping[str, Estimate]


@dataclass(frozen=True)
class Comparison(Record):
    """All models on the same problems, with `samples` completions of each problem, and every pair of models."""

    problems: int
    samples: int
    confidence: str
    models: tuple[ModelMetrics, ...]
    differences: tuple[Difference, ...]


def compare(models: Sequence[tuple[str, str, str, Sequence[ProblemResult]]]) -> Comparison:
    """Compare models, each given as (name, folder, digest, results).

    All results are of the same problems in the same order.
    """
    first = models[0][3]
    tables = [_values(results) for *_, results in models]
    names = list(tables[0])
    stacked = [np.stack(list(table.values()), axis=1) for table in tables]
    pairs = list(combinations(range(len(models)), 2))
    differences = [stacked[other] - stacked[one] for one, other in pairs]
    drawn = bootstrap_means(np.concatenate([*stacked, *differences], axis=1), DRAWS, SEED)
    means = np.split(drawn, len(models) + len(pairs), axis=1)

    def difference(number: int) -> Difference:
        (one, other), values = pairs[number], differences[number]
        accuracy = values[:, names.index(ACCURACY)]
        return Difference(
            first=models[one][0],
            second=models[other][0],
            better=int((accuracy > 0).sum()),
            worse=int((accuracy < 0).sum()),
            metrics=_estimates(names, values, means[len(models) + number], shares=False),
        )

    return Comparison(
        problems=len(first),
        samples=len(first[0].completions),
        confidence=CONFIDENCE,
        models=tuple(
            ModelMetrics(
                name=name,
                folder=folder,
                digest=digest,
                failed=sum(bool(result.error) for result in results),
                metrics=_estimates(names, values, mean),
                accuracy_by_difficulty=_by_difficulty(results, values[:, [names.index(ACCURACY)]]),
                judges=added(result.judges for result in results),
            )
            for (name, folder, digest, results), values, mean in zip(models, stacked, means, strict=False)
        ),
        differences=tuple(difference(number) for number in range(len(pairs))),
    )


def _values(results: Sequence[ProblemResult]) -> dict[str, NDArray[np.float64]]:
    """The values of each metric on each problem; shape [P] for P problems."""
    return {
        name: np.array(column, np.float64)
        for name, column in zip(_names(results), zip(*map(_of_problem, results), strict=True), strict=True)
    }


def _names(results: Sequence[ProblemResult]) -> list[str]:
    samples = len(results[0].completions)
    return [
        ACCURACY,
        *(f"pass@{k}" for k in powers_of_two(samples)),
        "correct_answer_and_format",
        "correct_answer_anywhere",
        "correct_format",
        "format_errors",
        "cut_off",
        *LENGTHS,
    ]


def _of_problem(result: ProblemResult) -> list[float]:
    """The metrics of one problem, in the order of `_names`."""
    completions = result.completions
    n, correct = len(completions), sum(c.correct for c in completions)

    def share(marks: Sequence[bool]) -> float:
        return sum(marks) / n

    return [
        correct / n,
        *(pass_at_k(n, correct, k) for k in powers_of_two(n)),
        share([c.correct and c.correct_format for c in completions]),
        share([c.correct_anywhere for c in completions]),
        share([c.correct_format for c in completions]),
        share([not c.correct_format for c in completions]),
        share([c.cut_off for c in completions]),
        sum(c.tokens for c in completions) / n,
        sum(len(c.text) for c in completions) / n,
    ]


def _by_difficulty(results: Sequence[ProblemResult], accuracy: NDArray[np.float64]) -> dict[str, Estimate]:
    """Mean of `accuracy` [P, 1] over the problems of each difficulty."""
    difficulties = np.array([result.difficulty for result in results])
    found = {}
    for difficulty in sorted(set(difficulties.tolist()) - {""}):
        values = accuracy[difficulties == difficulty]
        found[difficulty] = _estimates([ACCURACY], values, bootstrap_means(values, DRAWS, SEED))[ACCURACY]
    return found


def _estimates(
    names: Sequence[str], values: NDArray[np.float64], means: NDArray[np.float64], *, shares: bool = True
) -> dict[str, Estimate]:
    """The mean of each column of `values` [P, M], with the interval from the bootstrapped `means` [DRAWS, M].

    `shares`: the values are shares, except for those of LENGTHS.
    """
    low, high = np.quantile(means, (0.025, 0.975), axis=0)
    found = {}
    for column, name in enumerate(names):
        own = values[:, column]
        interval: tuple[float | None, float | None] = (float(low[column]), float(high[column]))
        if len(own) < 2:
            interval = (None, None)
        elif shares and name not in LENGTHS and (own == own[0]).all() and own[0] in (0.0, 1.0):
            interval = wilson(int(own.sum()), len(own))
        found[name] = Estimate(float(own.mean()), *interval)
    return found
