"""The phases on a GPU, with vLLM's second model runner; skipped if there is no CUDA device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from adagrpo_ray.config import Config
from adagrpo_ray.data.prompts import load_prompts
from adagrpo_ray.model.pretrained import load_tokenizer
from tests.support.phase_requests import SAMPLINGS, ask, sampled, with_and_without_phases

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.timeout(900),
]

CONFIG = Config.load("launch/configs/tiny-cpu.yaml", ["data.train_prompts=16", "data.eval_prompts=0"])


@pytest.fixture(scope="module")
def prompts(model_path: str) -> list[dict[str, Any]]:
    found = load_prompts(CONFIG, load_tokenizer(model_path, CONFIG.model, CONFIG.data)).train
    return [{"prompt_token_ids": prompt.token_ids.tolist()} for prompt in found]


@pytest.fixture(scope="module", params=[True, False], ids=["eager", "compiled"])
def llm(model_path: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    from vllm import LLM

    from adagrpo_ray.rollout.device_phases import DevicePhaseProcessor

    llm = LLM(
        model_path,
        logits_processors=[DevicePhaseProcessor],
        logprobs_mode="processed_logprobs",
        max_model_len=256,
        max_num_seqs=64,
        dtype="bfloat16",
        enforce_eager=request.param,
        gpu_memory_utilization=0.3,
    )
    yield llm
    llm.llm_engine.engine_core.shutdown()


def test_the_second_model_runner_runs(llm: Any) -> None:
    assert llm.llm_engine.vllm_config.use_v2_model_runner


@pytest.mark.parametrize("as_text", [True, False])
def test_a_hot_thought_is_followed_by_a_greedy_answer(llm: Any, prompts: list[dict[str, Any]], as_text: bool) -> None:
    from adagrpo_ray.rollout.phases import phase_args

    marker = llm.get_tokenizer().encode("</think>", add_special_tokens=False)
    request = ask(phase_args("</think>" if as_text else marker, {"temperature": 2.0}, {"temperature": 0.0}))
    answered = 0
    for output in (o for out in llm.generate(prompts[:8], request, use_tqdm=False) for o in out.outputs):
        ids = list(output.token_ids)
        end = ids.index(marker[0]) + 1 if marker[0] in ids else len(ids)
        assert all(logprob < -1e-3 for logprob in sampled(output)[:end][:5])
        assert sampled(output)[end:] == [0.0] * (len(ids) - end)
        answered += end < len(ids)
    assert answered >= 8, "too few completions reach the answer for this test to show anything"


def test_equal_phases_are_vllms_own_sampling(llm: Any, prompts: list[dict[str, Any]]) -> None:
    for seed, values in enumerate(SAMPLINGS):
        pairs = with_and_without_phases(llm, prompts[:4], values, seed)
        same = [(a, b) for a, b in pairs if a.token_ids == b.token_ids]
        assert len(same) >= 0.9 * len(pairs), "kernels may round a probability at the edge of a filter differently"
        for a, b in same:
            assert sampled(a) == pytest.approx(sampled(b), abs=1e-3)
