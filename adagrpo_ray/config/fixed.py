"""Settings that a resumed run must keep: all that change its result."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from adagrpo_ray.config.listing import flat
from adagrpo_ray.config.served_rewards import MAY_CHANGE
from adagrpo_ray.config.tree import Config
from adagrpo_ray.errors import ConfigError

FREE = {
    *("run.steps", "run.output_dir", "run.name", "run.ray_address", "run.max_restarts"),
    *("run.samples_per_step", "run.report", "evaluation.every", "evaluation.benchmarks"),
    *("checkpoint.every", "checkpoint.save_total_limit", "checkpoint.keep_best"),
    *("rollout.actors", "rollout.max_actors", "rollout.max_restarts", "rollout.tensor_parallel_size", "rollout.sleep"),
    "rollout.max_num_batched_tokens",
    *("rollout.cpus", "rollout.resources", "learner.ranks", "learner.cpus", "learner.resources"),
    *("learner.packing", "learner.offload_optimizer", "learner.liger_kernels", "learner.max_skipped_updates"),
    *("rewards.workers", "rewards.max_concurrent", "rewards.timeout_s", "rewards.memory_gib", "rewards.on_error"),
    *("environment.processes", "environment.timeout_s", "environment.memory_gib"),
    "data.chat_template",  # the name of a file: `data.order` compares its content with the checkpoint
    *("rollout.start_timeout_s", "rollout.request_timeout_s", "rollout.stall_timeout_s"),
    "tracking",
}
"""Keys of the settings that a resumed run may change."""


def fixed_settings(config: Config) -> dict[str, Any]:
    """Return the settings that a resumed run must keep, by dotted key, as JSON values."""
    tree = json.loads(config.model_dump_json())
    tree["rewards"]["functions"] = [_fixed_reward(entry) for entry in tree["rewards"]["functions"]]
    return {key: value for key, value in flat(tree) if not _free(key)}


def check_fixed(config: Config, before: Mapping[str, Any]) -> None:
    """Raise ConfigError, which names every setting that differs from `before`, a result of `fixed_settings`."""
    changed = list(differences(before, fixed_settings(config)))
    if changed:
        raise ConfigError(
            f"settings differ from those of the checkpoint: {'; '.join(changed)}; set them back, or start a new run"
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield a description of every setting that differs, with both values."""
    absent = "nothing"
    for key in {**before, **now}:
        if before.get(key, absent) != now.get(key, absent):
            yield f"{key} was {before.get(key, absent)!r:.200} and is {now.get(key, absent)!r:.200}"


def _fixed_reward(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry of rewards.functions without nulls, and without settings of a server that may change."""
    given = {key: value for key, value in entry.items() if value is not None}
    return {
        key: {name: inner for name, inner in value.items() if name not in MAY_CHANGE}
        if isinstance(value, dict)
        else value
        for key, value in given.items()
    }


def _free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE)
