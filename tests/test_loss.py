"""The policy loss against numbers worked out by hand, and its gradient against finite differences."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adagrpo_ray.algorithm.loss import LossSums, policy_loss, token_weights

EPSILON = 0.2
TOKENS = st.tuples(st.floats(0.1, 3), st.floats(-5, 5), st.floats(0.1, 3), st.floats(0, 1))


def tensor(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def loss_of(
    ratios: Sequence[float],
    advantages: Sequence[float],
    weights: Sequence[float],
    *,
    reference_ratios: Sequence[float] | None = None,
    beta: float = 0.0,
) -> LossSums:
    """The loss of tokens by their `ratios` policy / old and `reference_ratios` reference / policy."""
    policy = torch.full((len(ratios),), math.log(0.5), dtype=torch.float64)
    reference = None if reference_ratios is None else policy + tensor(reference_ratios).log()
    old = policy - tensor(ratios).log()
    return policy_loss(policy, old, old, reference, tensor(advantages), tensor(weights), EPSILON, beta)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("grpo", [[1 / 3], [1 / 6] * 2, [1 / 15] * 5]),  # 1 / (3 completions x T)
        ("bnpo", [[1 / 8], [1 / 8] * 2, [1 / 8] * 5]),  # 1 / 8 tokens
        ("dr_grpo", [[1 / 30], [1 / 30] * 2, [1 / 30] * 5]),  # 1 / (3 completions x 10 allowed tokens)
    ],
)
def test_token_weights(kind: str, expected: list[list[float]]) -> None:
    weights = token_weights([1, 2, 5], kind, max_new_tokens=10)
    assert [len(w) for w in weights] == [1, 2, 5]
    assert all(w.dtype == np.float32 for w in weights)
    assert [w.tolist() for w in weights] == [pytest.approx(e) for e in expected]


@pytest.mark.parametrize("kind", ["grpo", "bnpo", "dr_grpo"])
def test_no_completions_have_no_weights(kind: str) -> None:
    assert token_weights([], kind, max_new_tokens=10) == []


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="'gppo' is none of grpo, bnpo, dr_grpo"):
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
def test_clipping(ratio: float, advantage: float, surrogate: float, clipped: int) -> None:
    sums = loss_of([ratio], [advantage], [1.0])
    assert sums.loss.item() == pytest.approx(-surrogate)
    assert sums.clipped.item() == clipped


def test_tokens_add_up_by_weight() -> None:
    # Surrogates 1.2 (held), 1.1, 0.5 | -1.5, -1.0, -0.8 (held), weighted 1/2, 1/4, 1/4 | 1/8, 1/8, 1/4:
    # 0.6 + 0.275 + 0.125 - 0.1875 - 0.125 - 0.2 = 0.4875. Held tokens weigh 1/2 + 1/4.
    ratios, advantages = [1.5, 1.1, 0.5, 1.5, 1.0, 0.5], [1.0, 1.0, 1.0, -1.0, -1.0, -1.0]
    sums = loss_of(ratios, advantages, [0.5, 0.25, 0.25, 0.125, 0.125, 0.25])
    assert sums.loss.item() == pytest.approx(-0.4875)
    assert sums.clipped.item() == pytest.approx(0.75)
    assert sums.kl.item() == 0.0


def test_kl_is_added_with_beta() -> None:
    # k3 of reference / policy 2 is 2 - ln 2 - 1 = 0.306853, of 0.5 it is 0.5 + ln 2 - 1 = 0.193147, of 1 zero.
    # Weighted 1/2, 1/4, 1/4: 0.153426 + 0.048287 = 0.201713. Surrogates 1, -1, 3 weigh 0.5 - 0.25 + 0.75 = 1.
    sums = loss_of([1, 1, 1], [1, -1, 3], [0.5, 0.25, 0.25], reference_ratios=[2, 0.5, 1], beta=0.04)
    assert sums.kl.item() == pytest.approx(0.201713, abs=1e-6)
    assert sums.loss.item() == pytest.approx(-1 + 0.04 * 0.201713, abs=1e-7)


def test_gap_is_to_the_behaviour_policy_and_changes_no_loss() -> None:
    policy, ones = tensor([-1.0, -2.0]), torch.ones(2, dtype=torch.float64)
    sums = policy_loss(policy, policy, tensor([-1.5, -1.0]), None, ones, tensor([0.5, 0.25]), EPSILON, 0.0)
    assert sums.gap.item() == pytest.approx(0.5 * 0.5 + 1.0 * 0.25)
    assert sums.loss.item() == pytest.approx(-0.75)


def test_gradient_agrees_with_finite_differences() -> None:
    ratios, advantages = tensor([1.5, 1.1, 0.5, 1.5, 0.9, 0.5]), tensor([1.0, 2.0, 0.5, -1.0, -2.0, -0.5])
    start, weights = tensor([-1.0, -2.0, -0.5, -3.0, -0.1, -1.5]), tensor([0.3, 0.1, 0.2, 0.1, 0.2, 0.1])
    old, reference = start - ratios.log(), start + tensor([0.3, -0.2, 0.1, -0.4, 0.0, 0.5])

    def loss(policy: torch.Tensor) -> torch.Tensor:
        return policy_loss(policy, old, old, reference, advantages, weights, EPSILON, 0.04).loss

    policy = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(policy), policy)
    step = 1e-6
    differences = [(loss(start + nudge) - loss(start - nudge)) / (2 * step) for nudge in step * torch.eye(6).double()]
    assert gradient.tolist() == pytest.approx([d.item() for d in differences], abs=1e-8)


def test_held_tokens_have_no_gradient_and_on_policy_ones_the_policy_gradient() -> None:
    policy = tensor([-1.0, -1.0, -1.0, -1.0]).requires_grad_()
    old = policy.detach() - tensor([1.5, 0.5, 1.0, 1.0]).log()
    advantages, weights = tensor([1.0, -1.0, 2.0, -3.0]), tensor([0.25] * 4)
    loss = policy_loss(policy, old, old, None, advantages, weights, EPSILON, 0.0).loss
    (gradient,) = torch.autograd.grad(loss, policy)
    assert gradient.tolist() == pytest.approx([0.0, 0.0, -0.5, 0.75])


@given(
    st.lists(TOKENS, min_size=1, max_size=12),
    st.lists(st.integers(0, 12), max_size=4),
)
def test_the_same_however_tokens_are_cut(tokens: list[tuple[float, float, float, float]], cuts: list[int]) -> None:
    def sums(part: list[tuple[float, float, float, float]]) -> torch.Tensor:
        ratios, advantages, references, weights = zip(*part, strict=True)
        s = loss_of(ratios, advantages, weights, reference_ratios=references, beta=0.04)
        return torch.stack([s.loss, s.kl, s.clipped, s.gap])

    edges = [0, *sorted(min(c, len(tokens)) for c in cuts), len(tokens)]
    parts = [tokens[a:b] for a, b in itertools.pairwise(edges) if a < b]
    total = torch.stack([sums(part) for part in parts]).sum(0)
    assert total.tolist() == pytest.approx(sums(tokens).tolist(), rel=1e-9, abs=1e-12)
