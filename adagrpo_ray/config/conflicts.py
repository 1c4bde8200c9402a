"""Conflicts between settings of two or more sections that are valid one by one.

Each function yields messages with full keys, values and the remedy. Rules within one section are in its class.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.config.data import PLAIN, DataSettings
from adagrpo_ray.config.environments import ENVIRONMENT, EnvironmentSettings
from adagrpo_ray.config.learner import LearnerSettings
from adagrpo_ray.config.reasoning_gym import REASONING_GYM, ReasoningGymSettings
from adagrpo_ray.config.rewards import RewardsSettings
from adagrpo_ray.config.rollout import RolloutSettings
from adagrpo_ray.config.run_settings import CheckpointSettings, EvaluationSettings, RunSettings


def of_sampling(algorithm: AlgorithmSettings, rollout: RolloutSettings) -> Iterator[str]:
    """Yield conflicts of the budget and the token limit with group sizes, and of sleep with staleness."""
    a, r = algorithm, rollout
    cost = a.largest_group * (r.max_new_tokens if a.budget_unit == "tokens" else 1)
    if a.budget is not None and a.budget < cost:
        yield (
            f"algorithm.budget={a.budget} {a.budget_unit} is smaller than the {cost} that one group may take "
            f"(algorithm.group_size={a.group_size}, algorithm.allocation.max_group={a.group_sizes[1]}, "
            f"rollout.max_new_tokens={r.max_new_tokens}), so such a group can never be sampled; raise the budget "
            "or make the groups smaller"
        )
    if a.overlong_buffer is not None and a.overlong_buffer > r.max_new_tokens:
        yield (
            f"algorithm.overlong_buffer={a.overlong_buffer} is more than rollout.max_new_tokens="
            f"{r.max_new_tokens}, so every completion would be penalised; lower it"
        )
    if r.sleep and a.max_staleness > 0:
        yield (
            f"rollout.sleep=true stops all rollouts while the learner trains, and algorithm.max_staleness="
            f"{a.max_staleness} runs them meanwhile; set it to 0 or rollout.sleep to false"
        )


def of_criterion(algorithm: AlgorithmSettings, rewards: RewardsSettings) -> Iterator[str]:
    """Yield a conflict if the criterion compares a reward function that is not configured."""
    reward = algorithm.criterion.reward
    if reward is not None and reward not in rewards.names:
        yield (f"algorithm.criterion.reward={reward!r} is none of rewards.functions {rewards.names}; name one of them")


def of_problems(reasoning_gym: ReasoningGymSettings, data: DataSettings, rewards: RewardsSettings) -> Iterator[str]:
    """Yield conflicts of generated problems: no task, no weight, or their reward function with other data."""
    if data.source == REASONING_GYM and not reasoning_gym.tasks:
        yield (
            f"data.source={data.source} draws prompts from reasoning_gym.tasks, which is empty; name tasks, as in "
            "reasoning_gym.tasks=[{name: chain_sum}]"
        )
    elif data.source == REASONING_GYM and not sum(task.weight for task in reasoning_gym.tasks):
        yield "reasoning_gym.tasks have weights that sum to 0; give one of them a weight above 0"
    if data.source != REASONING_GYM and REASONING_GYM in rewards.names:
        yield (
            f"rewards.functions: {REASONING_GYM!r} scores prompts of data.source={REASONING_GYM} only, and data.source="
            f"{data.source!r}; use another function"
        )


def of_environment(
    environment: EnvironmentSettings, data: DataSettings, rewards: RewardsSettings, rollout: RolloutSettings
) -> Iterator[str]:
    """Yield conflicts of episodes: no environment for its rows or rewards, no chat template, and no room for turns."""
    if data.source == ENVIRONMENT and environment.name is None:
        yield (
            f"data.source={ENVIRONMENT} takes the rows of environment.name, which is null; name an environment with "
            "`rows`, or other data"
        )
    if ENVIRONMENT in rewards.names and environment.name is None:
        yield (
            f"rewards.functions: {ENVIRONMENT!r} gives the rewards of environment.name, which is null; name one, or "
            "use another function"
        )
    if not environment.active:
        return
    if data.chat_template == PLAIN:
        yield (
            f"data.chat_template={PLAIN} renders plain text, which cannot separate the turns of an episode; give a "
            "chat template, or remove environment.name and environment.tools"
        )
    if environment.max_turn_tokens is not None and environment.max_turn_tokens > rollout.max_new_tokens:
        yield (
            f"environment.max_turn_tokens={environment.max_turn_tokens} is more than rollout.max_new_tokens="
            f"{rollout.max_new_tokens}, which all turns of an episode share; lower the first or raise the second"
        )
    longest, room = environment.longest(rollout.max_new_tokens), rollout.max_model_len
    if room is not None and rollout.max_new_tokens < room <= longest:
        yield (
            f"rollout.max_model_len={room} leaves no room for a prompt next to an episode of up to {longest} tokens "
            f"(rollout.max_new_tokens={rollout.max_new_tokens}, environment.max_observation_tokens="
            f"{environment.max_observation_tokens}); raise the first or lower the others"
        )


def of_schedule(run: RunSettings, algorithm: AlgorithmSettings, learner: LearnerSettings) -> Iterator[str]:
    """Yield a conflict if the run has a single update and its learning rate is 0."""
    updates = run.steps * algorithm.updates_per_batch
    if updates == round(learner.warmup_ratio * updates) == 1:
        yield (
            f"learner.warmup_ratio={learner.warmup_ratio} of run.steps={run.steps} gives the run's only update a "
            "learning rate of 0, so the run trains nothing; set it to 0"
        )


def of_best_checkpoint(
    checkpoint: CheckpointSettings, evaluation: EvaluationSettings, data: DataSettings
) -> Iterator[str]:
    """Yield a conflict if the best checkpoint is kept and no evaluations select it."""
    if checkpoint.keep_best and not (evaluation.every and data.eval_prompts):
        yield (
            f"checkpoint.keep_best=true needs evaluations during training, and evaluation.every="
            f"{evaluation.every} with data.eval_prompts={data.eval_prompts} makes none; raise both above 0 or set "
            "keep_best to false"
        )


def of_texts(settings: Any, key: str = "") -> Iterator[str]:
    """Yield the texts in `settings`, a tree of Python values, that no file or file name can hold."""
    if isinstance(settings, dict | tuple):
        for name, inner in settings.items() if isinstance(settings, dict) else enumerate(settings):
            yield from of_texts(name, key)
            yield from of_texts(inner, f"{key}.{name}" if key else str(name))
    if isinstance(settings, str):
        if "\0" in settings:
            yield f"{key}={settings!r:.200} holds a null character; remove it"
        elif not settings.isascii() and any("\ud800" <= letter <= "\udfff" for letter in settings):
            yield f"{key}={settings!r:.200} is no UTF-8 text; write it in UTF-8"
