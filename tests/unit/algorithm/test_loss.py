"""The policy loss against numbers worked out by hand, and its gradient against finite differences."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adagrpo_ray.algorithm.correction import rollout_correction
from adagrpo_ray.algorithm.loss import Tokens, kl_estimate, policy_loss, token_weights
from adagrpo_ray.algorithm.update_statistics import Aggregate, UpdateStatistics
from adagrpo_ray.config.algorithm import LossSettings
from tests.support.builders import flat

SETTINGS = LossSettings(kind="bnpo", epsilon=0.2, beta=0.04, correction="none")
TOKENS = st.tuples(st.floats(0.1, 3), st.floats(-5, 5), st.floats(0.1, 3), st.floats(0, 1))


def tensor(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def loss_of(
    ratios: Sequence[float],
    advantages: Sequence[float],
    weights: Sequence[float],
    *,
    reference_ratios: Sequence[float] | None = None,
    lengths: Sequence[int] | None = None,
    **settings: object,
) -> tuple[torch.Tensor, UpdateStatistics]:
    """The loss of tokens from their `ratios` policy / old and `reference_ratios` reference / policy."""
    policy = torch.full((len(ratios),), math.log(0.5), dtype=torch.float64)
    reference = None if reference_ratios is None else policy + tensor(reference_ratios).log()
    old = policy - tensor(ratios).log()
    return policy_loss(
        tokens_of(policy, old, old, reference, tensor(advantages), tensor(weights), lengths),
        SETTINGS.model_copy(update=settings),
    )


def tokens_of(
    policy: torch.Tensor,
    old: torch.Tensor,
    behaviour: torch.Tensor,
    reference: torch.Tensor | None,
    advantages: torch.Tensor,
    weights: torch.Tensor,
    lengths: Sequence[int] | None = None,
) -> Tokens:
    """The tokens of completions of these `lengths`; by default every token is a completion of its own."""
    sequence = torch.repeat_interleave(torch.tensor(lengths or [1] * len(policy)))
    return Tokens(policy, old, behaviour, reference, advantages, weights, sequence)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("grpo", [[1 / 3], [1 / 6] * 2, [1 / 15] * 5]),  # 1 / (3 completions x T)
        ("bnpo", [[1 / 8], [1 / 8] * 2, [1 / 8] * 5]),  # 1 / 8 tokens
        ("dr_grpo", [[1 / 30], [1 / 30] * 2, [1 / 30] * 5]),  # 1 / (3 completions x 10 allowed tokens)
    ],
)
def test_token_weights_match_numbers_by_hand(kind: str, expected: list[list[float]]) -> None:
    weights = token_weights([1, 2, 5], kind, max_new_tokens=10)
    assert [len(w) for w in weights] == [1, 2, 5]
    assert all(w.dtype == np.float32 for w in weights)
    assert [w.tolist() for w in weights] == [pytest.approx(e) for e in expected]


@pytest.mark.parametrize("kind", ["grpo", "bnpo", "dr_grpo"])
def test_no_completions_have_no_weights(kind: str) -> None:
    assert token_weights([], kind, max_new_tokens=10) == []


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="'gppo' is none of grpo, gspo, bnpo"):
        token_weights([1], "gppo", 10)


@pytest.mark.parametrize(
    ("ratio", "advantage", "surrogate", "clipped"),
    [
        (1.0, 2.0, 2.0, 0),
        (1.1, 2.0, 2.2, 0),
        (1.5, 2.0, 2.4, 1),  # held at 1.2
        (0.5, 2.0, 1.0, 0),  # the smaller one counts
        (1.0, -2.0, -2.0, 0),
        (0.9, -2.0, -1.8, 0),
        (0.5, -2.0, -1.6, 1),  # held at 0.8
        (1.5, -2.0, -3.0, 0),  # the smaller one counts
        (1.5, 0.0, 0.0, 0),
    ],
)
def test_surrogate_is_clipped_on_the_pessimistic_side(
    ratio: float, advantage: float, surrogate: float, clipped: int
) -> None:
    loss, statistics = loss_of([ratio], [advantage], [1.0])
    assert loss.item() == statistics.loss == pytest.approx(-surrogate)
    assert statistics.clipped_low + statistics.clipped_high == clipped


def test_loss_is_the_weighted_sum_over_tokens() -> None:
    # Surrogates 1.2 (held), 1.1, 0.5 | -1.5, -1.0, -0.8 (held), weighted 1/2, 1/4, 1/4 | 1/8, 1/8, 1/4:
    # 0.6 + 0.275 + 0.125 - 0.1875 - 0.125 - 0.2 = 0.4875.
    ratios, advantages = [1.5, 1.1, 0.5, 1.5, 1.0, 0.5], [1.0, 1.0, 1.0, -1.0, -1.0, -1.0]
    loss, statistics = loss_of(ratios, advantages, [0.5, 0.25, 0.25, 0.125, 0.125, 0.25])
    assert loss.item() == pytest.approx(-0.4875)
    assert (statistics.tokens, statistics.clipped_low, statistics.clipped_high) == (6, 1, 1)
    assert statistics.kl.count == 0


def test_kl_is_added_with_beta() -> None:
    # k3 of reference / policy 2 is 2 - ln 2 - 1 = 0.306853, of 0.5 it is 0.5 + ln 2 - 1 = 0.193147, of 1 zero.
    # Weighted 1/2, 1/4, 1/4: 0.153426 + 0.048287 = 0.201713. Surrogates 1, -1, 3 weigh 0.5 - 0.25 + 0.75 = 1.
    loss, statistics = loss_of([1, 1, 1], [1, -1, 3], [0.5, 0.25, 0.25], reference_ratios=[2, 0.5, 1], beta=0.04)
    assert statistics.kl.mean == pytest.approx((0.306853 + 0.193147) / 3, abs=1e-6)
    assert loss.item() == pytest.approx(-1 + 0.04 * 0.201713, abs=1e-7)


def test_logp_difference_is_to_the_behaviour_policy_and_does_not_change_the_loss() -> None:
    policy, ones = tensor([-1.0, -2.0]), torch.ones(2, dtype=torch.float64)
    tokens = tokens_of(policy, policy, tensor([-1.5, -1.0]), None, ones, tensor([0.5, 0.25]))
    loss, statistics = policy_loss(tokens, SETTINGS)
    assert statistics.logp_difference == Aggregate(2, 1.5, 0.5, 1.0)
    assert loss.item() == pytest.approx(-0.75)


def test_gradient_agrees_with_finite_differences() -> None:
    ratios, advantages = tensor([1.5, 1.1, 0.5, 1.5, 0.9, 0.5]), tensor([1.0, 2.0, 0.5, -1.0, -2.0, -0.5])
    start, weights = tensor([-1.0, -2.0, -0.5, -3.0, -0.1, -1.5]), tensor([0.3, 0.1, 0.2, 0.1, 0.2, 0.1])
    old, reference = start - ratios.log(), start + tensor([0.3, -0.2, 0.1, -0.4, 0.0, 0.5])

    def loss(policy: torch.Tensor) -> torch.Tensor:
        return policy_loss(tokens_of(policy, old, old, reference, advantages, weights), SETTINGS)[0]

    policy = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(policy), policy)
    step = 1e-6
    differences = [(loss(start + nudge) - loss(start - nudge)) / (2 * step) for nudge in step * torch.eye(6).double()]
    assert gradient.tolist() == pytest.approx([d.item() for d in differences], abs=1e-8)


def test_clipped_tokens_have_no_gradient_and_on_policy_tokens_the_policy_gradient() -> None:
    policy = tensor([-1.0, -1.0, -1.0, -1.0]).requires_grad_()
    old = policy.detach() - tensor([1.5, 0.5, 1.0, 1.0]).log()
    advantages, weights = tensor([1.0, -1.0, 2.0, -3.0]), tensor([0.25] * 4)
    loss = policy_loss(tokens_of(policy, old, old, None, advantages, weights), SETTINGS)[0]
    (gradient,) = torch.autograd.grad(loss, policy)
    assert gradient.tolist() == pytest.approx([0.0, 0.0, -0.5, 0.75])


@given(
    st.lists(TOKENS, min_size=1, max_size=12),
    st.lists(st.integers(0, 12), max_size=4),
)
def test_statistics_do_not_depend_on_the_division_into_micro_batches(
    tokens: list[tuple[float, float, float, float]], cuts: list[int]
) -> None:
    def statistics(part: list[tuple[float, float, float, float]]) -> UpdateStatistics:
        ratios, advantages, references, weights = zip(*part, strict=True)
        return loss_of(ratios, advantages, weights, reference_ratios=references, beta=0.04)[1]

    edges = [0, *sorted(min(c, len(tokens)) for c in cuts), len(tokens)]
    parts = [tokens[a:b] for a, b in itertools.pairwise(edges) if a < b]
    merged = functools.reduce(UpdateStatistics.merged, map(statistics, parts))
    assert flat(merged) == pytest.approx(flat(statistics(tokens)), rel=1e-9, abs=1e-12)


def test_epsilon_high_changes_only_the_upper_bound() -> None:
    assert loss_of([1.5], [2.0], [1.0], epsilon_high=0.4)[0].item() == pytest.approx(-2.8)  # held at 1.4
    assert loss_of([0.5], [-2.0], [1.0], epsilon_high=0.4)[0].item() == pytest.approx(1.6)  # held at 0.8


def test_gspo_uses_the_geometric_mean_of_a_sequences_ratios() -> None:
    # sqrt(1.5 x 0.96) = 1.2 exactly at the bound; sqrt(2 x 2) = 2, held at 1.2; advantages 1 and 3, weights 1/4:
    # (1.2 x 1) x 2/4 + (1.2 x 3) x 2/4 = 2.4.
    loss, statistics = loss_of([1.5, 0.96, 2, 2], [1, 1, 3, 3], [0.25] * 4, lengths=[2, 2], kind="gspo")
    assert loss.item() == pytest.approx(-2.4)
    assert (statistics.clipped_high, statistics.tokens) == (2, 4)


def test_gspo_gradient_is_shared_by_the_sequence() -> None:
    policy = tensor([-1.0, -2.0, -3.0]).requires_grad_()
    tokens = tokens_of(
        policy, policy.detach(), policy.detach(), None, tensor([2, 2, 5]), tensor([0.25, 0.25, 0.5]), [2, 1]
    )
    (gradient,) = torch.autograd.grad(policy_loss(tokens, SETTINGS.model_copy(update={"kind": "gspo"}))[0], policy)
    # d/dlogp of s A summed with the weights: A x (sum of weights of the sequence) / T.
    assert gradient.tolist() == pytest.approx([-2 * 0.5 / 2, -2 * 0.5 / 2, -5 * 0.5])


def test_cispo_keeps_the_gradient_of_every_token() -> None:
    policy = tensor([-1.0, -1.0, -1.0]).requires_grad_()
    old = policy.detach() - tensor([3.0, 0.5, 1.1]).log()
    tokens = tokens_of(policy, old, old, None, tensor([2.0, 2.0, -1.0]), tensor([0.5, 0.25, 0.25]))
    loss, statistics = policy_loss(tokens, SETTINGS.model_copy(update={"kind": "cispo"}))
    # sg(min(r, 1.2)) A log policy: 1.2 x 2 x -1, 0.5 x 2 x -1, 1.1 x -1 x -1.
    assert loss.item() == pytest.approx(2.4 * 0.5 + 1.0 * 0.25 - 1.1 * 0.25)
    (gradient,) = torch.autograd.grad(loss, policy)
    assert gradient.tolist() == pytest.approx([-2.4 * 0.5, -1.0 * 0.25, 1.1 * 0.25])
    assert (statistics.clipped_low, statistics.clipped_high) == (0, 1)


@pytest.mark.parametrize(
    ("kind", "expected"), [("k1", [math.log(2), -math.log(2)]), ("k2", [0.240227] * 2), ("k3", [0.193147, 0.306853])]
)
def test_kl_estimators_match_numbers_by_hand(kind: str, expected: list[float]) -> None:
    """Policy / reference 2 and 1/2."""
    reference = tensor([-1.0, -2.0])
    estimate = kl_estimate(reference + tensor([2.0, 0.5]).log(), reference, kind)
    assert estimate.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("correction", "weights", "capped"),
    [
        ("none", [1, 1, 1, 1], [0, 0, 0, 0]),
        ("token", [1.5, 2.0, 0.5, 0.25], [0, 1, 0, 0]),  # 3 is cut to 2
        ("sequence", [2.0, 2.0, 0.125, 0.125], [1, 1, 0, 0]),  # 1.5 x 3 = 4.5, cut to 2; 0.5 x 0.25
    ],
)
def test_importance_weights_are_truncated(correction: str, weights: list[float], capped: list[float]) -> None:
    old = tensor([-1.0, -1.0, -1.0, -1.0])
    behaviour = old - tensor([1.5, 3.0, 0.5, 0.25]).log()
    ones = torch.ones_like(old)
    tokens = tokens_of(old, old, behaviour, None, ones, ones / 4, [2, 2])
    settings = SETTINGS.model_copy(update={"correction": correction, "correction_cap": 2.0})
    got = rollout_correction(tokens.old, tokens.behaviour, tokens.sequence, settings)
    assert got.weights.tolist() == pytest.approx(weights)
    assert got.truncated.tolist() == [bool(c) for c in capped]
    loss, statistics = policy_loss(tokens, settings)
    assert loss.item() == pytest.approx(-sum(weights) / 4)  # ratio and advantage are 1
    assert statistics.truncated == sum(capped)
    assert statistics.importance_ratio.mean == pytest.approx(sum(weights) / 4)


def test_the_correction_does_not_change_the_kl_term() -> None:
    old = tensor([-1.0])
    tokens = tokens_of(old, old, old - math.log(0.5), old + math.log(2), tensor([0.0]), tensor([1.0]))
    loss, _ = policy_loss(tokens, SETTINGS.model_copy(update={"correction": "token"}))
    assert loss.item() == pytest.approx(0.04 * (2 - math.log(2) - 1))


@pytest.mark.parametrize("correction", ["none", "token", "sequence", "geometric"])
@pytest.mark.parametrize("mode", ["truncate", "mask"])
@pytest.mark.parametrize("kind", ["grpo", "gspo", "bnpo", "dapo", "cispo", "dr_grpo"])
def test_extreme_log_ratios_give_a_finite_loss_and_gradient(kind: str, mode: str, correction: str) -> None:
    """In float32, as in training, exp(89) would be infinite. One token has probability 0 under the behaviour policy."""
    apart = torch.tensor([1e4, -1e4, 1e4, -1e4, 90.0, -90.0])
    policy = torch.full_like(apart, -2.0).requires_grad_()
    behaviour = policy.detach() - apart.flip(0)
    behaviour[0] = -math.inf
    for advantage in (5.0, -5.0):
        for estimator in ("k1", "k2", "k3"):
            tokens = Tokens(
                policy=policy,
                old=policy.detach() - apart,
                behaviour=behaviour,
                reference=policy.detach() + apart,
                advantages=torch.full_like(apart, advantage),
                weights=torch.full_like(apart, 1 / 6),
                sequence=torch.tensor([0, 0, 1, 2, 3, 3]),
                entropy=torch.ones_like(apart),
            )
            changes = {"kind": kind, "kl": estimator, "correction": correction, "correction_mode": mode}
            loss, statistics = policy_loss(tokens, SETTINGS.model_copy(update=changes))
            (gradient,) = torch.autograd.grad(loss, policy)
            assert math.isfinite(loss.item())
            assert gradient.isfinite().all()
            assert all(
                v is None or math.isfinite(v) for k, v in statistics.metrics().items() if k != "entropy_by_difficulty"
            )
            assert statistics.ratio.high == pytest.approx(math.exp(20), rel=1e-3)


def test_k3_is_bounded_as_in_verl() -> None:
    estimate = kl_estimate(tensor([-9.0, -30.0, 0.0, -1.0]), tensor([-1.0, -1.0, -40.0, -1.0]), "k3")
    assert estimate.tolist() == [10.0, 10.0, 10.0, 0.0]


def test_entropy_bonus_is_subtracted_with_the_weights_of_the_loss() -> None:
    policy, entropy = tensor([-1.0, -2.0]), tensor([3.0, 5.0]).requires_grad_()
    tokens = dataclasses.replace(
        tokens_of(policy, policy, policy, None, tensor([0.0, 0.0]), tensor([0.5, 0.25])), entropy=entropy
    )
    loss, statistics = policy_loss(tokens, SETTINGS.model_copy(update={"entropy_coef": 0.1}))
    assert loss.item() == pytest.approx(-0.1 * (3 * 0.5 + 5 * 0.25))
    assert torch.autograd.grad(loss, entropy)[0].tolist() == pytest.approx([-0.05, -0.025])
    assert statistics.entropy.mean == 4.0
    loss, _ = policy_loss(tokens, SETTINGS)
    assert (loss.item(), loss.requires_grad) == (0.0, False)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("grpo", [1 / 3, 0, 1 / 15]),  # TRL's mean over all completions counts the masked one
        ("gspo", [1 / 3, 0, 1 / 15]),
        ("bnpo", [1 / 6, 0, 1 / 6]),  # its mean over tokens does not
        ("dapo", [1 / 6, 0, 1 / 6]),
        ("cispo", [1 / 6, 0, 1 / 6]),
        ("dr_grpo", [1 / 30, 0, 1 / 30]),
    ],
)
def test_masked_completions_have_no_weight(kind: str, expected: list[float]) -> None:
    weights = token_weights([1, 2, 5], kind, 10, [False, True, False])
    assert [len(w) for w in weights] == [1, 2, 5]
    assert [w.tolist() for w in weights] == [pytest.approx([e] * n) for e, n in zip(expected, (1, 2, 5), strict=True)]


@pytest.mark.parametrize("kind", ["grpo", "gspo", "bnpo", "dapo", "cispo", "dr_grpo"])
def test_empty_and_fully_masked_batches_have_weights_of_zero(kind: str) -> None:
    assert [w.tolist() for w in token_weights([0, 0], kind, 10)] == [[], []]
    assert [w.tolist() for w in token_weights([0, 2], kind, 10, [True, True])] == [[], [0.0, 0.0]]
