"""Checks once, before the first step, that the learner's log-probabilities are those of the model itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adagrpo_ray.config.learner import Packing
from adagrpo_ray.config.tree import Config
from adagrpo_ray.errors import ModelError, first_line
from adagrpo_ray.learner.layout import LAYOUTS, Rows
from adagrpo_ray.model.attention import use_sdpa
from adagrpo_ray.model.shared_attention import TOGETHER
from adagrpo_ray.types import TrainSample

LENGTHS = ((3, (12,)), (7, (5, 9, 2)), (1, (16,)), (TOGETHER, (4, 2)))
"""Lengths in tokens of the prompts and of their completions. They differ, so that rows are padded, and a row of shared
prompts has both short groups and a long one."""
BOUNDS = {"float32": 1e-3, "bfloat16": 0.1}
"""The largest mean difference over the tokens, in nats, that rounding explains, by the type of the weights.

SmolLM2-135M has 1.7e-5 in float32 and 0.012 in bfloat16 (rows padded or packed, random tokens or text), so the bounds
leave room for larger models. A missing scale or cap of the logits makes a difference of whole nats.
"""


def agreed_packing(model: Any, logprobs: Callable[[Rows], torch.Tensor], chosen: Packing, config: Config) -> Packing:
    """Return a packing with which the log-probabilities are those of the model itself.

    It is `chosen`, the packing that `use_packing` set. If log-probabilities do not agree with that and
    `learner.packing` is null, it is "padded". The other arguments are those of `check_agreement`. Raises ModelError if
    they do not agree.
    """
    try:
        check_agreement(model, logprobs, chosen, config)
    except ModelError:
        if chosen == "padded" or config.learner.packing is not None:
            raise
        use_sdpa(model, config.model)
        check_agreement(model, logprobs, "padded", config)
        return "padded"
    return chosen


@torch.no_grad()
def check_agreement(model: Any, logprobs: Callable[[Rows], torch.Tensor], packing: Packing, config: Config) -> None:
    """Raise ModelError unless `logprobs` agrees with the model's own logits on some short sequences.

    `model` is the causal language model with its adapter, on its device and in eval mode. `logprobs` is the policy as
    the learner calls it, with rows of `packing`. Under ZeRO-3 all ranks call this together.
    """
    name = f"model.path={config.model.path!r} ({model.config.model_type})"
    remedy = "use another model" if packing == "padded" else "set learner.packing=padded"
    device = next(parameter.device for parameter in model.parameters())
    try:
        samples = _samples(model.config.get_text_config().vocab_size)
        own = torch.cat([_own(model, sample, device) for sample in samples])
        ours = logprobs(LAYOUTS[packing](samples, device))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a model that needs more than token ids may raise any error
        raise ModelError(
            f"{name}: the learner cannot compute log-probabilities with it ({first_line(error)}); {remedy}"
        ) from error
    if not bool(own.isfinite().all()):
        raise ModelError(
            f"{name} computes logits that are not finite with model.dtype={config.model.dtype}; copy its weights "
            "again, or use another model.dtype"
        )
    difference, allowed = float((ours - own).abs().mean()), BOUNDS[config.model.dtype]
    if not difference <= allowed:
        raise ModelError(
            f"{name}: the learner's log-probabilities differ from the model's own by {difference:.3g} nats on average, "
            f"but rounding to {config.model.dtype} explains only {allowed:g}; {remedy}"
        )


def _samples(vocabulary: int) -> tuple[TrainSample, ...]:
    """Random sequences from the first half of the vocabulary; tokens of images and the like are at its end."""
    draw = np.random.default_rng(0)
    samples = []

    def tokens(number: int) -> NDArray[np.int32]:
        return draw.integers(0, max(1, vocabulary // 2), number, dtype=np.int32)

    for length, completions in LENGTHS:
        prompt = tokens(length)
        for completion in completions:
            zeros = np.zeros(completion, np.float32)
            samples.append(TrainSample(prompt, tokens(completion), zeros, zeros, 0.0))
    return tuple(samples)


def _own(model: Any, sample: TrainSample, device: torch.device) -> torch.Tensor:
    """Log-probabilities [T] of the completion from the model's own logits, with the sequence alone in its row."""
    start = len(sample.prompt_token_ids)
    tokens = torch.from_numpy(np.concatenate([sample.prompt_token_ids, sample.token_ids])).long().to(device)
    logits: torch.Tensor = model(input_ids=tokens[None], use_cache=False).logits[0, start - 1 : -1].float()
    return logits.log_softmax(-1).gather(-1, tokens[start:, None]).squeeze(-1)
