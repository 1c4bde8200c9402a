"""Hidden states of prompts under the current policy, for the predictor of success rates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch

from adagrpo_ray.learner.background import Background
from adagrpo_ray.learner.dropout import without_dropout
from adagrpo_ray.learner.layout import Rows
from adagrpo_ray.learner.policy import Policy
from adagrpo_ray.sampling.allocator import Allocator
from adagrpo_ray.types import Floats, TokenIds, TrainSample

PASS_TOKENS = 4096
"""Most tokens of one pass, unless a single prompt is longer."""

HiddenStates = Callable[[Sequence[TokenIds]], Floats]
LayOut = Callable[[Sequence[TrainSample], torch.device], Rows]


def last_states(policy: Policy, lay_out: LayOut, device: torch.device, prompts: Sequence[TokenIds]) -> Floats:
    """Hidden states [n x H], in float32, of the last tokens of `prompts`: those that predict a first completion token.

    They are after the final norm, without gradient and dropout.
    """
    with torch.no_grad(), without_dropout(policy):
        parts = [policy.hidden(lay_out(samples, device)).float().cpu() for samples in _passes(prompts)]
    states: Floats = torch.cat(parts).numpy()
    return states


def describe_ahead(allocator: Allocator, background: Background, hidden: HiddenStates) -> None:
    """Pass the hidden states of the next prompts to the allocator, as far as its predictor needs them.

    The model runs on the thread of the caller, which also trains, so two passes never run at once. The allocator is
    used in `background` only, since steps in flight draw prompts there.
    """
    if prompts := background.call(allocator.undescribed):
        states = hidden([prompt.token_ids for prompt, _ in prompts])
        background.call(partial(allocator.describe, prompts, states))


def _passes(prompts: Sequence[TokenIds]) -> Iterator[list[TrainSample]]:
    """The prompts in their order, each with one token to predict, divided by PASS_TOKENS."""
    samples: list[TrainSample] = []
    width = 0
    for prompt in prompts:
        width = max(width, len(prompt) + 1)  # rows may be padded to the longest one
        if samples and width * (len(samples) + 1) > PASS_TOKENS:
            yield samples
            samples, width = [], len(prompt) + 1
        zero = np.zeros(1, np.float32)
        samples.append(TrainSample(prompt, np.zeros(1, np.int32), zero, zero, 0.0))
    if samples:
        yield samples
