"""The phase-dependent sampler: its maths, its rows on the first model runner, and all of it on a real engine."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

from transformers import (
    AutoModelForCausalLM,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from vllm import LLM, SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.v1.sample.logits_processor.interface import BatchUpdate, MoveDirectionality

import adagrpo_ray
from adagrpo_ray.config import Config
from adagrpo_ray.config.sampling import PhaseParams
from adagrpo_ray.data.prompts import load_prompts
from adagrpo_ray.model.pretrained import load_tokenizer
from adagrpo_ray.rollout.phase_tensors import PhaseTensors, apply_temperature, filter_min_p, penalise_repetition
from adagrpo_ray.rollout.phases import PhaseLogitsProcessor, phase_args
from tests.support.phase_requests import SAMPLINGS, ask, sampled, with_and_without_phases

CONFIG = Config.load("launch/configs/tiny-cpu.yaml", ["data.train_prompts=16", "data.eval_prompts=0"])
INF = math.inf
LOGITS = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))


# The maths


def test_repetition_penalty_by_hand() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0], [2.0, -2.0, 1.0]])
    used = torch.tensor([[True, True, False], [True, False, True]])
    penalised = penalise_repetition(logits, used, torch.tensor([2.0, 1.0]))
    assert penalised.tolist() == [[1.0, -4.0, 1.0], [2.0, -2.0, 1.0]]


def test_temperature_by_hand() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.0], [1.0, 4.0, 4.0]])
    assert apply_temperature(logits, torch.tensor([2.0, 0.0])).tolist() == [[0.5, 2.0, 1.0], [-INF, 0.0, -INF]]


def test_min_p_by_hand() -> None:
    kept = filter_min_p(LOGITS.repeat(4, 1), torch.tensor([0.0, 0.2, 0.5, 1.0])).isfinite()
    assert kept.sum(dim=1).tolist() == [4, 3, 2, 1]


@pytest.mark.parametrize(
    ("phase", "kept"),
    [
        (PhaseParams(), 4),
        (PhaseParams(top_k=3), 3),
        (PhaseParams(top_k=100), 4),
        (PhaseParams(top_p=0.7), 2),
        (PhaseParams(top_p=0.4), 1),
        (PhaseParams(top_p=1e-9), 1),
        (PhaseParams(min_p=1.0), 1),
        (PhaseParams(top_k=1, top_p=0.01, min_p=0.9), 1),
        # top_p applies after min_p, which leaves 0.5 and 0.3: they are then 0.625 and 0.375.
        (PhaseParams(min_p=0.5, top_p=0.62), 1),
        # The temperature comes first: at 2 the probabilities are 0.379, 0.294, 0.208, 0.120.
        (PhaseParams(temperature=2.0, top_p=0.7), 3),
        (PhaseParams(temperature=0.0, top_p=0.5), 1),
    ],
)
def test_filters_by_hand(phase: PhaseParams, kept: int) -> None:
    (row,) = PhaseTensors.of([phase], [[]], LOGITS).apply(LOGITS.clone()).isfinite().tolist()
    assert row == [place < kept for place in range(4)]


PHASES = st.builds(
    PhaseParams,
    temperature=st.floats(0.1, 2.0),
    top_p=st.floats(0.05, 1.0),
    top_k=st.integers(0, 12),
    min_p=st.floats(0.0, 0.5),
    repetition_penalty=st.floats(0.5, 2.0),
)


def by_transformers(phase: PhaseParams, text: list[int], logits: torch.Tensor) -> torch.Tensor:
    """The logits [V] of one row after the processors of transformers, in the order of vLLM."""
    steps = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(phase.repetition_penalty)])
    steps += [TemperatureLogitsWarper(phase.temperature), MinPLogitsWarper(phase.min_p)]
    steps += [TopKLogitsWarper(phase.top_k)] if phase.top_k else []
    steps += [TopPLogitsWarper(phase.top_p)] if phase.top_p < 1 else []
    changed: torch.Tensor = steps(torch.tensor([text]), logits[None])[0]
    return changed


@given(phases=st.lists(PHASES, min_size=1, max_size=5), seed=st.integers(0, 1000))
def test_all_steps_equal_those_of_transformers(phases: list[PhaseParams], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(len(phases), 10, generator=generator)
    texts = torch.randint(10, (len(phases), 4), generator=generator).tolist()
    changed = PhaseTensors.of(phases, texts, logits).apply(logits.clone())
    for phase, text, row, before in zip(phases, texts, changed, logits, strict=True):
        expected = by_transformers(phase, text, before)
        # If the edge of a filter falls on a token, rounding decides; the likeliest token is always kept.
        assert (row.isfinite() != expected.isfinite()).sum() <= 1
        both = row.isfinite() & expected.isfinite()
        torch.testing.assert_close(row[both], expected[both])
        unfiltered = by_transformers(PhaseParams(repetition_penalty=phase.repetition_penalty), text, before)
        assert row[unfiltered.argmax()].isfinite()


# The rows of the batch


def processor() -> PhaseLogitsProcessor:
    return PhaseLogitsProcessor(None, torch.device("cpu"), False)  # type: ignore[arg-type]


def params(thought: Any = None, answer: Any = None, marker: list[int] | None = None) -> SamplingParams:
    return SamplingParams(extra_args=phase_args(marker or [2], thought or {}, answer or {}))


def update(size: int, removed: Any = (), added: Any = (), moved: Any = ()) -> BatchUpdate:
    return BatchUpdate(batch_size=size, removed=removed, added=added, moved=moved)


def test_row_changes_phase_after_the_marker_and_for_good() -> None:
    p, output = processor(), [0]
    p.update_state(update(1, added=[(0, params({"temperature": 2.0}, {"temperature": 0.5}, [1, 2]), [1, 2], output)]))
    scales = []
    for token in (1, 0, 1, 2, 0, 0):
        scales.append(p.apply(torch.ones(1, 3))[0, 0].item())
        output.append(token)
        p.update_state(None)
    assert scales == [0.5, 0.5, 0.5, 0.5, 2.0, 2.0], "the marker in the prompt does not count"


def test_row_that_comes_back_with_its_output_keeps_its_phase() -> None:
    p = processor()
    p.update_state(update(1, added=[(0, params(answer={"temperature": 2.0}), [0], [0, 2, 0])]))
    assert p.apply(torch.ones(1, 3)).tolist() == [[0.5] * 3]


def test_penalty_follows_the_prompt_and_each_new_token() -> None:
    p, output, other = processor(), list[int](), list[int]()
    row = params({}, {"repetition_penalty": 2.0})
    p.update_state(update(2, added=[(0, row, [0], output), (1, params({"repetition_penalty": 0.5}), None, other)]))
    seen = []
    for token in (1, 2, 3, 4):
        seen.append(p.apply(torch.ones(2, 5)).tolist())
        output.append(token)
        other.append(4)
    free, half = 1.0, 0.5
    # The thought has no penalty; the answer's counts all that came before it, too.
    assert [rows[0] for rows in seen] == [[free] * 5] * 2 + [[half] * 3 + [free] * 2, [half] * 4 + [free]]
    assert [rows[1] for rows in seen] == [[free] * 5] + [[free] * 4 + [2.0]] * 3


def test_rows_without_phases_are_not_touched() -> None:
    p = processor()
    p.update_state(update(2, added=[(0, SamplingParams(), [0], []), (1, params({"temperature": 2.0}), [0], [])]))
    assert p.apply(torch.ones(2, 3)).tolist() == [[1.0] * 3, [0.5] * 3]
    p.update_state(update(2, added=[(1, SamplingParams(), [0], [])]))
    logits = torch.ones(2, 3)
    assert p.apply(logits) is logits
    assert not p.is_argmax_invariant()


def test_removed_swapped_and_moved_rows() -> None:
    p = processor()

    def scales() -> list[float]:
        return p.apply(torch.full((4, 2), 60.0))[:, 0].tolist()

    rows = [(i, params({"temperature": t}), [0], []) for i, t in enumerate([2.0, 1.5, 0.5])]
    p.update_state(update(4, added=[*rows, (3, SamplingParams(), [0], [])]))
    assert scales() == [30, 40, 120, 60]
    p.update_state(update(4, moved=[(0, 1, MoveDirectionality.SWAP), (2, 3, MoveDirectionality.SWAP)]))
    assert scales() == [40, 30, 60, 120]
    p.update_state(update(3, removed=[0], moved=[(3, 0, MoveDirectionality.UNIDIRECTIONAL)]))
    assert scales()[:3] == [120, 30, 60]
    p.update_state(update(2, removed=[0], added=[(0, params({"temperature": 0.25}), [0], [])]))
    assert scales() == [240, 30, 60, 60], "a place may be removed and filled in one update: removals come first"
    p.update_state(update(2, moved=[(2, 0, MoveDirectionality.UNIDIRECTIONAL)]))
    assert scales() == [60, 30, 60, 60], "a row without phases replaces one that has them"


@given(st.data())
def test_any_sequence_of_updates(data: st.DataObject) -> None:
    p, size = processor(), 5
    batch: list[float] = [0.0] * size  # temperature of the row's phase; 0: none there
    for _ in range(data.draw(st.integers(1, 8))):
        removed = [i for i in range(size) if data.draw(st.booleans())]
        for i in removed:
            batch[i] = 0.0
        added = []
        for i in data.draw(st.lists(st.sampled_from(range(size)), unique=True)):
            batch[i] = data.draw(st.sampled_from([0.125, 0.25, 0.5, 2.0]))
            added.append((i, params({"temperature": batch[i]}), [0], []))
        moved = []
        for a, b in data.draw(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)).filter(lambda t: t[0] != t[1]))):
            how = data.draw(st.sampled_from(MoveDirectionality))
            batch[a], batch[b] = (batch[b] if how == MoveDirectionality.SWAP else 0.0), batch[a]
            moved.append((a, b, how))
        p.update_state(update(size, removed, added, moved))
        assert p.apply(torch.ones(size, 3))[:, 0].tolist() == [1 / t if t else 1.0 for t in batch]


# Validation of requests


def test_phase_args_takes_mappings_and_objects() -> None:
    ours = adagrpo_ray.SamplingParams(temperature=0.5, top_k=3)
    expected = {"temperature": 0.5, "top_p": 1.0, "top_k": 3, "min_p": 0.0, "repetition_penalty": 1.0}
    assert phase_args((1, 2), {"top_p": 0.9}, ours) == {
        "phases": {"marker": [1, 2], "thought": {"top_p": 0.9}, "answer": expected}
    }
    assert phase_args([1], PhaseParams(), SamplingParams(temperature=0.5, top_k=3))["phases"]["answer"] == expected
    assert PhaseParams().model_dump().items() <= adagrpo_ray.SamplingParams().model_dump().items()


GOOD: dict[str, Any] = {"marker": [1], "thought": {}, "answer": {}}


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        (GOOD | {"marker": []}, r"phases\.marker=\[\] .* at least one"),
        (GOOD | {"marker": ""}, r"phases\.marker='' must be a text, or a list of at least one token id"),
        (GOOD | {"marker": ["</think>"]}, r"phases\.marker=\['</think>'\]"),
        (GOOD | {"marker": [-1]}, r"phases\.marker=\[-1\]"),
        (GOOD | {"end": 1}, "must have marker, thought and answer"),
        ({"marker": [1], "thought": {}}, "must have marker, thought and answer"),
        (GOOD | {"thought": 3}, r"phases\.thought=3 is not a mapping"),
        (GOOD | {"thought": {"temprature": 1}}, r"phases\.thought\.temprature=1 is not known; use temperature"),
        (
            GOOD | {"thought": {"temperature": -1}},
            r"phases\.thought\.temperature=-1: input should be greater than or equal to 0",
        ),
        (GOOD | {"thought": {"temperature": math.nan}}, r"phases\.thought\.temperature=nan"),
        (GOOD | {"answer": {"temperature": True}}, r"phases\.answer\.temperature=True"),
        (GOOD | {"answer": {"top_p": 0.0}}, r"phases\.answer\.top_p=0\.0"),
        (GOOD | {"answer": {"top_k": 1.5}}, r"phases\.answer\.top_k=1\.5"),
        (GOOD | {"answer": {"top_k": -2}}, r"phases\.answer\.top_k=-2"),
        (GOOD | {"answer": {"min_p": 1.1}}, r"phases\.answer\.min_p=1\.1"),
        (GOOD | {"answer": {"repetition_penalty": 0}}, r"phases\.answer\.repetition_penalty=0"),
    ],
)
def test_invalid_phases_are_named(phases: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PhaseLogitsProcessor.validate_params(SamplingParams(extra_args={"phases": phases}))


@pytest.mark.parametrize(
    "beside",
    [
        {"temperature": 0.7},
        {"temperature": 0.0},
        {"top_p": 0.9},
        {"top_k": 5},
        {"min_p": 0.1},
        {"repetition_penalty": 1.2},
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
    ],
)
def test_other_parameters_together_with_phases_are_refused(beside: dict[str, float]) -> None:
    (key,) = beside
    with pytest.raises(ValueError, match=rf"{key}=.* together with extra_args\['phases'\]; leave it at"):
        PhaseLogitsProcessor.validate_params(SamplingParams(**beside, extra_args={"phases": GOOD}))
    PhaseLogitsProcessor.validate_params(SamplingParams(**beside))
    PhaseLogitsProcessor.validate_params(SamplingParams(top_k=-1, extra_args={"phases": GOOD}))


# On the real engine


@pytest.fixture(scope="module")
def prompts(model_path: str) -> list[dict[str, Any]]:
    return [
        {"prompt_token_ids": p.token_ids.tolist()}
        for p in load_prompts(CONFIG, load_tokenizer(model_path, CONFIG.model, CONFIG.data)).train
    ]


@pytest.fixture(scope="module")
def llm(model_path: str) -> Iterator[LLM]:
    for_two_cores: dict[str, Any] = {
        "max_model_len": 256,
        "max_num_seqs": 64,
        "dtype": "float32",
        "enforce_eager": True,
        "kv_cache_memory_bytes": 2**28,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": 8192,
    }
    with pytest.MonkeyPatch.context() as patch:
        # One thread is enough for so small a model, and threads that wait for one another stall on a shared machine.
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        llm = LLM(
            model_path, logits_processors=[PhaseLogitsProcessor], logprobs_mode="processed_logprobs", **for_two_cores
        )
    yield llm
    llm.llm_engine.engine_core.shutdown()


def test_the_example_of_the_docstring_runs(llm: LLM, prompts: list[dict[str, Any]]) -> None:
    phases = phase_args("</think>", thought={"temperature": 1.2, "min_p": 0.02}, answer={"temperature": 0.0})
    outputs = llm.generate(prompts, SamplingParams(max_tokens=128, logprobs=0, extra_args=phases), use_tqdm=False)
    assert len(outputs) == len(prompts)
    assert any("</think>" in o.outputs[0].text or "SOLUTION" in o.outputs[0].text for o in outputs)


@pytest.mark.parametrize("as_text", [True, False])
def test_a_hot_thought_is_followed_by_a_greedy_answer(llm: LLM, prompts: list[dict[str, Any]], as_text: bool) -> None:
    marker = llm.get_tokenizer().encode("</think>", add_special_tokens=False)
    request = ask(phase_args("</think>" if as_text else marker, {"temperature": 2.0}, {"temperature": 0.0}))
    outputs = llm.generate(prompts[:8], request, use_tqdm=False)
    thoughts, answers, starts = [], [], []
    for prompt, output in ((p, o) for p, out in zip(prompts, outputs, strict=False) for o in out.outputs):
        ids = list(output.token_ids)
        end = ids.index(marker[0]) + 1 if marker[0] in ids else len(ids)
        assert all(logprob < -1e-3 for logprob in sampled(output)[:end][:5])
        if end < len(ids):
            assert sampled(output)[end:] == [0.0] * (len(ids) - end)
            thoughts.append(tuple(ids[:end]))
            answers.append(ids[end:])
            starts.append({"prompt_token_ids": prompt["prompt_token_ids"] + ids[:end]})
    assert len(answers) >= 8, "too few completions reach the answer for this test to show anything"
    assert len(set(thoughts)) >= 8  # all prompts have one seed, so that two of them may draw the same
    limits = [ask(n=1, temperature=0.0, max_tokens=len(answer)) for answer in answers]
    greedy = llm.generate(starts, limits, use_tqdm=False)
    assert [list(o.outputs[0].token_ids) for o in greedy] == answers


def test_phases_do_not_change_other_requests_of_the_batch(llm: LLM, prompts: list[dict[str, Any]]) -> None:
    plain = [ask(seed=7), ask(seed=8, temperature=0.7, top_p=0.9), ask(seed=9, top_k=4, repetition_penalty=1.2)]
    alone = llm.generate(prompts[:3], plain, use_tqdm=False)
    phases = ask(phase_args([101], {"temperature": 2.0, "top_p": 0.8}, {"repetition_penalty": 1.5}))
    order = [phases, plain[0], phases, plain[1], plain[2], phases]
    mixed = llm.generate([prompts[i] for i in (5, 0, 6, 1, 2, 7)], order, use_tqdm=False)
    for before, after in zip(alone, (mixed[1], mixed[3], mixed[4]), strict=True):
        for a, b in zip(before.outputs, after.outputs, strict=True):
            assert a.token_ids == b.token_ids
            assert sampled(a) == pytest.approx(sampled(b), abs=1e-4)


@pytest.mark.parametrize("marker_text", ["</think>", "</think>SOLUTION_START_FLAG"])
def test_logprobs_are_those_of_the_phase(
    llm: LLM, model_path: str, prompts: list[dict[str, Any]], marker_text: str
) -> None:
    marker = llm.get_tokenizer().encode(marker_text, add_special_tokens=False)
    thought = PhaseParams(temperature=1.3, top_p=0.95, top_k=40, min_p=0.001, repetition_penalty=1.05)
    answer = PhaseParams(temperature=0.8, top_k=5, repetition_penalty=1.3)
    outputs = llm.generate(prompts[:8], ask(phase_args(marker, thought, answer)), use_tqdm=False)
    policy = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    answered = 0
    for prompt, output in ((out.prompt_token_ids, o) for out in outputs for o in out.outputs):
        ids = list(output.token_ids)
        with torch.inference_mode():
            logits = policy(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        expected = []
        for at, token in enumerate(ids):
            seen = any(ids[i : i + len(marker)] == marker for i in range(at - len(marker) + 1))
            answered += seen
            row = by_transformers(answer if seen else thought, prompt + ids[:at], logits[at])
            expected.append(row.log_softmax(dim=0)[token].item())
        assert sampled(output) == pytest.approx(expected, abs=1e-4)
    assert answered > 100


def test_equal_phases_are_vllms_own_sampling(llm: LLM, prompts: list[dict[str, Any]]) -> None:
    for seed, values in enumerate(SAMPLINGS):
        for a, b in with_and_without_phases(llm, prompts[:4], values, seed):
            assert a.token_ids == b.token_ids
            assert sampled(a) == pytest.approx(sampled(b), abs=1e-4)


def test_the_engine_refuses_invalid_phases(llm: LLM, prompts: list[dict[str, Any]]) -> None:
    with pytest.raises(VLLMValidationError, match=r"temperature=0\.5 together with extra_args\['phases'\]"):
        llm.generate(prompts[:1], ask(phase_args([101], {}, {}), temperature=0.5), use_tqdm=False)
    assert len(llm.generate(prompts[:1], ask(), use_tqdm=False)[0].outputs) == 8, "the engine still serves"
