"""Estimates the memory of a learner rank and of a rollout actor, from the shape of the model and the settings.

The estimate leaves out small parts: norms, biases, vLLM's slots for adapters, and the workspaces of CUDA libraries.
"""

from __future__ import annotations

from dataclasses import dataclass

from adagrpo_ray.cluster.device_memory import DeviceMemory
from adagrpo_ray.config.learner import Packing
from adagrpo_ray.config.tree import Config
from adagrpo_ray.learner.activations import MicroBatch, layer_bytes, shared_bytes, transient_bytes
from adagrpo_ray.learner.buffers import chunk_tokens, logit_bytes, reduce_bucket
from adagrpo_ray.model.kernels import NO_KERNELS, Kernels
from adagrpo_ray.model.shape import Shape

SIZES = {"float32": 4, "bfloat16": 2}  # bytes a number
MAX_LIVE_PARAMETERS = 1_000_000_000  # gathered at a time at stage 3: DeepSpeed's own default
GIB = 2**30
PROCESS = GIB  # a process on CPUs apart from its tensors: libraries and communicators
CONTEXT = 6 * GIB // 10  # a learner's CUDA context, with the kernels of its libraries: an assumption, too
FRAGMENTATION = GIB  # of the memory of torch's allocator in the learner, at most: an assumption, not a measurement
ENGINE = GIB  # vLLM's CUDA context, its largest activations and its CUDA graphs; it keeps them while it sleeps


@dataclass(frozen=True)
class LearnerMemory:
    """Bytes of one learner rank.

    - `optimizer`: the adapter, its gradient and their float32 sum, float32 copy and Adam moments, and DeepSpeed's
      buffer.
    - `offloaded`: host memory of an offloaded optimizer: the copy, the moments, a gradient and a buffer.
    - `kept`: activations of all layers from the forward pass to the backward pass; with gradient checkpointing only
      the inputs of the layers.
    - `layer`: activations of the one layer that gradient checkpointing computes again; 0 without it.
    - `transients`: tensors that exist for a short time while a layer computes.
    - `logits`: a chunk of logits in its backward pass, with the hidden states that it needs.
    - `process`: apart from tensors, with the fragmentation of a GPU's memory.
    """

    weights: int
    optimizer: int
    offloaded: int
    kept: int
    layer: int
    transients: int
    logits: int
    process: int

    @property
    def parts(self) -> dict[str, int]:
        """The parts that exist together in the worst moment: that of a layer, or that of a chunk of logits."""
        kept = {"weights": self.weights, "adapter and optimizer": self.optimizer}
        kept |= {"inputs of layers" if self.layer else "activations": self.kept}
        in_layer = {"one layer": self.layer} if self.layer else {}
        in_layer |= {"its transients" if self.layer else "transients": self.transients}
        worst = {"logits": self.logits} if self.logits > sum(in_layer.values()) else in_layer
        return kept | worst | {"process": self.process}

    @property
    def peak(self) -> int:
        """Bytes in the worst moment of an update."""
        return sum(self.parts.values())

    @property
    def idle(self) -> int:
        """Bytes between two updates."""
        return self.weights + self.optimizer + self.process


@dataclass(frozen=True)
class RolloutMemory:
    """Bytes of one GPU of a rollout actor, or of the whole actor if there are no GPUs.

    - `weights`: the base model in the engine.
    - `kv_cache`: None if it is a share of an unknown memory.
    - `kv_token`: bytes of one token in the KV cache.
    - `process`: apart from both.
    """

    weights: int
    kv_cache: int | None
    kv_token: int
    process: int

    @property
    def parts(self) -> dict[str, int]:
        """The parts, as far as they are known."""
        cache = {} if self.kv_cache is None else {"KV cache": self.kv_cache}
        return {"weights": self.weights, "process": self.process} | cache

    @property
    def peak(self) -> int:
        """Bytes while it generates."""
        return sum(self.parts.values())

    @property
    def asleep(self) -> int:
        """Bytes while it sleeps."""
        return self.process


def longest(config: Config) -> int:
    """Tokens of the longest sequence or, if the prompts determine it, of its completion or episode only."""
    return config.rollout.max_model_len or config.environment.longest(config.rollout.max_new_tokens)


def largest_batch(config: Config, packing: Packing, kernels: Kernels) -> MicroBatch:
    """Return the largest micro-batch that the settings allow.

    A sample that is longer than `learner.micro_batch_tokens` is a micro-batch of its own. A packed row has a mask of
    all of its pairs, unless a kernel knows the bounds of its samples. With shared prompts each completion has one with
    its prompt. Assumed are prompts that are copied for twice as many tokens as the completions have, and completions
    that are padded to twice their length. With lengths that differ more than that, the memory may be larger.
    """
    budget, sample = config.learner.micro_batch_tokens, longest(config)
    tokens = max(budget, sample)
    if packing == "shared":
        return MicroBatch(tokens, tokens * sample, copied=2 * tokens, padding=tokens)
    masked = packing == "packed" and not (kernels.flash or kernels.flex)
    return MicroBatch(tokens, budget**2 if masked else 0)


def learner_memory(
    shape: Shape,
    config: Config,
    *,
    gpu: bool = True,
    kernels: Kernels = NO_KERNELS,
    batch: MicroBatch | None = None,
) -> LearnerMemory:
    """Estimate the memory of one learner rank on a `gpu` or on CPUs; `kernels` are those that the GPU runs.

    `batch` is the largest micro-batch; None: the largest one that the settings allow. Raises ModelError for an unknown
    LoRA target.
    """
    s, lora = config.learner, config.model.lora
    size, stage = SIZES[config.model.dtype], s.zero_stage
    adapter = shape.adapter_parameters(lora.r, lora.targets)
    kernels = kernels if gpu else NO_KERNELS
    packing = s.packing_with(kernels.flash)
    batch = batch or largest_batch(config, packing, kernels)

    def part(whole: int, from_stage: int) -> int:
        """The part of `whole` on one rank; the ranks divide it from this ZeRO stage on."""
        return whole // s.ranks if stage >= from_stage else whole

    gathered = min(shape.parameters, MAX_LIVE_PARAMETERS) if stage == 3 else 0  # for the current layers
    # Stage 0 steps on float32 weights themselves, all other cases on a float32 copy. Adam has two moments.
    master = 0 if stage == 0 and size == 4 else 4
    optimizer = part(adapter * size, 3) + adapter * (size + 4)  # a gradient and its float32 sum are whole on each rank
    optimizer += reduce_bucket(adapter) * size if stage > 0 else 0
    optimizer += 0 if s.offload_optimizer else part(adapter * (master + 8), 1)
    offloaded = part(adapter * (master + 4 + 8 + size), 1) if s.offload_optimizer else 0
    hidden = batch.tokens * shape.hidden
    # Without a mask, torch groups the heads of queries on CPUs, and on a GPU in 16 bits (`model/wide_attention.py`).
    grouped = {"padded": not (gpu and size == 4), "packed": kernels.flash or kernels.flex, "shared": False}[packing]
    a_token = layer_bytes(
        shape,
        size,
        dropped=lora.targets if lora.dropout > 0 else (),
        divided=stage == 3,
        repeated=not grouped,
        liger=s.liger_kernels and kernels.liger,
    )
    # A layer converts a mask to numbers that it adds.
    layer = batch.tokens * a_token + batch.pairs * size
    layer += shared_bytes(shape, size, batch) if packing == "shared" else 0
    # A chunk of logits is computed while the last norm's input, in float32, and its output exist, and the gradient of
    # the latter. Later only the output is left, and a gradient of the same size enters the layers.
    chunk = min(batch.tokens, chunk_tokens(shape.vocabulary))
    entropy = config.algorithm.loss.entropy_coef > 0
    logits = chunk * logit_bytes(shape.vocabulary, entropy_gradient=entropy) + hidden * (4 + 2 * size)
    transients = batch.tokens * transient_bytes(shape, size, dropped=lora.dropout > 0) + 2 * hidden * size
    return LearnerMemory(
        weights=part(shape.parameters * size, 3) + gathered * size,
        optimizer=optimizer + (0 if gpu else offloaded),  # without a GPU both are in the same memory
        offloaded=offloaded if gpu else 0,
        kept=batch.pairs + shape.layers * (hidden * size if s.gradient_checkpointing else layer),
        layer=layer if s.gradient_checkpointing else 0,
        transients=transients,
        logits=logits,
        process=CONTEXT + FRAGMENTATION if gpu else PROCESS,
    )


def rollout_memory(
    shape: Shape, config: Config, memory: DeviceMemory | None = None, *, gpu: bool = True
) -> RolloutMemory:
    """Estimate the memory of one GPU of a rollout actor; without a `gpu`, of the whole actor."""
    r, size = config.rollout, SIZES[config.model.dtype]
    weights, process = shape.parameters * size // r.tensor_parallel_size, ENGINE if gpu else PROCESS
    # vLLM fills the rest of its share of the memory with KV cache.
    left = None if memory is None else max(0, int(r.gpu_memory_utilization * memory.total) - weights - process)
    return RolloutMemory(
        weights=weights,
        kv_cache=left if r.kv_cache_gib is None else int(r.kv_cache_gib * GIB),
        kv_token=shape.kv_token(size, r.tensor_parallel_size),
        process=process,
    )
