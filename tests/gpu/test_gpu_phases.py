"""The phases on a GPU, with vLLM's second model runner; skipped if there is no CUDA device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from adagrpo_ray.config import Config
from adagrpo_ray.data.prompts import load_prompts
from adagrpo_ray.model.pretrained import load_tokenizer

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


def ask(extra_args: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    from vllm import SamplingParams

    return SamplingParams(**{"max_tokens": 96, "logprobs": 0, "n": 8, "seed": 1, "extra_args": extra_args, **kwargs})


def sampled(output: Any) -> list[float]:
    """Log-probability of each token of a completion."""
    return [at[token].logprob for token, at in zip(output.token_ids, output.logprobs, strict=True)]


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
    from adagrpo_ray.rollout.phases import phase_args

    for seed, values in enumerate(
        [
            {"temperature": 0.7},
            {"temperature": 1.5, "top_p": 0.9},
            {"top_k": 6, "min_p": 0.05},
            {"temperature": 1.2, "top_p": 0.95, "top_k": 30, "min_p": 0.01, "repetition_penalty": 1.2},
        ]
    ):
        ours = llm.generate(prompts[:4], ask(phase_args([101], values, values), seed=seed), use_tqdm=False)
        own = llm.generate(prompts[:4], ask(seed=seed, **values), use_tqdm=False)
        pairs = [(a, b) for x, y in zip(ours, own, strict=True) for a, b in zip(x.outputs, y.outputs, strict=True)]
        same = [(a, b) for a, b in pairs if a.token_ids == b.token_ids]
        assert len(same) >= 0.9 * len(pairs), "kernels may round a probability at the edge of a filter differently"
        for a, b in same:
            assert sampled(a) == pytest.approx(sampled(b), abs=1e-3)
