"""The prompts whose hidden states are computed before a step, and the passes that they are computed in."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from adagrpo_ray.learner import prompt_states
from adagrpo_ray.learner.background import Background
from adagrpo_ray.learner.layout import Rows, pad
from adagrpo_ray.learner.prompt_states import describe_ahead, last_states
from adagrpo_ray.types import Floats, Prompt, TokenIds, TrainSample
from tests.support.builders import make_prompt

CPU = torch.device("cpu")


class Echo(torch.nn.Module):
    """A policy whose hidden state at a position is the token there, and the number of tokens of the pass."""

    def hidden(self, rows: Rows) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        tokens = rows.inputs["input_ids"]
        last = tokens.flatten()[rows.predicting]
        return torch.stack([last, torch.full_like(last, tokens.numel())], 1).double()


def test_states_are_of_the_last_tokens_in_the_order_of_the_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_states, "PASS_TOKENS", 8)
    prompts = [np.array(tokens, np.int32) for tokens in ([7, 8, 9], [4], [1, 2, 3, 4, 5, 6, 7, 8, 3], [5])]
    policy: Any = Echo()
    states = last_states(policy, pad, CPU, prompts)
    assert states.dtype == np.float32
    assert states.tolist() == [[9, 8], [4, 8], [3, 10], [5, 2]]  # the longest prompt has a pass of its own


def test_the_model_runs_on_the_thread_of_the_caller_and_the_allocator_in_the_background() -> None:
    threads: dict[str, threading.Thread] = {}
    wanted = [(make_prompt("a", length=3), 0), (make_prompt("b", length=5), 1)]
    described: list[tuple[Sequence[tuple[Prompt, int]], Floats]] = []

    class Stub:
        def undescribed(self) -> list[tuple[Prompt, int]]:
            threads["undescribed"] = threading.current_thread()
            return [] if described else wanted

        def describe(self, prompts: Sequence[tuple[Prompt, int]], hidden: Floats) -> None:
            threads["describe"] = threading.current_thread()
            described.append((prompts, hidden))

    def hidden(prompts: Sequence[TokenIds]) -> Floats:
        threads["hidden"] = threading.current_thread()
        return np.array([[len(prompt)] for prompt in prompts], np.float32)

    background, allocator = Background(), Stub()
    for _ in range(2):
        describe_ahead(allocator, background, hidden)  # type: ignore[arg-type]
    background.close()
    ((prompts, states),) = described
    assert prompts == wanted
    assert states.tolist() == [[3], [5]]
    assert threads["hidden"] is threading.current_thread()
    assert threads["undescribed"] is threads["describe"] is not threading.current_thread()


def test_a_pass_has_no_tokens_to_train_on() -> None:
    (samples,) = prompt_states._passes([np.arange(3, dtype=np.int32)])
    (sample,) = samples
    assert isinstance(sample, TrainSample)
    assert (sample.advantage, sample.token_weights.tolist(), len(sample.token_ids)) == (0.0, [0.0], 1)
