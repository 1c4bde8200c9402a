"""All checks that are possible before an actor starts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

from adagrpo_ray.algorithm.methods import make_method
from adagrpo_ray.cluster.gpu_host import check_gpu_host, memory_notice
from adagrpo_ray.cluster.joining import check_ray, find_ray
from adagrpo_ray.cluster.placement import Placement, local_hardware, place
from adagrpo_ray.config.environments import ENVIRONMENT
from adagrpo_ray.config.tree import Config
from adagrpo_ray.data.benchmark_prompts import load_benchmarks, short_limits
from adagrpo_ray.data.lengths import longest_sequence
from adagrpo_ray.data.prompts import PromptSets
from adagrpo_ray.data.template import template_digest
from adagrpo_ray.data.template_choice import chosen_template
from adagrpo_ray.environments.episodes import OF_EPISODES
from adagrpo_ray.environments.opening import load_episode_prompts
from adagrpo_ray.errors import ConfigError
from adagrpo_ray.extensions.given import NOTHING, Given
from adagrpo_ray.model.gguf_file import is_gguf
from adagrpo_ray.model.gguf_model import read_origin
from adagrpo_ray.model.pretrained import load_tokenizer, read_model_config, resolve_model
from adagrpo_ray.rewards import load_reward
from adagrpo_ray.rewards.ground_truth import check_ground_truths
from adagrpo_ray.rewards.registry import BUILTIN
from adagrpo_ray.rollout.architectures import check_lora_type, check_served
from adagrpo_ray.tracking import check_trackers
from adagrpo_ray.types import Prompt


@dataclass(frozen=True)
class Inputs:
    """The inputs of a run, which have been checked.

    - `model_path`: the folder of the base model.
    - `max_model_len`: the length of the longest sequence, in tokens.
    - `given`: the functions that were given to the run.
    - `notices`: for the user, before the start.
    - `template`: the result of `chosen_template`.
    - `joined`: the address of the Ray cluster to join; None for a local Ray.
    - `placement`: of the actors on a local Ray.
    """

    model_path: str
    prompts: PromptSets
    max_model_len: int
    given: Given = NOTHING
    notices: tuple[str, ...] = ()
    template: str | None = None
    joined: str | None = None
    placement: Placement | None = None


def check(config: Config, given: Given = NOTHING, *, training: bool = True, stop: Event | None = None) -> Inputs:
    """Load and check model, rewards, criterion, ladder, data and benchmarks.

    Without `training` there is no learner, no criterion is needed, and any number of prompts is allowed; benchmarks
    then are the only prompts. Once `stop` is set, long checks are left out. Raises an AdaGRPOError with the remedy if a
    check fails.
    """
    joined = find_ray(config.run)
    check_ray(joined)
    if training:
        check_trackers(config.tracking, joined)
    for function in config.rewards.own:
        load_reward(function.name, given)
    if training:
        make_method(config.algorithm, config.rewards.names, given)
    if joined is None:
        check_gpu_host()
    learner = config.learner if training else None
    placement = place(config.rollout, learner, local_hardware(), ours=True) if joined is None else None
    if placement is not None:
        check_lora_type(config.model, config.rollout, gpu=placement.gpus > 0)
    model_path = resolve_model(config)
    model_config = read_model_config(model_path, config.model)
    check_served(config.model, config.rollout, model_config)
    if training:
        from adagrpo_ray.lora.trainable import check_trainable  # torch takes a second, which only this needs

        check_trainable(config.model, model_path, model_config)
    tokenizer = load_tokenizer(model_path, config.model, config.data)
    prompts = _load(config, tokenizer, model_path, given, training=training)
    if config.rewards.served:
        # openai takes a second, which only this needs
        from adagrpo_ray.rewards.served_check import check_served_rewards

        check_served_rewards(config.rewards, (*prompts.train, *prompts.held_out))
    max_model_len = _max_model_len(config, model_config, prompts)
    origin = read_origin(Path(model_path)) if is_gguf(config.model.path) else None
    notices = check_ground_truths(*_scored(config, prompts), tokenizer, given, stop)
    little = memory_notice() if joined is None else None
    notices = (
        *([little] if little else []),
        *([origin.in_words] if origin else []),
        *notices,
        *(f"benchmark {benchmark.in_words}" for benchmark in prompts.benchmarks),
        *short_limits(config),
    )
    template = chosen_template(config.data)
    return Inputs(model_path, prompts, max_model_len, given, notices, template, joined, placement)


def _load(config: Config, tokenizer: Any, model_path: str, given: Given, *, training: bool) -> PromptSets:
    """The prompts of the data, without `training` only if there are no benchmarks, and those of the benchmarks."""
    benchmarks = load_benchmarks(config, tokenizer)
    if benchmarks and not training:
        return PromptSets((), (), {}, template=template_digest(tokenizer), benchmarks=benchmarks)
    prompts = load_episode_prompts(config, tokenizer, model_path, given, training=training)
    return replace(prompts, benchmarks=benchmarks)


def _max_model_len(config: Config, model_config: Any, prompts: PromptSets) -> int:
    """The length of the longest sequence in tokens; `model_config` is Transformers' configuration of the base model."""
    own = (*prompts.train, *prompts.held_out)
    of_benchmarks = [(len(prompt.token_ids), each.name) for each in prompts.benchmarks for prompt in each.prompts]
    of_benchmark, benchmark = max(of_benchmarks, default=(0, ""))
    own_sequence = longest_sequence(config, own) if own else 0
    sequence = max(own_sequence, config.rollout.max_model_len or of_benchmark + config.rollout.max_new_tokens)
    limit = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    if limit is None or sequence <= limit:
        return sequence
    if config.rollout.max_model_len is not None:
        raise ConfigError(
            f"rollout.max_model_len={sequence} is more than the {limit} positions of {config.model.path}; lower it"
        )
    lower, longest = f"rollout.max_new_tokens or leave out the benchmark {benchmark}, which has them", of_benchmark
    if own_sequence == sequence:
        lower, longest = "rollout.max_new_tokens or data.length_quantile", max(len(prompt.token_ids) for prompt in own)
        if config.environment.active:
            lower = f"environment.max_observation_tokens={config.environment.max_observation_tokens}, {lower}"
    raise ConfigError(
        f"rollout.max_new_tokens={config.rollout.max_new_tokens} and prompts of up to {longest} tokens need "
        f"{sequence} positions, but {config.model.path} has {limit}; lower {lower}"
    )


def _scored(config: Config, prompts: PromptSets) -> tuple[Config, list[Prompt]]:
    """The settings and the prompts with which ground truths are scored.

    With episodes only built-in functions of texts score them: others may need the turns of an episode.
    """
    every = [*prompts.train, *prompts.held_out]
    if not config.environment.active:
        return config, every
    rewards, names = config.rewards, set(config.rewards.names)
    if ENVIRONMENT in names or not names <= set(BUILTIN):
        rewards = rewards.model_copy(update={"check_prompts": 0})
    more = dict.fromkeys(OF_EPISODES)
    return config.model_copy(update={"rewards": rewards}), [replace(p, columns={**p.columns, **more}) for p in every]
