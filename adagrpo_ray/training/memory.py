"""Compares the estimated memory of a run with that of the machine, in lines and to decide whether vLLM sleeps."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from adagrpo_ray.cluster.device_memory import DeviceMemory, gpu_memory
from adagrpo_ray.cluster.placement import Placement
from adagrpo_ray.config.tree import Config
from adagrpo_ray.errors import ModelError
from adagrpo_ray.model.kernels import NO_KERNELS, Kernels, kernels_here
from adagrpo_ray.model.shape import Shape, read_shape
from adagrpo_ray.training.estimate import LearnerMemory, RolloutMemory, learner_memory, longest, rollout_memory

SIDE_BY_SIDE = 0.9  # share of the free memory up to which learner and vLLM stay side by side: both are estimates


@dataclass(frozen=True)
class _Device:
    """Bytes on one device: those of learners between updates, and of an update; those of awake actors; all others."""

    name: str
    idle: int = 0
    update: int = 0
    cache: int = 0
    other: int = 0
    awake: int = 0  # number of actors that generate

    @property
    def total(self) -> int:
        return self.idle + self.update + self.cache + self.other


def describe(
    shape: Shape,
    config: Config,
    placement: Placement,
    memory: DeviceMemory | None = None,
    kernels: Kernels = NO_KERNELS,
) -> list[str]:
    """Describe in lines the memory of a learner rank and of a rollout actor and, with `memory`, whether it fits.

    `memory` is that of each GPU, or that of the machine if there are no GPUs. `kernels` are those that the GPUs run.
    Raises ModelError for an unknown LoRA target.
    """
    gpu, most = placement.gpus > 0, longest(config)
    learner = learner_memory(shape, config, gpu=gpu, kernels=kernels)
    rollout = rollout_memory(shape, config, memory, gpu=gpu)
    room = f"in the rest of rollout.gpu_memory_utilization={config.rollout.gpu_memory_utilization:g} of a GPU"
    if rollout.kv_cache is not None:
        tokens = rollout.kv_cache // rollout.kv_token
        room = f"room for {tokens} tokens, or {tokens // most} sequences of {most} at a time"
    host = f", and {_gib(learner.offloaded)} GiB of host memory" if learner.offloaded else ""
    lines = [
        f"a learner rank: {_sum(learner.parts)}{host}",
        f"{'a GPU of a rollout actor' if gpu else 'a rollout actor'}: {_sum(rollout.parts)}",
        f"KV cache: {rollout.kv_token} bytes a token, {room}",
    ]
    if memory is None:
        return lines
    turns = takes_turns(config, placement, shape, memory, kernels)
    devices = _devices(placement, learner, rollout, turns=turns)
    return lines + [_verdict(device, config, memory.free, rollout.kv_token * most) for device in devices]


def takes_turns(
    config: Config, placement: Placement, shape: Shape, memory: DeviceMemory, kernels: Kernels = NO_KERNELS
) -> bool:
    """Whether vLLM sleeps while the learner trains: `rollout.sleep`; if null, whether both do not fit on one GPU.

    Both fit if they take at most SIDE_BY_SIDE of the free memory.
    """
    if config.rollout.sleep is not None:
        return config.rollout.sleep
    if not placement.shared or config.algorithm.max_staleness > 0:
        return False
    both = learner_memory(shape, config, kernels=kernels).peak + rollout_memory(shape, config, memory).peak
    return both > SIDE_BY_SIDE * memory.free


def decide_sleep(config: Config, placement: Placement | None) -> bool:
    """Decide `rollout.sleep`: if it is null, by the memory of this machine's GPU; false if the model is not known.

    `placement` is that of a local Ray. It is None on a cluster, whose GPUs are on other machines: there null means
    false. Raises ResourceError if the memory of the GPU is not known.
    """
    if config.rollout.sleep is None and placement is not None and placement.shared:
        with suppress(ModelError):
            shape, memory = read_shape(config), gpu_memory()
            return takes_turns(config, placement, shape, memory, kernels_here(config, shape.model_type))
    return bool(config.rollout.sleep)


def _devices(placement: Placement, learner: LearnerMemory, rollout: RolloutMemory, *, turns: bool) -> list[_Device]:
    """The devices of a run, or one device in both of its phases if vLLM sleeps."""
    update, cache = learner.peak - learner.idle, rollout.kv_cache or 0
    other = rollout.peak - cache
    if placement.gpus == 0:
        ranks, actors = placement.learner_ranks, placement.rollout_actors
        name = "all actors, on this machine"
        return [_Device(name, ranks * learner.idle, ranks * update, actors * cache, actors * other, actors)]
    if turns:
        generating, training = "while vLLM generates", "the same while the learner trains and vLLM sleeps"
        return [
            _Device(f"both, on one GPU of this machine, {generating}", learner.idle, 0, cache, other, 1),
            _Device(training, learner.idle, update, 0, rollout.asleep),
        ]
    if placement.shared:
        return [_Device("both, on one GPU of this machine", learner.idle, update, cache, other, 1)]
    return [
        _Device("a learner rank's GPU", learner.idle, update),
        _Device("a rollout actor's GPU", cache=cache, other=other, awake=1),
    ]


def _verdict(device: _Device, config: Config, free: int, sequence: int) -> str:
    """Describe whether a device has room, with a remedy if not; `sequence`: bytes of the longest in the KV cache."""
    s, total, needed = config.learner, device.total, device.awake * sequence
    cache_key = "rollout.gpu_memory_utilization" if config.rollout.kv_cache_gib is None else "rollout.kv_cache_gib"
    if total <= free:
        if device.cache < needed:  # vLLM refuses a cache without room for one
            return f"{device.name}: no sequence fits in the KV cache: lower {_length_keys(config)} or raise {cache_key}"
        return f"{device.name}: {_gib(total)} GiB fits in the {_gib(free)} GiB that are free"
    tokens_key = _length_keys(config)
    if s.micro_batch_tokens > longest(config):
        tokens_key = "learner.micro_batch_tokens"
    if not s.gradient_checkpointing:
        tokens_key += " or set learner.gradient_checkpointing=true"
    parts = {tokens_key: device.update, cache_key: max(0, device.cache - needed)}
    enough = total - sum(parts.values()) < free
    advice = f"lower {max(parts, key=parts.__getitem__)}" if enough else "take a smaller model.path"
    return f"{device.name}: {_gib(total)} GiB does not fit in the {_gib(free)} GiB that are free: {advice}"


def _length_keys(config: Config) -> str:
    """The settings that make the longest sequence as long as it is."""
    if config.rollout.max_model_len is not None:
        return "rollout.max_model_len"
    observations = config.environment.active and config.environment.max_turns > 1
    return "rollout.max_new_tokens" + (" or environment.max_observation_tokens" if observations else "")


def _sum(parts: dict[str, int]) -> str:
    return " + ".join(f"{name} {_gib(size)}" for name, size in parts.items()) + f" = {_gib(sum(parts.values()))} GiB"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"
