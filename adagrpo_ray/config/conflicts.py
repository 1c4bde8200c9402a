"""Settings that are each fine and do not go together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from adagrpo_ray.config.reasoning_gym import gym_conflicts

if TYPE_CHECKING:
    from adagrpo_ray.config.tree import Config


def conflicts(config: Config) -> Iterator[str]:
    """What is wrong with the settings together: which keys, their values and what to change; nothing where they fit."""
    yield from _bad_texts(config.model_dump())
    yield from gym_conflicts(config)
    a, r = config.algorithm, config.rollout
    fewest, most = a.allocation.sizes(a.group_size) if a.allocation.enabled else (a.group_size, a.group_size)
    if fewest > most:
        yield (
            f"algorithm.allocation.min_group={fewest} is more than max_group={most}; lower the first or raise "
            "the second (null: half of group_size, and group_size)"
        )
    cost = max(most, a.group_size) * (r.max_new_tokens if a.budget_unit == "tokens" else 1)
    if a.budget is not None and a.budget < cost:
        yield (
            f"algorithm.budget={a.budget} {a.budget_unit} is smaller than the {cost} that one group may take "
            f"(algorithm.group_size={a.group_size}, algorithm.allocation.max_group={most}, "
            f"rollout.max_new_tokens={r.max_new_tokens}), so such a group can never be sampled; raise the budget "
            "or make the groups smaller"
        )
    for key, named in (("rollout.resources", r.resources), ("learner.resources", config.learner.resources)):
        if taken := {"memory", "object_store_memory"} & set(named):
            yield f"{key} names Ray's own resource {taken.pop()!r}; give custom ones, as rollout: 1"
    if r.max_actors is not None and r.max_actors < r.actors:
        yield (
            f"rollout.max_actors={r.max_actors} is less than the rollout.actors={r.actors} that a run begins with; "
            "raise the first or lower the second"
        )
    if r.max_model_len is not None and r.max_model_len <= r.max_new_tokens:
        yield (
            f"rollout.max_model_len={r.max_model_len} leaves no room for a prompt beside "
            f"rollout.max_new_tokens={r.max_new_tokens}; raise the first or lower the second"
        )
    if a.overlong_buffer is not None and a.overlong_buffer > r.max_new_tokens:
        yield (
            f"algorithm.overlong_buffer={a.overlong_buffer} is more than rollout.max_new_tokens="
            f"{r.max_new_tokens}, so that every completion would be penalised; lower it"
        )
    loss = a.loss
    if loss.correction == "none" and (loss.correction_mode == "mask" or loss.correction_floor is not None):
        yield (
            f"algorithm.loss.correction=none has no weights that correction_mode={loss.correction_mode} and "
            f"correction_floor={loss.correction_floor} could bound; set it to token, sequence or geometric, or leave "
            "the two out"
        )
    if loss.correction_mode == "mask" and loss.correction_floor is None and loss.correction_cap is None:
        yield (
            "algorithm.loss.correction_mode=mask has no bounds to go by, since correction_floor and correction_cap are "
            "null; give one of them"
        )
    if config.data.chat_template == "none" and config.data.template_kwargs:
        yield (
            f"data.template_kwargs={config.data.template_kwargs} are arguments of a chat template, and "
            "data.chat_template=none renders prompts without one; leave them out"
        )
    s = config.learner
    if s.learning_rate * s.weight_decay >= 1.0:
        yield (
            f"learner.weight_decay={s.weight_decay} times learner.learning_rate={s.learning_rate} is 1 or more: one "
            "step of AdamW takes away the whole weight; lower one of them"
        )
    if config.learner.offload_optimizer and config.learner.zero_stage == 0:
        yield (
            "learner.offload_optimizer=true is a part of ZeRO, which learner.zero_stage=0 turns off; set "
            "learner.zero_stage to 1, 2 or 3, or leave the optimizer where it is"
        )
    updates = config.run.steps * a.updates_per_batch
    if updates == round(config.learner.warmup_ratio * updates) == 1:
        yield (
            f"learner.warmup_ratio={config.learner.warmup_ratio} of run.steps={config.run.steps} gives the run's only update a "
            "learning rate of 0, so that it trains nothing; set it to 0"
        )
    if r.sleep and a.max_staleness > 0:
        yield (
            f"rollout.sleep=true stops all rollouts while the learner trains, and algorithm.max_staleness="
            f"{a.max_staleness} is there to run them meanwhile; set it to 0 or rollout.sleep to false"
        )
    if a.ladder is not None and a.name != "adagrpo":
        yield (
            f"algorithm.ladder={a.ladder!r} resamples, which algorithm.name={a.name} does not; leave it out, or "
            "set algorithm.name to adagrpo"
        )
    steps = [t.from_step for t in a.triggers]
    if steps != sorted(set(steps)):
        yield f"algorithm.triggers have from_step {steps}; order them by step, each step once"
    names = [f.function for f in config.rewards.functions]
    if len(set(names)) != len(names):
        yield f"rewards.functions names a function twice: {names}; give each one weight"
    for key, name in (
        ("rewards.correct_by", config.rewards.correct_by),
        ("algorithm.criterion.reward", a.criterion.reward),
    ):
        if name is not None and name not in names:
            yield f"{key}={name!r} is none of rewards.functions {names}; name one of them"
    if a.criterion.reward is not None and a.criterion.kind != "any_above":
        yield (
            f"algorithm.criterion.reward={a.criterion.reward!r} counts for kind any_above only, not for "
            f"{a.criterion.kind!r}; leave it out or change the kind"
        )
    if a.sampling.temperature == 0.0 or any(s.temperature == 0.0 for t in a.triggers for s in t.ladder()):
        yield (
            "algorithm: a temperature of 0 in training draws the same completion G times, which teaches nothing; "
            "use a temperature above 0"
        )
    if config.evaluation.samples > 1 and config.evaluation.sampling.temperature == 0.0:
        yield (
            f"evaluation.samples={config.evaluation.samples} with temperature 0 draws the same completion again; "
            "use samples=1 or a temperature above 0"
        )
    if config.checkpoint.keep_best and not (config.evaluation.every and config.data.eval_prompts):
        yield (
            f"checkpoint.keep_best=true goes by measurements while training, and evaluation.every="
            f"{config.evaluation.every} with data.eval_prompts={config.data.eval_prompts} makes none; raise "
            "both above 0 or set keep_best to false"
        )


def _bad_texts(value: Any, key: str = "") -> Iterator[str]:
    """Texts that no file can be named by, and that no file can hold."""
    if isinstance(value, dict | tuple):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _bad_texts(name, key)
            yield from _bad_texts(inner, f"{key}.{name}" if key else str(name))
    if isinstance(value, str):
        if "\0" in value:
            yield f"{key}={value!r:.200} holds a null character; leave it out"
        elif not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            yield f"{key}={value!r:.200} is no UTF-8 text; write it in UTF-8"
