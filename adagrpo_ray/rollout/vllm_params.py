"""The sampling parameters of a request in vLLM's form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adagrpo_ray.types import GenerationRequest, SamplingParams


def vllm_params(request: GenerationRequest, stops: Sequence[int], think_end: str, **output: Any) -> Any:
    """vLLM's SamplingParams of a request.

    - `stops`: the tokens that end a completion; vLLM also stops at those that generation_config.json names.
    - `think_end`: the marker after which `request.sampling.answer` applies.
    - `output`: parameters of vLLM that select the parts of its output.
    """
    from vllm import SamplingParams as VllmParams

    from adagrpo_ray.rollout.phases import phase_args

    sampling, answer = request.sampling, request.sampling.answer
    # With phases the request's own parameters stay neutral; the logits processor applies those of the phase.
    own = sampling if answer is None else SamplingParams()
    return VllmParams(
        n=request.n,
        **own.model_dump(exclude={"answer"}),
        seed=request.seed,
        max_tokens=request.max_new_tokens,
        stop_token_ids=stops,
        extra_args=None if answer is None else phase_args(think_end, sampling, answer),
        **output,
    )
