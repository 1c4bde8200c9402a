"""Requests with phases for a vLLM engine, and the same requests without; for tests on CPUs and on GPUs."""

from __future__ import annotations

from typing import Any

SAMPLINGS: tuple[dict[str, float], ...] = (
    {"temperature": 0.7},
    {"temperature": 1.5, "top_p": 0.9},
    {"top_k": 6, "min_p": 0.05},
    {"temperature": 1.2, "top_p": 0.95, "top_k": 30, "min_p": 0.01, "repetition_penalty": 1.2},
)
"""Sampling parameters that phases and vLLM itself have."""


def ask(extra_args: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    """vLLM's parameters of a request for 8 completions of at most 96 tokens."""
    from vllm import SamplingParams

    return SamplingParams(**{"max_tokens": 96, "logprobs": 0, "n": 8, "seed": 1, "extra_args": extra_args, **kwargs})


def sampled(output: Any) -> list[float]:
    """Log-probability of each token of a completion."""
    return [at[token].logprob for token, at in zip(output.token_ids, output.logprobs, strict=True)]


def with_and_without_phases(
    llm: Any, prompts: list[dict[str, Any]], values: dict[str, float], seed: int
) -> list[tuple[Any, Any]]:
    """Completions with two phases of these values, each with that of a request of the same values without phases."""
    from adagrpo_ray.rollout.phase_request import phase_args

    ours = llm.generate(prompts, ask(phase_args([101], values, values), seed=seed), use_tqdm=False)
    own = llm.generate(prompts, ask(seed=seed, **values), use_tqdm=False)
    return [(a, b) for x, y in zip(ours, own, strict=True) for a, b in zip(x.outputs, y.outputs, strict=True)]
