"""Each rollout correction against the formula of its source, computed in plain Python, one completion at a time."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import pytest
import torch
from pydantic import ValidationError

from adagrpo_ray.algorithm.correction import rollout_correction
from adagrpo_ray.algorithm.loss import Tokens, policy_loss
from adagrpo_ray.config import Config
from adagrpo_ray.config.algorithm import LossSettings
from adagrpo_ray.errors import ConfigError

RATIOS = [[1.5, 3.5], [0.5, 0.25, 1.0], [4.0, 0.5, 1.2], [1.1]]
Source = Callable[[list[float], float, float], list[float]]  # of a completion's ratios and the bounds


def clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def inside(value: float, low: float, high: float) -> bool:
    return low <= value <= high


def geometric(ratios: list[float]) -> float:
    return float(math.prod(ratios) ** (1 / len(ratios)))


def tis(ratios: list[float], low: float, high: float) -> list[float]:
    """OpenRLHF "tis", TRL `token_truncate`, verl `rollout_is: token`: every ratio clamped."""
    return [clip(r, low, high) for r in ratios]


def icepop(ratios: list[float], low: float, high: float) -> list[float]:
    """OpenRLHF "icepop", TRL `token_mask`: 0 for ratios outside."""
    return [r if inside(r, low, high) else 0.0 for r in ratios]


def sequence_truncate(ratios: list[float], low: float, high: float) -> list[float]:
    """TRL `sequence_truncate`, verl `rollout_is: sequence`: the product, clamped."""
    return [clip(math.prod(ratios), low, high)] * len(ratios)


def sequence_mask(ratios: list[float], low: float, high: float) -> list[float]:
    """TRL `sequence_mask`, its default: the product, 0 if it is outside."""
    product = math.prod(ratios)
    return [product if inside(product, low, high) else 0.0] * len(ratios)


def geometric_truncate(ratios: list[float], low: float, high: float) -> list[float]:
    """verl 0.6 `rollout_is_level: geometric`, `rollout_is_mode: truncate`: the geometric mean, clamped."""
    return [clip(geometric(ratios), low, high)] * len(ratios)


def sequence_mask_tis(ratios: list[float], low: float, high: float) -> list[float]:
    """OpenRLHF "seq-mask-tis": the tokens' own ratios, 0 if the geometric mean is outside."""
    return [r if inside(geometric(ratios), low, high) else 0.0 for r in ratios]


SOURCES: dict[tuple[str, str], Source] = {
    ("token", "truncate"): tis,
    ("token", "mask"): icepop,
    ("sequence", "truncate"): sequence_truncate,
    ("sequence", "mask"): sequence_mask,
    ("geometric", "truncate"): geometric_truncate,
    ("geometric", "mask"): sequence_mask_tis,
}
# OpenRLHF's default bounds, TRL's default (no lower one), verl's default (no lower one), and none at all.
BOUNDS = [(0.5, 5.0), (None, 3.0), (None, 2.0), (0.9, None), (0.9, 1.1)]


def tokens_of(ratios: Sequence[Sequence[float]], advantage: float = 1.0) -> Tokens:
    flat = torch.tensor([r for row in ratios for r in row], dtype=torch.float64)
    lengths = torch.tensor([len(row) for row in ratios])
    old = torch.full_like(flat, -1.0)
    return Tokens(
        policy=old.clone().requires_grad_(),
        old=old,
        behaviour=old - flat.log(),
        reference=None,
        advantages=torch.full_like(flat, advantage),
        weights=torch.full_like(flat, 1 / len(flat)),
        sequence=torch.arange(len(ratios)).repeat_interleave(lengths),
    )


def settings_of(granularity: str, mode: str, low: float | None, high: float | None) -> LossSettings:
    return LossSettings.model_validate(
        {
            "correction": granularity,
            "correction_mode": mode,
            "correction_floor": low,
            "correction_cap": high,
            "beta": 0.0,
        }
    )


@pytest.mark.parametrize(("low", "high"), BOUNDS)
@pytest.mark.parametrize(("granularity", "mode"), SOURCES)
def test_weights_equal_those_of_the_source(granularity: str, mode: str, low: float | None, high: float | None) -> None:
    rng = random.Random(f"{granularity} {mode} {low} {high}")
    rows = [*RATIOS, *([rng.lognormvariate(0, 0.7) for _ in range(rng.randint(1, 9))] for _ in range(50))]
    bounds = (low or 0.0, high or math.inf)
    tokens, settings = tokens_of(rows), settings_of(granularity, mode, low, high)
    got = rollout_correction(tokens.old, tokens.behaviour, tokens.sequence, settings)
    expected = [w for row in rows for w in SOURCES[granularity, mode](row, *bounds)]
    assert got.weights.tolist() == pytest.approx(expected, rel=1e-9)
    kept = {
        "token": lambda row: row,
        "sequence": lambda row: [math.prod(row)],
        "geometric": lambda row: [geometric(row)],
    }
    outside = [o for row in rows for o in _spread([not inside(v, *bounds) for v in kept[granularity](row)], len(row))]
    assert got.truncated.tolist() == ([False] * len(outside) if mode == "mask" else outside)
    assert got.masked.tolist() == (outside if mode == "mask" else [False] * len(outside))
    # The weights multiply the surrogate, 1 here, and masked tokens stay in the mean over tokens.
    loss, statistics = policy_loss(tokens, settings)
    assert loss.item() == pytest.approx(-sum(expected) / len(expected), rel=1e-9)
    assert (statistics.truncated, statistics.masked) == (sum(got.truncated.tolist()), sum(got.masked.tolist()))


def _spread(values: list[bool], length: int) -> list[bool]:
    return values if len(values) == length else values * length


def test_correction_by_sequence_counts_each_completion_once_in_the_mean_ratio() -> None:
    """As in TRL, whose ratios [B x 1] by sequence are flattened: products 5.25, 0.125, 2.4, 1.1."""
    _, statistics = policy_loss(tokens_of(RATIOS), settings_of("sequence", "mask", None, 3.0))
    assert statistics.importance_ratio.count == 4
    assert statistics.importance_ratio.mean == pytest.approx((0 + 0.125 + 2.4 + 1.1) / 4)
    assert (statistics.importance_ratio.low, statistics.masked) == (0.0, 2)
    _, statistics = policy_loss(tokens_of(RATIOS), settings_of("geometric", "mask", None, 3.0))
    assert (statistics.importance_ratio.count, statistics.importance_ratio.high) == (9, pytest.approx(4.0))


def test_gspo_gives_each_token_its_own_weight_in_the_gradient() -> None:
    """As verl's `compute_policy_loss_gspo`: of one completion with weights 1.5 and 0.25, A = 2, s = 1, T = 2."""
    tokens = tokens_of([[1.5, 0.25]], advantage=2.0)
    settings = settings_of("token", "truncate", None, 2.0).model_copy(update={"kind": "gspo"})
    loss, _ = policy_loss(tokens, settings)
    assert loss.item() == pytest.approx(-(1.5 + 0.25) / 2 * 2)
    (gradient,) = torch.autograd.grad(loss, tokens.policy)
    assert gradient.tolist() == pytest.approx([-1.5 * 2 / 2, -0.25 * 2 / 2])


def test_a_token_of_unknown_probability_is_not_corrected() -> None:
    tokens = tokens_of([[1.5, 0.5], [2.0]])
    tokens.behaviour[1] = math.nan
    got = rollout_correction(tokens.old, tokens.behaviour, tokens.sequence, settings_of("sequence", "mask", None, 3.0))
    assert got.weights.tolist() == pytest.approx([1.5, 1.5, 2.0])
    _, statistics = policy_loss(tokens, LossSettings())
    assert statistics.logp_difference.count == 2


def test_without_a_correction_all_weights_are_one() -> None:
    tokens = tokens_of(RATIOS)
    got = rollout_correction(tokens.old, tokens.behaviour, tokens.sequence, settings_of("none", "truncate", None, 2.0))
    assert (got.weights == 1).all()
    assert not (got.truncated | got.masked).any()


def test_empty_input_has_no_weights() -> None:
    empty = torch.zeros(0)
    for granularity, mode in SOURCES:
        got = rollout_correction(empty, empty, empty.long(), settings_of(granularity, mode, 0.5, 2.0))
        assert got.weights.shape == (0,)


def test_default_correction_truncates_by_token_at_2() -> None:
    s = LossSettings()
    assert (s.correction, s.correction_mode, s.correction_floor, s.correction_cap) == ("token", "truncate", None, 2.0)


@pytest.mark.parametrize(
    "bad",
    [{"correction_floor": 0.0}, {"correction_floor": 1.5}, {"correction_cap": 0.5}, {"correction_mode": "icepop"}],
)
def test_bounds_that_exclude_one_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LossSettings.model_validate(bad)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["correction=none", "correction_mode=mask"], "correction=none has no weights"),
        (["correction=none", "correction_floor=0.5"], "correction=none has no weights"),
        (["correction_mode=mask", "correction_cap=null"], "correction_mode=mask has no bounds"),
    ],
)
def test_correction_settings_without_effect_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.load(None, [f"algorithm.loss.{setting}" for setting in settings])
