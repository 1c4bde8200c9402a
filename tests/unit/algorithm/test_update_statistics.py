"""Statistics of an update: merging is exact and keeps NaN, and metrics without values are None."""

from __future__ import annotations

import math
import pickle

import pytest

from adagrpo_ray.algorithm.update_statistics import Aggregate, UpdateStatistics
from tests.support.builders import statistics_of


def test_statistics_of_tokens_match_numbers_by_hand() -> None:
    s = statistics_of([0.5, 1.0, 3.0], ["easy", "hard", "hard"])
    assert (s.tokens, s.clipped_low, s.clipped_high, s.truncated, s.masked) == (3, 0, 1, 1, 0)
    assert (s.ratio.low, s.ratio.mean, s.ratio.high) == pytest.approx((0.5, 1.5, 3.0))
    assert (s.importance_ratio.low, s.importance_ratio.mean, s.importance_ratio.high) == pytest.approx(
        (0.5, 3.5 / 3, 2)
    )
    assert s.logp_difference.high == pytest.approx(math.log(3))
    assert (s.entropy.mean, s.entropy_by_difficulty["easy"].mean, s.entropy_by_difficulty["hard"].mean) == (
        2.0,
        1.0,
        2.5,
    )
    metrics = s.metrics()
    assert (
        metrics["clip_ratio_low_mean"],
        metrics["clip_ratio_high_mean"],
        metrics["importance_sampling_ratio_frac_truncated"],
    ) == pytest.approx((0, 1 / 3, 1 / 3))
    assert metrics["entropy_by_difficulty"] == {"easy": 1.0, "hard": 2.5}


def test_tokens_without_weight_do_not_count() -> None:
    """The idle copy of a sample, for ranks with fewer micro-batches, has weights of zero."""
    s = statistics_of([0.5, 1.0, 100.0], ["easy", "hard", "idle"], [0.5, 0.5, 0.0])
    assert (s.tokens, s.clipped_high, s.ratio.high, s.entropy.mean) == (2, 0, 1.0, 1.5)
    assert set(s.entropy_by_difficulty) == {"easy", "hard"}


def test_merged_statistics_equal_those_of_all_tokens() -> None:
    ratios, difficulties = [0.5, 1.0, 3.0, 1.1], ["easy", "hard", "hard", ""]
    first = statistics_of(ratios[:2], difficulties[:2])
    merged = UpdateStatistics().merged(first).merged(statistics_of(ratios[2:], difficulties[2:]))
    together = statistics_of(ratios, difficulties)
    assert merged.ratio == together.ratio
    assert merged.importance_ratio == together.importance_ratio
    assert merged.loss == pytest.approx(together.loss, rel=1e-6)
    assert set(merged.entropy_by_difficulty) == {"easy", "hard", ""}
    assert pickle.loads(pickle.dumps(merged)) == merged  # as between processes


def test_metrics_without_values_are_none() -> None:
    metrics = UpdateStatistics().metrics()
    assert metrics.pop("entropy_by_difficulty") == {}
    assert set(metrics.values()) == {None}


@pytest.mark.parametrize("broken", [Aggregate(1, math.nan, math.nan, math.nan), Aggregate(1, math.inf, 0.0, math.inf)])
def test_values_that_are_not_finite_survive_merging_and_become_metrics(broken: Aggregate) -> None:
    fine = Aggregate(1, 1.0, 1.0, 1.0)
    for merged in (broken.merged(fine), fine.merged(broken)):
        assert not math.isfinite(merged.total)
        assert not math.isfinite(merged.maximum)
        assert not math.isfinite(UpdateStatistics(tokens=2, ratio=merged).metrics()["policy_ratio_max"])
