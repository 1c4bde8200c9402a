"""What must stay the same for results to belong together."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.config.fixed import fixed_settings
from adagrpo_ray.config.model import ModelSettings
from adagrpo_ray.config.tree import Config
from adagrpo_ray.data.order import IDS
from adagrpo_ray.data.prompts import PromptSets
from adagrpo_ray.model.identity import fingerprint
from adagrpo_ray.model.pretrained import read_model_config
from adagrpo_ray.rewards import load_reward
from adagrpo_ray.rewards.registry import BUILTIN

COUNTING = (
    *("run.seed", "model.path", "model.dtype", "arithmetic", "reasoning_gym"),
    *("data.source", "data.subset", "data.split", "data.columns", "data.format", "data.system_prompt"),
    "data.template_kwargs",
    *("rewards.functions", "rewards.correct_by", "rewards.correct_above"),
    *("evaluation.samples", "evaluation.sampling", "rollout.max_new_tokens", "rollout.lora_mode"),
)
"""Keys of the settings that results depend on. Which prompts are evaluated is none: each has results of its own."""

BASE_WEIGHTS, OWN_REWARD = "(the base model's files)", "(the file of {})"
PROMPT_NAMES, TEMPLATE = "(the names of prompts)", "(the chat template)"
"""What is not a setting and counts as well, in the place of a key."""


def for_measuring(config: Config) -> Config:
    """The settings without what is training's own: no adapter to begin with, nobody to share a GPU with."""
    return config.model_copy(
        update={
            "algorithm": AlgorithmSettings(),
            "model": config.model.model_copy(update={"adapter": None}),
            "rollout": config.rollout.model_copy(update={"sleep": False}),
        }
    )


def counting_settings(config: Config, model_path: str) -> dict[str, Any]:
    """By dotted key all that results depend on, as JSON values; the model itself and reward functions by digests."""
    flat = {
        key: value
        for key, value in fixed_settings(config).items()
        if any(key == name or key.startswith(f"{name}.") for name in COUNTING)
    }
    flat[BASE_WEIGHTS] = _weights(model_path, config.model)
    for function in config.rewards.functions:
        if function.function not in BUILTIN:
            flat[OWN_REWARD.format(function.function)] = _source(function.function)
    return flat


def prompt_settings(prompts: PromptSets) -> dict[str, Any]:
    """The same of the prompts: how they are named, and the chat template, but not what it renders on which day."""
    return {PROMPT_NAMES: IDS, TEMPLATE: prompts.template}


def settings_digest(settings: Mapping[str, Any]) -> str:
    """A short digest of `counting_settings`."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _weights(path: str, model: ModelSettings) -> str:
    """Tells the files of a base model from others without reading all of them; a Hub model has its commit."""
    if Path(path).is_dir():
        return fingerprint(Path(path))
    return str(getattr(read_model_config(path, model), "_commit_hash", None))


def _source(name: str) -> str:
    """Tells a reward function of the user's own from what it was before it was changed."""
    try:
        return hashlib.sha256(Path(inspect.getfile(load_reward(name))).read_bytes()).hexdigest()[:16]
    except (OSError, TypeError):  # no file of Python's own
        return "unknown"
