"""Phases by slot on a device: they are those that the marker in the text and the parameters of the request give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adagrpo_ray.config.sampling import PhaseParams
from adagrpo_ray.rollout.marker import Automata
from adagrpo_ray.rollout.phase_request import Phases
from adagrpo_ray.rollout.phase_slots import PhaseSlots, composed
from adagrpo_ray.rollout.phase_tensors import PhaseTensors

V = 6
SLOTS = 4


def slots() -> PhaseSlots:
    return PhaseSlots(SLOTS, V, Automata(lambda: None), lambda array: torch.from_numpy(np.array(array)))


def phases(marker: tuple[int, ...] = (2,), thought: Any = None, answer: Any = None) -> Phases:
    return Phases(marker, PhaseParams(**(thought or {})), PhaseParams(**(answer or {})))


def written(s: PhaseSlots, slot: int, of: Phases, prompt: list[int], output: list[int]) -> None:
    """Write one request as the model runner does."""
    assert s.stage(slot, of)
    tokens = torch.full((SLOTS, 32), V - 1, dtype=torch.int32)
    tokens[slot, : len(prompt) + len(output)] = torch.tensor([*prompt, *output], dtype=torch.int32)
    counts = np.zeros((2, SLOTS), np.int32)
    counts[:, slot] = len(prompt), len(prompt) + len(output)
    s.write(tokens, *counts)


def fed(s: PhaseSlots, tokens: dict[int, int], fresh: bool = True) -> PhaseTensors:
    """Feed one token for each slot; returns the parameters of the slots, in their order."""
    at = torch.tensor(list(tokens))
    s.advance(at, torch.tensor(list(tokens.values())), torch.full((len(tokens),), fresh))
    return s.tensors(at, np.array(list(tokens)))


@given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=9))
def test_composed_steps_are_those_one_after_another(steps: list[list[int]]) -> None:
    states = list(range(4))
    for step in steps:
        states = [step[state] for state in states]
    assert composed(torch.tensor(steps)).tolist() == states


def test_slot_changes_phase_after_the_marker_and_for_good() -> None:
    s = slots()
    written(s, 1, phases((1, 2), {"temperature": 2.0}, {"temperature": 0.5}), [1, 2], [])
    temperatures = [fed(s, {1: 2}, fresh=False).temperature.item()]
    temperatures += [fed(s, {1: token}).temperature.item() for token in (1, 0, 1, 2, 0)]
    assert temperatures == [2.0, 2.0, 2.0, 2.0, 0.5, 0.5], "the marker in the prompt does not count"


@pytest.mark.parametrize("output", [[0, 2, 0], [2], [0, 0, 0, 0, 2]])
def test_request_that_comes_back_with_its_output_keeps_its_phase(output: list[int]) -> None:
    s = slots()
    written(s, 0, phases(answer={"temperature": 2.0}), [0], output)
    assert fed(s, {0: 0}, fresh=False).temperature.tolist() == [2.0]


def test_slot_of_an_earlier_request_begins_again() -> None:
    s = slots()
    repeating = phases(thought={"repetition_penalty": 2.0})
    written(s, 0, repeating, [1], [2, 3])
    written(s, 0, repeating, [4], [])
    tensors = fed(s, {0: 4}, fresh=False)
    assert tensors.used is not None
    assert tensors.used.tolist() == [[token == 4 for token in range(V)]]
    assert tensors.penalty is not None
    assert tensors.penalty.tolist() == [2.0], "the marker was in the output of the earlier request"
    assert not s.stage(0, None)
    assert s.active.tolist() == [False] * SLOTS


def test_filters_that_no_slot_uses_are_left_out() -> None:
    s = slots()
    written(s, 0, phases(), [1], [])
    tensors = fed(s, {0: 1}, fresh=False)
    assert (tensors.min_p, tensors.top_k, tensors.top_p, tensors.penalty, tensors.used) == (None,) * 5
    written(s, 1, phases(answer={"top_k": 3}), [1], [])
    assert fed(s, {0: 1}, fresh=False).top_k is None, "only the rows of the step count"
    both = fed(s, {0: 1, 1: 1}, fresh=False).top_k
    assert both is not None
    assert both.tolist() == [V, V]


PHASE = st.builds(
    PhaseParams,
    temperature=st.sampled_from([0.0, 0.3, 1.7]),
    top_p=st.sampled_from([0.1, 1.0]),
    top_k=st.integers(0, V + 1),
    min_p=st.sampled_from([0.0, 0.3]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
)
REQUEST = st.tuples(
    st.lists(st.integers(0, 2), min_size=1, max_size=3), PHASE, PHASE, st.lists(st.integers(0, V - 1), max_size=9)
)


@given(requests=st.lists(REQUEST, min_size=1, max_size=SLOTS), steps=st.data())
def test_parameters_are_those_of_each_rows_phase(requests: list[Any], steps: st.DataObject) -> None:
    """Any requests, some of which come back with an output: exactly the tensors of the host's processor."""
    s, outputs = slots(), [list(output) for *_, output in requests]
    for slot, (marker, thought, answer, output) in enumerate(requests):
        written(s, slot, Phases(tuple(marker), thought, answer), [0], output)
    for _ in range(steps.draw(st.integers(1, 5))):
        order = steps.draw(st.permutations(range(len(requests))))
        tokens = {slot: steps.draw(st.integers(0, V - 1)) for slot in order}
        got = fed(s, tokens)
        for slot, token in tokens.items():
            outputs[slot].append(token)
        now = []
        for slot in tokens:
            marker, thought, answer, _ = requests[slot]
            ended = any(outputs[slot][i : i + len(marker)] == marker for i in range(len(outputs[slot])))
            now.append(answer if ended else thought)
        expected = PhaseTensors.of(now, [[0, *outputs[slot]] for slot in tokens], torch.zeros(1, V))
        neutral = {"min_p": 0.0, "top_k": V, "top_p": 1.0, "penalty": 1.0}
        assert all(t is None or t.is_contiguous() for t in (got.min_p, got.top_k, got.top_p)), (
            "kernels read them as such"
        )
        torch.testing.assert_close(got.temperature, expected.temperature, rtol=0, atol=0)
        for name, off in neutral.items():
            ours, theirs = (getattr(of, name) for of in (got, expected))
            filled = [torch.full((len(tokens),), float(off)) if t is None else t.float() for t in (ours, theirs)]
            torch.testing.assert_close(*filled, rtol=0, atol=0)
        if expected.used is not None:
            assert got.used is not None
            penalised = [phase.repetition_penalty != 1.0 for phase in now]
            assert torch.equal(got.used[penalised], expected.used[penalised])
