"""The settings that the results of an evaluation depend on."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.config.benchmarks import BenchmarkSettings
from adagrpo_ray.config.environments import EnvironmentSettings
from adagrpo_ray.config.fixed import fixed_settings
from adagrpo_ray.config.model import ModelSettings
from adagrpo_ray.config.tree import Config
from adagrpo_ray.data.benchmark_prompts import BenchmarkPrompts
from adagrpo_ray.data.order import IDS
from adagrpo_ray.data.prompts import PromptSets
from adagrpo_ray.model.identity import fingerprint
from adagrpo_ray.model.pretrained import read_model_config
from adagrpo_ray.rewards import load_reward
from adagrpo_ray.rewards.benchmark_answers import scoring
from adagrpo_ray.rewards.registry import BUILTIN

COUNTING = (
    *("run.seed", "model.path", "model.dtype", "arithmetic", "reasoning_gym"),
    *("data.source", "data.subset", "data.split", "data.columns", "data.format", "data.system_prompt"),
    "data.template_kwargs",
    *("rewards.functions", "rewards.correct_by", "rewards.correct_above"),
    *("evaluation.samples", "evaluation.sampling", "rollout.max_new_tokens", "rollout.lora_mode"),
)
"""Keys of the settings that results depend on.

Settings that select prompts are not among them, since each prompt has results of its own.
"""

OF_BENCHMARKS = (
    *("run.seed", "model.path", "model.dtype", "data.format.think_end", "data.template_kwargs"),
    *("evaluation.sampling", "rollout.max_new_tokens", "rollout.lora_mode"),
)
"""Those that results on a benchmark depend on: it has its own prompts and scores."""

BASE_WEIGHTS, OWN_REWARD = "(the base model's files)", "(the file of {})"
PROMPT_NAMES, TEMPLATE = "(the names of prompts)", "(the chat template)"
BENCHMARK = "(the benchmark)"
"""Names of dependencies that are no settings, used as keys."""


def for_evaluation(config: Config, benchmarks: tuple[BenchmarkSettings, ...] = ()) -> Config:
    """The settings without those of training: no initial adapter, and no learner that shares a GPU.

    With `benchmarks` the reward functions are those that score benchmarks, and there is no environment.
    """
    return config.model_copy(
        update={
            "algorithm": AlgorithmSettings(),
            "model": config.model.model_copy(update={"adapter": None}),
            "rollout": config.rollout.model_copy(update={"sleep": False}),
            "rewards": scoring(config.rewards) if benchmarks else config.rewards,
            "environment": EnvironmentSettings() if benchmarks else config.environment,
            "evaluation": config.evaluation.model_copy(update={"benchmarks": benchmarks}),
        }
    )


def counting_settings(config: Config, model_path: str) -> dict[str, Any]:
    """The settings that results depend on, by dotted key, as JSON values.

    The files of the model and of reward functions are represented by digests.
    """
    flat = _selected(config, (*COUNTING, *(("environment",) if config.environment.active else ())))
    flat[BASE_WEIGHTS] = _weights(model_path, config.model)
    for function in config.rewards.own:
        if function.name not in BUILTIN:
            flat[OWN_REWARD.format(function.name)] = _source(function.name)
    return flat


def benchmark_settings(config: Config, model_path: str, benchmark: BenchmarkPrompts, template: str) -> dict[str, Any]:
    """The settings that results on a benchmark depend on, in the form of `counting_settings`.

    `template` is the digest of the chat template. The ids of its problems depend on their words.
    """
    return {
        **_selected(config, OF_BENCHMARKS),
        "evaluation.samples": benchmark.samples,
        BASE_WEIGHTS: _weights(model_path, config.model),
        PROMPT_NAMES: IDS,
        TEMPLATE: template,
        BENCHMARK: benchmark.name,
    }


def prompt_settings(prompts: PromptSets) -> dict[str, Any]:
    """The properties of the prompts that results depend on, by key: the scheme of their ids, and the chat template.

    The rendered prompts are not among them, since a template may render the date.
    """
    return {PROMPT_NAMES: IDS, TEMPLATE: prompts.template}


def settings_digest(settings: Mapping[str, Any]) -> str:
    """A digest of the settings, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _selected(config: Config, names: Sequence[str]) -> dict[str, Any]:
    """The settings with these names, and those below them, by dotted key."""
    return {
        key: value
        for key, value in fixed_settings(config).items()
        if any(key == name or key.startswith(f"{name}.") for name in names)
    }


def _weights(path: str, model: ModelSettings) -> str:
    """A fingerprint of the base model's files, without reading them completely; the commit of a model of the Hub."""
    if Path(path).is_dir():
        return fingerprint(Path(path))
    return str(getattr(read_model_config(path, model), "_commit_hash", None))


def _source(name: str) -> str:
    """A digest of the file of a user's reward function; "unknown" if it has no Python file."""
    try:
        return hashlib.sha256(Path(inspect.getfile(load_reward(name))).read_bytes()).hexdigest()[:16]
    except (OSError, TypeError):
        return "unknown"
