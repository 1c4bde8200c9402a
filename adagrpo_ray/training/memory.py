"""Estimates the memory of a run before anything starts, from the shape of the model and the settings.

The estimate leaves out small parts: norms, biases, vLLM's slots for adapters, and fragmentation. It sums the other
parts as if all were at their largest at once.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adagrpo_ray.cluster.placement import Hardware, Placement
from adagrpo_ray.config.rollout import RolloutSettings
from adagrpo_ray.config.tree import Config
from adagrpo_ray.errors import ModelError, ResourceError
from adagrpo_ray.learner.buffers import REDUCE_BUCKET, chunk_tokens
from adagrpo_ray.model.gguf_file import find_gguf, is_gguf
from adagrpo_ray.model.gguf_header import read_header
from adagrpo_ray.model.gguf_model import gguf_config
from adagrpo_ray.model.pretrained import TINY, flash_attention

SIZES = {"float32": 4, "bfloat16": 2}  # bytes a number
# The backward pass of logsumexp keeps the logits, their difference to the result, its exponential, and the gradient.
LOGITS_COPIES = 4
ENTROPY_COPIES = 2  # additional ones with an entropy bonus: its own gradient by the logits, and the sum of both
MAX_LIVE_PARAMETERS = 1_000_000_000  # gathered at a time at stage 3: DeepSpeed's own default
PROCESS = 2**30  # bytes of one process apart from its tensors: libraries, a CUDA context, the communicators


@dataclass(frozen=True)
class Shape:
    """The sizes of a dense decoder with gated MLPs."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool  # whether input and output embeddings are one matrix

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of the linear layers of one decoder layer, by name."""
        h, q, kv, m = self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim, self.intermediate
        attention = {"q_proj": (h, q), "k_proj": (h, kv), "v_proj": (h, kv), "o_proj": (q, h)}
        return attention | {"gate_proj": (h, m), "up_proj": (h, m), "down_proj": (m, h)}

    @property
    def parameters(self) -> int:
        """Parameters of the base model: its linear layers and its embeddings."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return embeddings + self.layers * sum(i * o for i, o in self.linear.values())

    def adapter_parameters(self, r: int, targets: tuple[str, ...]) -> int:
        """Parameters of a LoRA adapter: A is [r x inputs], B [outputs x r]. Raises ModelError for an unknown target."""
        unknown = sorted(set(targets) - set(self.linear))
        if unknown:
            raise ModelError(f"the shape of model.lora.targets {unknown[0]!r} is not known")
        return self.layers * r * sum(sum(self.linear[target]) for target in set(targets))

    def kv_token(self, size: int, tensor_parallel: int) -> int:
        """Bytes of a token in one GPU's KV cache: key and value of its heads, at least one; `size` bytes a number."""
        return 2 * self.layers * max(1, self.kv_heads // tensor_parallel) * self.head_dim * size

    def layer_activations(self, size: int, dropped: tuple[str, ...]) -> int:
        """Bytes a token that one layer keeps for its backward pass; `dropped` are the targets with LoRA dropout.

        - Inputs: frozen weights do not need them, but LoRA's A does. Projections of one input share it, unless each
          has its own dropout, which keeps a mask of one byte a value.
        - Attention: query, key and value (both repeated for all heads), and output.
        - MLP: gate, its activation, and up.
        - Norms: the hidden states, queries and keys that are their inputs, in float32.
        """
        h, q, kv, m = self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim, self.intermediate
        inputs = sum(self.linear[name][0] for name in dropped) * (size + 1) if dropped else (2 * h + q + m) * size
        return inputs + (4 * q + 3 * m) * size + (2 * h + q + kv) * 4

    def shared_attention(self, size: int) -> int:
        """Additional bytes a token that attention keeps if prompts are shared (`model/shared_attention.py`).

        Queries are kept twice. Keys and values of prompts are kept for twice as many tokens as the completions have.
        Query, key, value and output of a completion are padded to twice its length. If lengths differ more than that,
        the bytes may be more.
        """
        return (1 + 2 * 2 + 4) * self.heads * self.head_dim * size


@dataclass(frozen=True)
class Estimate:
    """Bytes of one learner rank, and of one GPU of a rollout actor (of the whole actor, if there are no GPUs).

    - `learner_weights`, `activations`, `logits`: parts of the learner.
    - `optimizer`: the adapter, its gradient and their float32 sum, float32 copy and Adam moments, and DeepSpeed's
      buffer.
    - `offloaded`: host memory of an offloaded optimizer: the copy, the moments, a gradient and a buffer.
    - `rollout_weights`: the base model in the engine.
    - `kv_cache`: None if it is a share of an unknown memory.
    - `kv_token`: bytes of one token in the KV cache.
    """

    learner_weights: int
    optimizer: int
    offloaded: int
    activations: int
    logits: int
    rollout_weights: int
    kv_cache: int | None
    kv_token: int

    @property
    def learner(self) -> dict[str, int]:
        """The parts of a learner rank, in bytes."""
        state = {"weights": self.learner_weights, "adapter and optimizer": self.optimizer}
        return state | {"activations": self.activations, "logits": self.logits, "process": PROCESS}

    @property
    def rollout(self) -> dict[str, int]:
        """The parts of a rollout GPU, in bytes."""
        cache = {} if self.kv_cache is None else {"KV cache": self.kv_cache}
        return {"weights": self.rollout_weights, "process": PROCESS} | cache


def shape_of(config: Any) -> Shape:
    """The shape in a Hugging Face config. Raises ModelError if a size is missing or it is a mixture of experts."""
    text = config.get_text_config()
    if any((getattr(text, name, 0) or 0) > 1 for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        raise ModelError(f"the shape of a mixture of experts ({text.model_type}) is not known")

    def size(name: str, default: int | None = None) -> int:
        value = getattr(text, name, None) or default
        if value is None:
            raise ModelError(f"the config of {text.model_type} has no {name}")
        return int(value)

    hidden, heads = size("hidden_size"), size("num_attention_heads")
    return Shape(
        hidden=hidden,
        layers=size("num_hidden_layers"),
        intermediate=size("intermediate_size"),
        heads=heads,
        kv_heads=size("num_key_value_heads", heads),
        head_dim=size("head_dim", hidden // heads),
        vocabulary=size("vocab_size"),
        tied=bool(getattr(text, "tie_word_embeddings", False)),
    )


def read_shape(config: Config) -> Shape:
    """Read the shape of `model.path` without the network and without building the model.

    Raises ModelError with the reason if the shape is not known.
    """
    path = config.model.path
    if path == TINY:
        from adagrpo_ray.toy.tiny import tiny_folder

        path = str(tiny_folder(config.arithmetic, config.data.format))
        if not Path(path).is_dir():
            raise ModelError("the tiny model is built on first use")
    if is_gguf(path):
        called = f"model.path={path!r}"
        # From the header only: --dry-run writes nothing.
        return shape_of(gguf_config(read_header(find_gguf(path), called), called))
    from transformers import AutoConfig

    try:
        trusted = config.model.trust_remote_code
        found = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=trusted)
    except Exception as error:  # Transformers may raise any error for an invalid file
        if isinstance(error, OSError) and not os.path.exists(path):
            raise ModelError(f"{path} is not on this machine yet") from None
        raise ModelError(f"{path} has no config.json that can be read") from None
    return shape_of(found)


def estimate(shape: Shape, config: Config, memory: int | None = None, *, flash: bool = False) -> Estimate:
    """Estimate the memory of one learner rank and of one rollout GPU with `memory` bytes.

    `flash`: whether flash-attention runs there. Raises ModelError for an unknown LoRA target.
    """
    s, r, lora = config.learner, config.rollout, config.model.lora
    size, stage = SIZES[config.model.dtype], s.zero_stage
    adapter = shape.adapter_parameters(lora.r, lora.targets)
    budget, longest = s.micro_batch_tokens, _longest(config.rollout)
    tokens = max(budget, longest)  # a sample above the budget is a micro-batch of its own

    def part(whole: int, from_stage: int) -> int:
        """The part of `whole` on one rank; the ranks divide it from this ZeRO stage on."""
        return whole // s.ranks if stage >= from_stage else whole

    gathered = min(shape.parameters, MAX_LIVE_PARAMETERS) if stage == 3 else 0  # for the current layers
    # Stage 0 steps on float32 weights themselves, all other cases on a float32 copy. Adam has two moments.
    master = 0 if stage == 0 and size == 4 else 4
    optimizer = part(adapter * size, 3) + adapter * (size + 4)  # a gradient and its float32 sum are whole on each rank
    optimizer += REDUCE_BUCKET * size if stage > 0 else 0
    optimizer += 0 if s.offload_optimizer else part(adapter * (master + 8), 1)
    # Samples that share a micro-batch need a mask, one byte for each pair of tokens of a row. It exists for two padded
    # rows or more; for the packed row, unless flash-attention runs; and with shared prompts for each completion with
    # its prompt. Each layer converts it to numbers that it adds.
    packing = s.packing_with(flash)
    pairs = {"padded": min(longest, budget // 2), "packed": 0 if flash else budget, "shared": longest}
    mask = budget * pairs[packing]
    layer = tokens * shape.layer_activations(size, lora.targets if lora.dropout > 0 else ()) + mask * size
    if packing == "shared":
        layer += tokens * shape.shared_attention(size)
    # Checkpointing keeps the input of each layer, and everything of the one layer that is computed again.
    kept = tokens * shape.layers * shape.hidden * size + layer if s.gradient_checkpointing else shape.layers * layer
    copies = LOGITS_COPIES + (ENTROPY_COPIES if config.algorithm.loss.entropy_coef > 0 else 0)
    served = shape.parameters * size // r.tensor_parallel_size
    # vLLM fills the rest of its share of the memory with KV cache.
    left = None if memory is None else max(0, int(r.gpu_memory_utilization * memory) - served - PROCESS)
    return Estimate(
        learner_weights=part(shape.parameters * size, 3) + gathered * size,
        optimizer=optimizer,
        offloaded=part(adapter * (master + 4 + 8 + size), 1) if s.offload_optimizer else 0,
        activations=kept + mask,
        logits=min(tokens, chunk_tokens(shape.vocabulary)) * shape.vocabulary * 4 * copies,
        rollout_weights=served,
        kv_cache=left if r.kv_cache_gib is None else int(r.kv_cache_gib * 2**30),
        kv_token=shape.kv_token(size, r.tensor_parallel_size),
    )


def describe(
    shape: Shape, config: Config, placement: Placement, memory: int | None = None, *, flash: bool = False
) -> list[str]:
    """Describe in lines the memory of a learner rank and of a rollout actor and, with `memory`, whether it fits.

    `memory` is in bytes: that of each GPU, or that of the machine if there are no GPUs. Raises ModelError for an
    unknown LoRA target.
    """
    e, longest, on_gpu = estimate(shape, config, memory, flash=flash), _longest(config.rollout), placement.gpus > 0
    if not on_gpu:  # the offloaded optimizer is in the same memory
        e = replace(e, optimizer=e.optimizer + e.offloaded, offloaded=0)
    room = f"in the rest of rollout.gpu_memory_utilization={config.rollout.gpu_memory_utilization:g} of a GPU"
    if e.kv_cache is not None:
        tokens = e.kv_cache // e.kv_token
        room = f"room for {tokens} tokens, or {tokens // longest} sequences of {longest} at a time"
    host = f", and {_gib(e.offloaded)} GiB of host memory" if e.offloaded else ""
    lines = [
        f"a learner rank: {_sum(e.learner)}{host}",
        f"{'a GPU of a rollout actor' if on_gpu else 'a rollout actor'}: {_sum(e.rollout)}",
        f"KV cache: {e.kv_token} bytes a token, {room}",
    ]
    if memory is None:
        return lines
    if not on_gpu:
        devices = [("all actors, on this machine", e, placement.learner_ranks, placement.rollout_actors)]
    elif takes_turns(config, placement, shape, memory, flash=flash):
        devices = [
            ("both, on one GPU of this machine, while vLLM generates", replace(e, activations=0, logits=0), 1, 1),
            ("the same while the learner trains and vLLM sleeps", replace(e, rollout_weights=0, kv_cache=0), 1, 1),
        ]
    elif placement.shared:
        devices = [("both, on one GPU of this machine", e, 1, 1)]
    else:
        devices = [("a learner rank's GPU", e, 1, 0), ("a rollout actor's GPU", e, 0, 1)]
    return lines + [_verdict(where, parts, config, memory, ranks, actors) for where, parts, ranks, actors in devices]


def takes_turns(config: Config, placement: Placement, shape: Shape, memory: int, *, flash: bool = False) -> bool:
    """Whether vLLM sleeps while the learner trains: `rollout.sleep`; if null, whether both do not fit on one GPU."""
    if config.rollout.sleep is not None:
        return config.rollout.sleep
    e = estimate(shape, config, memory, flash=flash)
    too_much = sum(e.learner.values()) + sum(e.rollout.values()) > memory
    return placement.shared and config.algorithm.max_staleness == 0 and too_much


def decide_sleep(config: Config, placement: Placement | None) -> bool:
    """Decide `rollout.sleep`: if it is null, by the memory of this machine's GPU; false if the model is not known.

    `placement` is that of a local Ray. It is None on a cluster, whose GPUs are on other machines: there null means
    false. Raises ResourceError if the memory of the GPU is not known.
    """
    if config.rollout.sleep is None and placement is not None and placement.shared:
        with suppress(ModelError):
            shape, memory = read_shape(config), gpu_memory()
            return takes_turns(config, placement, shape, memory, flash=flash_attention(config.model))
    return bool(config.rollout.sleep)


def device_memory(hardware: Hardware) -> int:
    """Bytes of one of this machine's GPUs or, without GPUs, of the machine. Raises ResourceError as `gpu_memory`."""
    if hardware.gpus > 0:
        return gpu_memory()
    return int(Path("/proc/meminfo").read_text().split()[1]) * 1024  # its first line is "MemTotal: N kB"


def gpu_memory() -> int:
    """Bytes of this machine's first GPU. Raises ResourceError if CUDA does not report them."""
    # In another process: the CUDA context that this needs would stay in the driver for the whole run.
    command = [sys.executable, "-c", "import torch; print(torch.cuda.mem_get_info()[1])"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        reason = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
        raise ResourceError(
            f"CUDA does not report the memory of this machine's GPU ({reason}); look at it with nvidia-smi"
        )
    return int(ended.stdout.split()[-1])


def _verdict(where: str, e: Estimate, config: Config, memory: int, ranks: int, actors: int) -> str:
    """Describe whether so many learner ranks and rollout actors fit in `memory` bytes, with a remedy if not."""
    s, cache, longest = config.learner, e.kv_cache or 0, _longest(config.rollout)
    sequence = e.kv_token * longest if e.rollout_weights else 0  # vLLM refuses a cache without room for one
    cache_key = "rollout.gpu_memory_utilization" if config.rollout.kv_cache_gib is None else "rollout.kv_cache_gib"
    total = ranks * sum(e.learner.values()) + actors * sum(e.rollout.values())
    if total <= memory:
        if actors and cache < sequence:
            return f"{where}: no sequence fits in the KV cache: lower rollout.max_new_tokens or raise {cache_key}"
        return f"{where}: {_gib(total)} GiB fits in {_gib(memory)} GiB"
    tokens_key = "learner.micro_batch_tokens" if s.micro_batch_tokens > longest else "rollout.max_new_tokens"
    if not s.gradient_checkpointing:
        tokens_key += " or set learner.gradient_checkpointing=true"
    parts = {tokens_key: ranks * e.activations, cache_key: actors * max(0, cache - sequence)}
    enough = total - sum(parts.values()) < memory
    advice = f"lower {max(parts, key=parts.__getitem__)}" if enough else "take a smaller model.path"
    return f"{where}: {_gib(total)} GiB does not fit in {_gib(memory)} GiB: {advice}"


def _longest(rollout: RolloutSettings) -> int:
    """Tokens of the longest sequence or, if the prompts determine it, of its completion only."""
    return rollout.max_model_len or rollout.max_new_tokens


def _sum(parts: dict[str, int]) -> str:
    return " + ".join(f"{name} {_gib(size)}" for name, size in parts.items()) + f" = {_gib(sum(parts.values()))} GiB"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"
