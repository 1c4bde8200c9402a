"""The phases on vLLM's second model runner: a request has the phase and the used tokens that it has on the first one.

Both runners share the arithmetic, so equal state gives equal bits. `test_phases.py` tests the arithmetic.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.v1.sample.logits_processor.interface import BatchUpdate
from vllm.v1.worker.gpu.sample.logits_processor import build_custom_logits_processors_params_validator

from adagrpo_ray.config.sampling import PhaseParams
from adagrpo_ray.rollout.device_phases import DevicePhaseProcessor
from adagrpo_ray.rollout.engine_start import DEVICE_PHASES, HOST_PHASES
from adagrpo_ray.rollout.phases import PhaseLogitsProcessor, phase_args
from tests.support.scripted import byte_tokenizer

SLOTS, LENGTH, V = 4, 64, 12
CPU = torch.device("cpu")
CONFIG: Any = SimpleNamespace(speculative_config=None, model_config=None)


class Both:
    """The processors of both runners, with the same requests in the same slots."""

    def __init__(self, vocabulary: int = V) -> None:
        self.first = PhaseLogitsProcessor(CONFIG, CPU, False)
        self.lengths = {name: np.zeros(SLOTS, np.int32) for name in ("prompt", "prefill")}
        self.tokens = torch.zeros(SLOTS, LENGTH, dtype=torch.int32)
        self.states: Any = SimpleNamespace(
            device=CPU,
            max_num_reqs=SLOTS,
            vocab_size=vocabulary,
            all_token_ids=SimpleNamespace(gpu=self.tokens),
            **{f"{n}_len": SimpleNamespace(np=v, gpu=torch.from_numpy(v)) for n, v in self.lengths.items()},
        )
        self.second = DevicePhaseProcessor(CONFIG, self.states)
        self.texts: dict[int, list[int]] = {}
        self.outputs: dict[int, list[int]] = {}

    def add(self, slot: int, params: SamplingParams, prompt: list[int], output: list[int]) -> bool:
        """Put a request into a slot of both; returns whether the second one changes its logits."""
        self.texts[slot], self.outputs[slot] = [*prompt, *output], list(output)
        self.lengths["prompt"][slot], self.lengths["prefill"][slot] = len(prompt), len(prompt) + len(output)
        self.tokens[slot, : len(self.texts[slot])] = torch.tensor(self.texts[slot], dtype=torch.int32)
        added = [(slot, params, prompt, self.outputs[slot])]
        self.first.update_state(BatchUpdate(batch_size=SLOTS, removed=[], added=added, moved=[]))
        changes = self.second.add_request(slot, params)
        self.second.apply_staged_writes()
        return changes

    def draw(self, slot: int, token: int) -> None:
        """Add a sampled token."""
        self.texts[slot].append(token)
        self.outputs[slot].append(token)

    def apply(self, order: list[int], logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits [len(order), V] of these slots after each processor; `logits` [SLOTS, V] are by slot."""
        first = self.first.apply(logits.clone())[order]
        context: Any = SimpleNamespace(
            expanded_idx_mapping=torch.tensor(order, dtype=torch.int32),
            idx_mapping_np=np.array(order),
            input_ids=torch.tensor([self.texts[slot][-1] for slot in order], dtype=torch.int32),
            pos=torch.tensor([len(self.texts[slot]) - 1 for slot in order]),
        )
        return first, self.second.apply(logits[order].clone(), context)


PHASE = st.builds(
    PhaseParams,
    temperature=st.sampled_from([0.0, 0.31, 1.0, 1.7]),
    top_p=st.sampled_from([0.2, 0.93, 1.0]),
    top_k=st.sampled_from([0, 1, 5, V + 3]),
    min_p=st.sampled_from([0.0, 0.07]),
    repetition_penalty=st.sampled_from([0.7, 1.0, 1.3]),
)
TOKENS = st.lists(st.integers(0, V - 1), max_size=8)
REQUEST = st.none() | st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=3), PHASE, PHASE, TOKENS)


def params(request: Any) -> SamplingParams:
    return SamplingParams() if request is None else SamplingParams(extra_args=phase_args(*request[:3]))


@given(requests=st.lists(REQUEST, min_size=1, max_size=SLOTS), steps=st.data(), seed=st.integers(0, 1000))
def test_requests_have_the_same_state_in_both_processors(requests: list[Any], steps: st.DataObject, seed: int) -> None:
    """Any requests, with and without phases, some of which come back with an output, or replace an earlier one."""
    both, generator = Both(), torch.Generator().manual_seed(seed)
    for slot, request in enumerate(requests):
        output = [] if request is None else request[3]
        assert both.add(slot, params(request), [slot, 5], output) == (request is not None)
    for _ in range(steps.draw(st.integers(1, 6))):
        order = steps.draw(st.permutations(range(len(requests))))
        first, second = both.apply(order, 3 * torch.randn(SLOTS, V, generator=generator))
        assert torch.equal(first, second)
        for slot in order:
            both.draw(slot, steps.draw(st.integers(0, V - 1)))
        if steps.draw(st.booleans()):  # a request has ended, and another one takes its slot
            slot, request = steps.draw(st.sampled_from(range(len(requests)))), steps.draw(REQUEST)
            both.add(slot, params(request), [3], [] if request is None else request[3])


def test_a_prompt_that_is_fed_in_several_steps_is_not_read_as_output() -> None:
    both = Both()
    both.add(0, SamplingParams(extra_args=phase_args([2], {"temperature": 2.0}, {"temperature": 0.5})), [2, 2, 2], [])
    context: Any = SimpleNamespace(
        expanded_idx_mapping=torch.tensor([0]), idx_mapping_np=np.array([0]), input_ids=torch.tensor([2])
    )
    for position in range(3):
        context.pos = torch.tensor([position])
        assert both.second.apply(torch.ones(1, V), context).tolist() == [[0.5] * V]
    both.draw(0, 2)
    assert both.apply([0], torch.ones(SLOTS, V))[1].tolist() == [[2.0] * V]


def test_a_marker_of_text_is_found_in_any_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_tokenizer(merged=[".</", "think", ">\n"])
    monkeypatch.setattr("adagrpo_ray.rollout.device_phases._tokenizer", lambda config: tokenizer)
    monkeypatch.setattr("adagrpo_ray.rollout.phases.cached_tokenizer_from_config", lambda config: tokenizer)
    both = Both(vocabulary := len(tokenizer))
    both.add(0, SamplingParams(extra_args=phase_args("</think>", {"temperature": 2.0}, {"temperature": 0.5})), [0], [])
    scales = []
    for token in tokenizer.encode("sum.</think>\n42", add_special_tokens=False):
        both.draw(0, token)
        first, second = both.apply([0], torch.ones(SLOTS, vocabulary))
        assert torch.equal(first, second)
        scales.append((tokenizer.decode([token]), second[0, 0].item()))
    assert scales == [
        ("s", 0.5),
        ("u", 0.5),
        ("m", 0.5),
        (".</", 0.5),
        ("think", 0.5),
        (">\n", 2.0),
        ("4", 2),
        ("2", 2),
    ]


def test_a_batch_without_phases_is_not_copied() -> None:
    both, logits = Both(), torch.ones(1, V)
    assert not both.add(1, SamplingParams(), [0], [])
    context: Any = SimpleNamespace(idx_mapping_np=np.array([1]))
    assert both.second.apply(logits, context) is logits


def test_speculative_decoding_is_refused() -> None:
    config: Any = SimpleNamespace(speculative_config=object())
    with pytest.raises(ValueError, match="speculative_config: phases need one row for each request"):
        DevicePhaseProcessor(config, Both().states)


def test_vllms_second_runner_loads_and_asks_the_processor() -> None:
    validate = build_custom_logits_processors_params_validator([DEVICE_PHASES])
    validate(SamplingParams(extra_args=phase_args([1], {}, {})))
    with pytest.raises(VLLMValidationError, match=r"temperature=0\.5 together with extra_args\['phases'\]"):
        validate(SamplingParams(temperature=0.5, extra_args=phase_args([1], {}, {})))
    with pytest.raises(ValueError, match="is not a subclass of"):
        build_custom_logits_processors_params_validator([HOST_PHASES])
