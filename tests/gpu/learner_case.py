"""One measurement of the learner alone, on random weights: time and memory of updates, and their numbers."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from adagrpo_ray.config import Config
from adagrpo_ray.config.learner import Packing
from adagrpo_ray.learner.engine import LearnerEngine
from adagrpo_ray.learner.layout import LAYOUTS
from adagrpo_ray.learner.packing import pack_batches
from adagrpo_ray.model.kernels import kernels_here
from adagrpo_ray.model.shape import Shape, shape_of
from adagrpo_ray.training.estimate import learner_memory
from adagrpo_ray.types import TrainSample
from tests.support.places import TINY
from tests.support.row_sizes import sizes_of

SIZES: Mapping[str, Mapping[str, int]] = {
    "qwen3-1.7b": {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    },
}
GROUP = 4
ROUNDS = 3
"""Updates that are timed, after one that is not."""


@dataclass(frozen=True)
class Case:
    """Settings of the learner, and the samples: a group of one prompt, or one sample of all tokens."""

    packing: Packing
    dtype: str
    checkpointing: bool
    group: bool = True

    def __str__(self) -> str:
        samples = "group" if self.group else "one"
        return f"{self.packing:6} {self.dtype:8} {samples:5} {'checkpointed' if self.checkpointing else ''}".rstrip()


@dataclass(frozen=True)
class Found:
    """The result of a case.

    - `logprobs`: of all completion tokens before the first update. `loss`, `grad_norm`: of the first update.
    - `seconds`: median of an update; None if none was timed.
    - `tokens`: of the model's input, without padding; `computed`: with it.
    - `flops`: of an update, without those that checkpointing repeats.
    - `peak`, `estimated`: bytes of the device; None without CUDA.
    """

    logprobs: list[float]
    loss: float
    grad_norm: float
    seconds: float | None
    tokens: int
    computed: int
    flops: float
    peak: int | None
    estimated: int


def write_model(folder: Path, size: str, layers: int | None) -> None:
    """Write a Qwen3 of random weights in bfloat16, from which every type of weights is loaded."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    sizes = {**SIZES[size], **({"num_hidden_layers": layers} if layers else {})}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen3ForCausalLM._from_config(
            Qwen3Config(**sizes, tie_word_embeddings=True, pad_token_id=0), dtype=torch.bfloat16
        )
    model.to("cpu").save_pretrained(folder)


def make_samples(tokens: int, vocabulary: int, *, group: bool) -> list[TrainSample]:
    """Samples whose padded rows have `tokens` tokens together; those of a group have different lengths."""
    draw = np.random.default_rng(0)
    width = tokens // GROUP if group else tokens
    prompt = draw.integers(0, vocabulary, width // 4).astype(np.int32)
    lengths = [width - len(prompt) - number * (width // 16) for number in range(GROUP if group else 1)]
    return [
        TrainSample(
            prompt_token_ids=prompt,
            token_ids=draw.integers(0, vocabulary, length).astype(np.int32),
            behaviour_logprobs=np.full(length, -math.log(vocabulary), np.float32),
            token_weights=np.full(length, 1 / sum(lengths), np.float32),
            advantage=1.0 + float(draw.random()),
        )
        for length in lengths
    ]


def update_flops(shape: Shape, samples: Sequence[TrainSample], adapter: int, *, shared: bool) -> tuple[int, float]:
    """Tokens of the model's input, and the FLOPs of an update on them (PaLM, appendix B, for frozen weights).

    A frozen matrix has two products for each token, one in each direction (no gradient of its own), a trained one
    three, and causal attention sees half of all pairs. The head computes completion tokens only.
    """
    prompt, lengths = len(samples[0].prompt_token_ids), [len(sample.token_ids) for sample in samples]
    copies = 1 if shared else len(samples)
    tokens = copies * prompt + sum(lengths)
    pairs = copies * prompt**2 + sum((prompt + length) ** 2 - prompt**2 for length in lengths)
    linear = shape.layers * sum(i * o for i, o in shape.linear.values())
    matrices = 4 * tokens * linear + 6 * tokens * adapter + 4 * sum(lengths) * shape.vocabulary * shape.hidden
    return tokens, matrices + 6 * pairs * shape.layers * shape.heads * shape.head_dim


def measure(case: Case, folder: Path, tokens: int, rounds: int = ROUNDS) -> Found:
    """Run updates of a case on the model in `folder`. Raises torch.OutOfMemoryError if it does not fit."""
    from transformers import AutoConfig

    shape = shape_of(AutoConfig.from_pretrained(folder))
    samples = make_samples(tokens, shape.vocabulary, group=case.group)
    longest = max(len(sample.token_ids) for sample in samples)
    config = Config.load(
        TINY,
        {
            "model.path": str(folder),
            "model.dtype": case.dtype,
            "learner.packing": case.packing,
            "learner.gradient_checkpointing": case.checkpointing,
            "learner.micro_batch_tokens": tokens,
            "learner.learning_rate": 1e-5,
            "algorithm.num_iterations": 1,
            "algorithm.num_mini_batches": 1,
            "rollout.max_new_tokens": longest,
            "rollout.max_model_len": len(samples[0].prompt_token_ids) + longest,
            "run.steps": 1 + ROUNDS,
        },
    )
    cuda = torch.cuda.is_available()
    before = _reset() if cuda else 0
    try:
        engine = LearnerEngine(str(folder), config, 0, 1, ("127.0.0.1", 0))
        (batch,) = pack_batches(1, samples, 1, tokens, engine.packing)
        assert len(batch.micro_batches) == 1
        logprobs = engine.logprobs(tuple(samples))
        first, seconds = engine.train(batch).first, list[float]()
        for step in range(2, 2 + rounds):
            began = time.perf_counter()
            engine.train(replace(batch, step=step))
            if cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        peak = torch.cuda.max_memory_allocated() - before if cuda else None
    finally:
        engine = None  # type: ignore[assignment]
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()
    if first is None:
        raise RuntimeError(f"{case}: the first update was skipped")
    adapter = shape.adapter_parameters(config.model.lora.r, config.model.lora.targets)
    used, flops = update_flops(shape, samples, adapter, shared=case.packing == "shared")
    sizes = sizes_of(LAYOUTS[case.packing](batch.micro_batches[0], torch.device("cpu")))
    kernels = kernels_here(config, shape.model_type)
    parts = learner_memory(shape, config, gpu=cuda, kernels=kernels, batch=sizes).parts
    return Found(
        logprobs=np.concatenate(logprobs).tolist(),
        loss=first.statistics.loss,
        grad_norm=first.grad_norm,
        seconds=statistics.median(seconds) if seconds else None,
        tokens=used,
        computed=sizes.tokens,
        flops=flops,
        peak=peak,
        estimated=sum(size for name, size in parts.items() if name != "process"),
    )


def _reset() -> int:
    """Bytes that are allocated now, from which the peak is counted."""
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def matmul_speed(dtype: str, size: int = 8192) -> float:
    """FLOPs a second of large matrix products on this device, the reference of the utilisation of the learner."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    one = torch.randn(size, size, dtype=getattr(torch, dtype), device=device)
    seconds = []
    for _ in range(6):
        began = time.perf_counter()
        one @ one
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(seconds[1:])
