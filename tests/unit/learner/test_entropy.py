"""Entropy of the policy from the chunked logits, against the full distribution."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adagrpo_ray.learner import buffers
from adagrpo_ray.learner.layout import Rows
from adagrpo_ray.learner.policy import PARTS, Policy
from tests.support.fake_models import FakeModel

HIDDEN, VOCABULARY, TOKENS = 8, 50, 33


class Body(torch.nn.Module):
    """Returns the hidden states that it gets."""

    def forward(self, hidden: torch.Tensor, use_cache: bool = False) -> transformers.modeling_outputs.BaseModelOutput:
        return transformers.modeling_outputs.BaseModelOutput(last_hidden_state=hidden)


def make_model() -> FakeModel[Body]:
    torch.manual_seed(0)
    model = FakeModel(Body(), HIDDEN, VOCABULARY)
    with torch.no_grad():
        model.head.weight.mul_(5)  # distributions from nearly certain to nearly even
    return model


def rows_of(hidden: torch.Tensor) -> Rows:
    targets = torch.arange(len(hidden)) % VOCABULARY
    return Rows({"hidden": hidden[None]}, predicting=torch.arange(len(hidden)), targets=targets)


@pytest.fixture
def hidden() -> torch.Tensor:
    return torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(1)).requires_grad_()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "LOGITS", VOCABULARY * 10)  # four chunks


@pytest.mark.parametrize("gradient", [False, True])
def test_entropy_and_logprobs_are_those_of_the_whole_distribution(hidden: torch.Tensor, gradient: bool) -> None:
    model, rows = make_model(), rows_of(hidden)
    logprobs, entropies = Policy(model, entropy_gradient=gradient)(rows)
    whole = torch.distributions.Categorical(logits=model.head(hidden))
    torch.testing.assert_close(entropies, whole.entropy(), rtol=0, atol=1e-5)
    torch.testing.assert_close(logprobs, whole.log_prob(rows.targets), rtol=0, atol=1e-5)
    assert entropies.requires_grad is gradient
    assert entropies.min() < 1.0 < 3.0 < entropies.max() < math.log(VOCABULARY)


def test_gradient_of_an_entropy_bonus_is_that_of_full_logits(hidden: torch.Tensor) -> None:
    model, weights = make_model(), torch.linspace(-1, 1, TOKENS)
    logprobs, entropies = Policy(model, entropy_gradient=True)(rows_of(hidden))
    (chunked,) = torch.autograd.grad((weights * (entropies + logprobs)).sum(), hidden)
    whole = torch.distributions.Categorical(logits=model.head(hidden))
    (full,) = torch.autograd.grad((weights * (whole.entropy() + whole.log_prob(rows_of(hidden).targets))).sum(), hidden)
    torch.testing.assert_close(chunked, full, rtol=1e-4, atol=1e-5)


def test_gradient_of_an_entropy_bonus_agrees_with_finite_differences(hidden: torch.Tensor) -> None:
    policy = Policy(make_model(), entropy_gradient=True)
    (gradient,) = torch.autograd.grad(policy(rows_of(hidden))[1].sum(), hidden)
    direction = torch.randn_like(hidden)
    with torch.no_grad():
        ahead, behind = (policy(rows_of(hidden + step * direction))[1].double().sum() for step in (1e-2, -1e-2))
    assert (gradient * direction).sum().item() == pytest.approx((ahead - behind).item() / 2e-2, rel=0.01)


def test_without_a_bonus_the_gradient_of_logprobs_is_unchanged(hidden: torch.Tensor) -> None:
    gradients = [
        torch.autograd.grad(Policy(make_model(), entropy_gradient=g)(rows_of(hidden))[0].sum(), hidden)[0]
        for g in (False, True)
    ]
    assert torch.equal(*gradients)


class Exponentials(TorchDispatchMode):
    """The rows of every tensor of probabilities that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.exp.default, torch.ops.aten._softmax.default):
            self.rows += [t.shape[0] for t in tree_leaves(out) if t.dim() == 2 and t.shape[1] == VOCABULARY]
        return out


def test_entropy_computes_probabilities_by_parts_and_only_once(hidden: torch.Tensor) -> None:
    policy = Policy(make_model())
    with Exponentials() as forward:
        logprobs, _ = policy(rows_of(hidden))
    assert sum(forward.rows) == TOKENS
    assert max(forward.rows) == math.ceil(math.ceil(TOKENS / 4) / PARTS) == 2
    with Exponentials() as backward:
        logprobs.sum().backward()
    # Backward makes the probabilities of logsumexp's gradient, chunk by chunk, and does not repeat the entropies.
    assert max(backward.rows, default=0) <= 10
    assert sum(backward.rows) <= TOKENS


def test_impossible_tokens_add_no_entropy() -> None:
    model = make_model()
    with torch.no_grad():
        model.head.bias[10:] = -math.inf
    hidden = torch.randn(5, HIDDEN)
    rows = Rows({"hidden": hidden[None]}, predicting=torch.arange(5), targets=torch.arange(5))
    for gradient in (False, True):
        entropies = Policy(model, entropy_gradient=gradient)(rows)[1]
        expected = torch.distributions.Categorical(logits=model.head(hidden)[:, :10]).entropy()
        torch.testing.assert_close(entropies, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tokens", [0, 1])
def test_zero_or_one_token_has_entropies(tokens: int) -> None:
    logprobs, entropies = Policy(make_model())(rows_of(torch.randn(tokens, HIDDEN)))
    assert logprobs.shape == entropies.shape == (tokens,)


def test_extreme_logits_have_a_finite_entropy() -> None:
    for scale in (0.0, 1e4, 1e30):
        entropies = Policy(make_model())(rows_of(scale * torch.randn(4, HIDDEN)))[1]
        assert entropies.isfinite().all()
        assert (entropies >= -1e-3).all()
