"""Observed tokens are input of the policy only: no gradient, ratio or statistic of an update depends on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
import transformers

from adagrpo_ray.algorithm.loss import policy_loss
from adagrpo_ray.algorithm.update_statistics import UpdateStatistics
from adagrpo_ray.config.algorithm import LossSettings
from adagrpo_ray.config.learner import Packing
from adagrpo_ray.learner.layout import LAYOUTS
from adagrpo_ray.learner.loss_tokens import loss_tokens
from adagrpo_ray.learner.packing import pack_batches
from adagrpo_ray.learner.policy import Policy
from adagrpo_ray.types import TrainSample
from tests.support.fake_models import FakeModel

HIDDEN, VOCABULARY = 8, 20
CPU = torch.device("cpu")
PACKINGS: tuple[Packing, ...] = get_args(Packing)


class Body(torch.nn.Module):
    """Hidden states that depend on the token at their place alone; it keeps those of the last call."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCABULARY, HIDDEN)
        self.hidden = torch.empty(0)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> transformers.modeling_outputs.BaseModelOutput:
        self.hidden = self.embedding(input_ids)
        self.hidden.retain_grad()
        return transformers.modeling_outputs.BaseModelOutput(last_hidden_state=self.hidden)


Bigrams = FakeModel[Body]
"""A model that predicts each token from the one before it."""


def bigrams() -> Bigrams:
    torch.manual_seed(0)
    return FakeModel(Body(), HIDDEN, VOCABULARY)


def sample_of(prompt: Sequence[int], tokens: Sequence[int], observed: Sequence[int] = (), **fields: Any) -> TrainSample:
    """A sample whose tokens at the places `observed` were written by the environment; None if there are none."""
    mask = np.isin(np.arange(len(tokens)), observed)
    sample = TrainSample(
        prompt_token_ids=np.array(prompt, np.int32),
        token_ids=np.array(tokens, np.int32),
        behaviour_logprobs=np.where(mask, 0.0, -3.0).astype(np.float32),
        token_weights=np.where(mask, 0.0, 0.125).astype(np.float32),
        advantage=1.0,
        observed=mask if observed else None,
    )
    return replace(sample, **fields)


SAMPLES = (
    sample_of([1, 2, 3], [4, 5, 6, 7, 8, 9], [2, 3]),
    sample_of([1, 2, 3], [5, 6, 7], advantage=-1.0),
    sample_of([9, 8], [1, 2, 3, 4], [1, 2], advantage=0.5),
)
TARGETS = [4, 5, 8, 9, 5, 6, 7, 1, 4]
# The first sample has nine tokens, the second six, the last one six. A shared prompt is there once.
PREDICTING: dict[Packing, list[int]] = {
    "padded": [2, 3, 6, 7, 9 + 2, 9 + 3, 9 + 4, 18 + 1, 18 + 4],
    "packed": [2, 3, 6, 7, 9 + 2, 9 + 3, 9 + 4, 15 + 1, 15 + 4],
    "shared": [2, 3, 6, 7, 2, 9, 10, 13, 16],
}


def update(
    samples: Sequence[TrainSample], packing: Packing, model: Bigrams, **settings: Any
) -> tuple[torch.Tensor, UpdateStatistics]:
    """The loss of the samples, whose old policy is a little different from the policy, and its statistics."""
    policy = Policy(model, entropy_gradient=True)
    logprobs, entropy = policy(LAYOUTS[packing](samples, CPU))
    old = logprobs.detach() - torch.linspace(-0.1, 0.1, len(logprobs))
    tokens = loss_tokens(samples, logprobs, old, old - 0.05, entropy)
    return policy_loss(tokens, LossSettings.model_validate({"beta": 0.04, "entropy_coef": 0.01, **settings}))


@pytest.mark.parametrize("packing", PACKINGS)
def test_only_tokens_of_the_policy_are_predicted(packing: Packing) -> None:
    rows = LAYOUTS[packing](SAMPLES, CPU)
    assert rows.targets.tolist() == TARGETS
    assert rows.predicting.tolist() == PREDICTING[packing]
    assert {6, 7} <= set(rows.inputs["input_ids"].flatten().tolist())  # the model reads observed tokens


@pytest.mark.parametrize("packing", PACKINGS)
def test_logprobs_are_given_the_token_before_even_if_it_was_observed(packing: Packing) -> None:
    model = bigrams()
    logprobs = Policy(model)(LAYOUTS[packing](SAMPLES, CPU))[0]
    before = torch.tensor([3, 4, 7, 8, 3, 5, 6, 8, 3])
    expected = model.head(model.body.embedding(before)).log_softmax(-1)[range(len(TARGETS)), TARGETS]
    torch.testing.assert_close(logprobs, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("kind", ["bnpo", "gspo", "cispo"])
def test_gradients_of_observed_tokens_are_exactly_zero(packing: Packing, kind: str) -> None:
    model = bigrams()
    update(SAMPLES, packing, model, kind=kind)[0].backward()
    assert model.body.hidden.grad is not None
    moved = model.body.hidden.grad.flatten(0, 1).ne(0).any(-1).nonzero().flatten()
    assert moved.tolist() == sorted(set(PREDICTING[packing]))


@pytest.mark.parametrize("correction", ["token", "sequence", "geometric", "none"])
@pytest.mark.parametrize("kind", ["bnpo", "gspo"])
def test_values_at_observed_tokens_do_not_change_the_update(kind: str, correction: str) -> None:
    odd = tuple(
        replace(
            sample,
            behaviour_logprobs=np.where(sample.observed, math.nan, sample.behaviour_logprobs).astype(np.float32),
            token_weights=np.where(sample.observed, 7.0, sample.token_weights).astype(np.float32),
        )
        if sample.observed is not None
        else sample
        for sample in SAMPLES
    )
    found = [update(samples, "packed", bigrams(), kind=kind, correction=correction) for samples in (SAMPLES, odd)]
    assert found[0][0].item() == found[1][0].item()
    assert found[0][1] == found[1][1]
    assert found[0][1].tokens == len(TARGETS)


@pytest.mark.parametrize("packing", PACKINGS)
def test_packings_give_the_same_loss_and_statistics(packing: Packing) -> None:
    loss, statistics = update(SAMPLES, packing, bigrams())
    expected, other = update(SAMPLES, "padded", bigrams())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert statistics.entropy.total == pytest.approx(other.entropy.total, rel=1e-5)
    assert statistics.ratio.total == pytest.approx(other.ratio.total, rel=1e-5)


EPISODE = sample_of([1], [2, 3, 4], [1], token_weights=np.array([0.25, 0, 0.25], np.float32))


def by_hand(
    old_ratios: Sequence[float], ratios: Sequence[float], advantage: float, **settings: Any
) -> tuple[float, UpdateStatistics]:
    """Loss of an episode of two tokens of the policy, with ratios old / behaviour and policy / old."""
    policy = torch.tensor([-1.0, -2.0])
    old = policy - torch.tensor(ratios).log()
    behaviour = np.array([0.0, 5.0, 0.0], np.float32)  # an impossible log-probability at the observed token
    behaviour[[0, 2]] = old.numpy() - np.log(old_ratios)
    sample = replace(EPISODE, behaviour_logprobs=behaviour, advantage=advantage)
    tokens = loss_tokens([sample], policy, old, None, torch.zeros(2))
    loss, statistics = policy_loss(tokens, LossSettings.model_validate({"beta": 0.0, **settings}))
    return loss.item(), statistics


def test_sequence_correction_is_the_product_over_tokens_of_the_policy() -> None:
    """2 x 3 = 6 for both tokens, each of weight 1/4."""
    loss, statistics = by_hand([2, 3], [1, 1], 1.0, correction="sequence", correction_cap=10.0)
    assert loss == pytest.approx(-(6 + 6) / 4)
    assert (statistics.tokens, statistics.importance_ratio.count) == (2, 1)
    assert statistics.importance_ratio.mean == pytest.approx(6.0)


def test_geometric_correction_is_the_mean_over_tokens_of_the_policy() -> None:
    """The geometric mean of 2 and 8 is 4; with an observed token of ratio 1 it would be 2.52."""
    loss, statistics = by_hand([2, 8], [1, 1], 1.0, correction="geometric", correction_cap=10.0)
    assert loss == pytest.approx(-(4 + 4) / 4)
    assert statistics.importance_ratio.mean == pytest.approx(4.0)


def test_gspo_ratio_is_the_geometric_mean_over_tokens_of_the_policy() -> None:
    """The mean of ln 2 and ln 8 is ln 4. With an advantage of -1 the minimum is the ratio without its clip."""
    loss, statistics = by_hand([1, 1], [2, 8], -1.0, kind="gspo", correction="none")
    assert loss == pytest.approx((4 + 4) / 4)
    assert (statistics.ratio.minimum, statistics.ratio.maximum) == (pytest.approx(4.0), pytest.approx(4.0))


def test_log_probability_difference_is_of_tokens_of_the_policy() -> None:
    statistics = by_hand([2, 3], [1, 1], 1.0)[1]
    assert statistics.logp_difference.count == 2
    assert statistics.logp_difference.maximum == pytest.approx(math.log(3))


@pytest.mark.parametrize("packing", PACKINGS)
def test_observed_tokens_count_in_the_budget_of_a_micro_batch(packing: Packing) -> None:
    """Two samples of 1 + 3 tokens, of which the policy wrote 2."""
    samples = [EPISODE, replace(EPISODE, prompt_token_ids=np.array([5], np.int32))]
    for budget, expected in ((8, [2]), (7, [1, 1])):
        (batch,) = pack_batches(1, samples, 1, budget, packing)
        assert [len(micro) for micro in batch.micro_batches] == expected


def test_idle_copy_of_an_episode_keeps_its_mask() -> None:
    _, second = pack_batches(1, [EPISODE], 2, 100)
    ((idle,),) = second.micro_batches
    assert idle.token_weights.tolist() == [0.0, 0.0, 0.0]
    assert idle.observed is EPISODE.observed
    assert (idle.policy_tokens, EPISODE.policy_tokens) == (2, 2)
