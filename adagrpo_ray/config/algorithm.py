"""Settings of sampling, resampling and the loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from adagrpo_ray.config.group_allocation import AllocationSettings
from adagrpo_ray.config.method_defaults import METHOD_DEFAULTS, TrainOn
from adagrpo_ray.config.sampling import SamplingParams
from adagrpo_ray.config.section import Count, GroupSize, PositiveInt, Section, Share


class RungSettings(SamplingParams):
    """Sampling parameters of a resample, used `times` times in a row before the next rung."""

    times: PositiveInt = Field(1, description="number of resamples in a row that use these parameters")

    @property
    def params(self) -> SamplingParams:
        """The sampling parameters without `times`."""
        return SamplingParams(**self.model_dump(exclude={"times"}))


class TriggerSettings(Section):
    """A ladder of resamples for failing groups, in force from one step on."""

    from_step: PositiveInt = Field(..., description="first step (counted from 1) at which this ladder is in force")
    rungs: tuple[RungSettings, ...] = Field(..., description="the resamples in order; [] switches resampling off")

    def ladder(self) -> tuple[SamplingParams, ...]:
        """Return the sampling parameters of each resample in order, one entry per resample."""
        return tuple(rung.params for rung in self.rungs for _ in range(rung.times))


class CriterionSettings(Section):
    """The condition under which a group is not sampled again."""

    kind: str = Field(
        "any_correct",
        min_length=1,
        description="any_correct, any_above, spread, balanced, or your own as 'module:function'",
    )
    reward: str | None = Field(
        None, min_length=1, description="any_above: the reward function to compare; null: the total reward"
    )
    threshold: float = Field(
        0.0, description="any_above: one reward must be above this; spread: the reward std must be above this"
    )


class LossSettings(Section):
    """The policy loss."""

    kind: Literal["grpo", "gspo", "bnpo", "dapo", "cispo", "dr_grpo"] = Field(
        "bnpo",
        description="surrogate and normalisation: grpo and gspo by sequence, dr_grpo by a constant, others by token",
    )
    epsilon: float = Field(0.2, gt=0.0, lt=1.0, description="clip range of the probability ratio")
    epsilon_high: float | None = Field(
        None, gt=0.0, description="upper clip range of the probability ratio (clip-higher); null: epsilon"
    )
    beta: float = Field(
        0.04, ge=0.0, description="weight of the KL term against the base model; 0 skips the base model's pass"
    )
    kl: Literal["k1", "k2", "k3"] = Field("k3", description="estimator of the KL term")
    correction: Literal["none", "token", "sequence", "geometric"] = Field(
        "token",
        description="rollout correction: importance weights from the sampling distribution to the policy, from the "
        "ratio of each token, the product of a completion's ratios, or their geometric mean",
    )
    correction_mode: Literal["truncate", "mask"] = Field(
        "truncate", description="move a weight outside its bounds to the bound, or set it to 0 (with token: IcePop)"
    )
    correction_floor: float | None = Field(
        None, gt=0.0, le=1.0, description="smallest importance weight; null: no lower bound"
    )
    correction_cap: float | None = Field(2.0, ge=1.0, description="largest importance weight; null: no upper bound")
    mask_truncated_completions: bool = Field(
        False, description="leave completions cut off by the token limit out of the loss; their rewards still count"
    )
    entropy_coef: float = Field(
        0.0, ge=0.0, description="weight of the entropy bonus, which keeps the policy exploring; 0: none"
    )

    def conflicts(self) -> Iterator[str]:
        """Yield conflicts of the rollout correction: bounds without importance weights, and a mask without bounds."""
        if self.correction == "none" and (self.correction_mode == "mask" or self.correction_floor is not None):
            yield (
                f"algorithm.loss.correction=none has no weights that correction_mode={self.correction_mode} and "
                f"correction_floor={self.correction_floor} could bound; set it to token, sequence or geometric, or "
                "remove the other two"
            )
        if self.correction_mode == "mask" and self.correction_floor is None and self.correction_cap is None:
            yield (
                "algorithm.loss.correction_mode=mask has no bounds, since correction_floor and correction_cap are "
                "null; set one of them"
            )


Scale = Literal["std", "none", "batch", "mean"]


class AlgorithmSettings(Section):
    """The method: how groups are sampled, resampled and trained on."""

    name: Literal["grpo", "dapo", "adagrpo"] = Field(
        "adagrpo",
        description="grpo trains on every group; dapo replaces zero-std groups; adagrpo resamples failing groups",
    )
    prompts_per_step: PositiveInt = Field(8, description="groups sampled per step")
    group_size: GroupSize = Field(8, description="completions of a group in one attempt")
    sampling: SamplingParams = Field(SamplingParams(), description="sampling parameters of first attempts")
    criterion: CriterionSettings = Field(CriterionSettings(), description="adagrpo: when a group is not sampled again")
    triggers: tuple[TriggerSettings, ...] = Field(
        (TriggerSettings(from_step=1, rungs=(RungSettings(temperature=2.0, min_p=0.05),)),),
        description="adagrpo: ladders of resamples by step; []: none",
    )
    ladder: str | None = Field(
        None,
        min_length=1,
        description="adagrpo: your own ladder in place of triggers, as 'module:function'; null: triggers",
    )
    resample: Literal["immediate", "deferred"] = Field(
        "deferred", description="when a failed group is sampled again: at once, or with the requests of the next step"
    )
    pilot_size: GroupSize | None = Field(
        None,
        description="adagrpo: completions of a pilot, which begins each attempt of a larger group; if some of them are "
        "correct, the rest of the group follows at once at the base parameters; null: no pilots",
    )
    budget: PositiveInt | None = Field(
        None,
        description="most that a step may generate, in budget_unit; groups beyond it wait for the next step; "
        "null: no limit",
    )
    budget_unit: Literal["completions", "tokens"] = Field("completions", description="unit of the budget")
    max_staleness: Count = Field(
        0, description="steps that rollouts may run ahead of training, but not past a checkpoint; 0: none"
    )
    over_sample: Share = Field(
        0.0,
        description="share of groups sampled beyond those that a step needs; the last ones are aborted and go first in "
        "the next step that begins, which waits for them; 0: every step waits for all its groups",
    )
    max_group_age: PositiveInt = Field(8, description="steps after which a waiting group is dropped")
    allocation: AllocationSettings = Field(
        AllocationSettings(), description="group sizes and first rungs by earlier results"
    )
    train_on: TrainOn | None = Field(
        None,
        description="completions to train on: of the last attempt, of all attempts, or train_size ones of all "
        "attempts: as many correct as incorrect ones, or those whose rewards vary most; null: max_variance for "
        "adagrpo, last for grpo and dapo",
    )
    train_size: GroupSize | None = Field(
        None,
        description="balanced, max_variance: completions of a group to train on; null: balanced: the group's size, "
        "max_variance: half of group_size",
    )
    on_exhausted: Literal["train", "drop"] = Field(
        "train", description="adagrpo: train on a group that failed on the last rung, or drop it"
    )
    num_iterations: PositiveInt | None = Field(
        None,
        description="passes over the batch of a step; null: 1 for grpo and dapo, and for adagrpo 2, or 1 if the "
        "prompts of the batch have more tokens than its completions",
    )
    num_mini_batches: PositiveInt | None = Field(
        None,
        description="parts of the batch, each of whole groups, with an optimizer step of its own in each pass; null: 1 "
        "for grpo and dapo, and for adagrpo one for every two groups with an advantage, at most 4",
    )
    overlong_buffer: PositiveInt | None = Field(
        None, description="tokens before the limit over which a length penalty grows from 0 to 1; null: no penalty"
    )
    advantage_scale: Scale = Field(
        "std",
        description="divisor of advantages: the standard deviation of the group's rewards, none (Dr. GRPO), the "
        "standard deviation of all groups' rewards (Lite PPO), or their mean above the lowest one or 0 (MaxRL)",
    )
    advantage_statistics: Literal["all", "last", "trained"] = Field(
        "all",
        description="rewards of a group that its mean and standard deviation are of: of all attempts, of the last one, "
        "or of the completions that are trained on",
    )
    advantage_epsilon: float = Field(1e-4, gt=0.0, description="added to the standard deviation")
    advantage_bound: float | None = Field(
        None,
        gt=0.0,
        description="advantages are clipped to plus and minus this; null: 10 if advantage_scale is std or batch, else "
        "no bound",
    )
    loss: LossSettings = Field(LossSettings(), description="the policy loss")

    def conflicts(self) -> Iterator[str]:
        """Yield conflicts of group sizes, and settings that this method or criterion does not use."""
        fewest, most = self.group_sizes
        if fewest > most:
            yield (
                f"algorithm.allocation.min_group={fewest} is more than max_group={most}; lower the first or raise "
                "the second (null: {} and {})".format(*self.allocation.defaults(self.group_size))
            )
        elif self.allocation.rule == "value" and not fewest <= self.group_size <= most:
            yield (
                f"algorithm.allocation.rule=value gives groups algorithm.group_size={self.group_size} completions on "
                f"average, which is not between min_group={fewest} and max_group={most}; change one of them"
            )
        yield from self._training_conflicts()
        if self.ladder is not None and self.name != "adagrpo":
            yield (
                f"algorithm.ladder={self.ladder!r} resamples, which algorithm.name={self.name} does not; remove it, "
                "or set algorithm.name to adagrpo"
            )
        if self.pilot_size is not None:
            yield from self._conflicts_of_pilots(self.pilot_size)
        steps = [trigger.from_step for trigger in self.triggers]
        if steps != sorted(set(steps)):
            yield f"algorithm.triggers have from_step {steps}; order them by step, each step once"
        if self.criterion.reward is not None and self.criterion.kind != "any_above":
            yield (
                f"algorithm.criterion.reward={self.criterion.reward!r} is used by kind any_above only, not by "
                f"{self.criterion.kind!r}; remove it or change the kind"
            )
        resamples = [params.temperature for trigger in self.triggers for params in trigger.ladder()]
        if 0.0 in (self.sampling.temperature, *resamples):
            yield (
                "algorithm: a temperature of 0 in training draws the same completion G times, which gives no "
                "advantage; use a temperature above 0"
            )

    def _conflicts_of_pilots(self, size: int) -> Iterator[str]:
        """Yield conflicts of the size of pilots with the method, the group sizes and the criterion."""
        if self.name != "adagrpo":
            yield (
                f"algorithm.pilot_size={size} samples pilots, which algorithm.name={self.name} does not; remove it, or "
                "set algorithm.name to adagrpo"
            )
        elif size >= self.largest_group:
            yield (
                f"algorithm.pilot_size={size} leaves no commit in any group, since the largest has "
                f"{self.largest_group} completions; lower it, or raise algorithm.group_size or "
                "algorithm.allocation.max_group"
            )
        if self.criterion.kind == "balanced":
            yield (
                f"algorithm.pilot_size={size} adds a commit to a group that meets algorithm.criterion.kind=balanced, "
                "which is balanced already; remove one of the two"
            )

    def _training_conflicts(self) -> Iterator[str]:
        """Yield conflicts of the completions to train on, and of the division of their batch."""
        if self.num_mini_batches is not None and self.num_mini_batches > self.prompts_per_step:
            yield (
                f"algorithm.num_mini_batches={self.num_mini_batches} divides a batch of algorithm.prompts_per_step="
                f"{self.prompts_per_step} groups, and each mini-batch needs one; lower the first or raise the second"
            )
        if self.train_size is not None and self.selection not in ("balanced", "max_variance"):
            yield (
                f"algorithm.train_size={self.train_size} is used by train_on=balanced and max_variance only, not by "
                f"train_on={self.selection}; remove it or change train_on"
            )

    @property
    def largest_advantage(self) -> float:
        """The bound of advantages; infinite if there is none.

        By default only those that a standard deviation divides are bounded, since it may be tiny. With `mean` the
        advantage of a single success is the number of rewards - 1, and a bound would change the objective.
        """
        if self.advantage_bound is not None:
            return self.advantage_bound
        return 10.0 if self.advantage_scale in ("std", "batch") else math.inf

    @property
    def selection(self) -> TrainOn:
        """`train_on`, or the default of the method."""
        return METHOD_DEFAULTS[self.name].train_on if self.train_on is None else self.train_on

    @property
    def trained_at_most(self) -> int | None:
        """`train_size`, or its default; None: all that `selection` does not leave out."""
        if self.selection == "max_variance" and self.train_size is None:
            return max(2, (self.group_size + 1) // 2)
        return self.train_size

    @property
    def allocates(self) -> bool:
        """Whether earlier results choose the sizes of groups."""
        return self.name == "adagrpo" and self.allocation.enabled

    @property
    def group_sizes(self) -> tuple[int, int]:
        """Fewest and most completions of a group, by the settings of the allocation."""
        return self.allocation.sizes(self.group_size) if self.allocates else (self.group_size, self.group_size)

    @property
    def shared_completions(self) -> int:
        """Completions that `prompts_per_step` groups share by the rule `value`."""
        completions = self.prompts_per_step * self.group_size
        if self.budget is None or self.budget_unit == "tokens":
            return completions
        return min(completions, self.budget)

    @property
    def largest_group(self) -> int:
        """The most completions that a group can get."""
        fewest, most = self.group_sizes
        if not self.allocates or self.allocation.rule == "informative":
            return max(most, self.group_size)  # that of a prompt without results
        return max(fewest, min(most, self.shared_completions - fewest * (self.prompts_per_step - 1)))

    @property
    def passes_per_batch(self) -> int:
        """Most passes over the batch of a step: `num_iterations`, or the default of the method."""
        return METHOD_DEFAULTS[self.name].num_iterations if self.num_iterations is None else self.num_iterations

    def passes_over(self, prompt_tokens: int, completion_tokens: int) -> int:
        """Passes over a batch whose prompts and completions have so many tokens: `num_iterations`, or the default.

        The default is a single pass if the prompts have more tokens: another one would take about as long as a step
        with new completions, which teach more.
        """
        short = self.num_iterations is None and prompt_tokens > completion_tokens
        return 1 if short else self.passes_per_batch

    @property
    def updates_per_pass(self) -> int:
        """Most updates in a pass: the mini-batches of a batch in which every group has an advantage."""
        return self.mini_batches_of(self.prompts_per_step)

    def mini_batches_of(self, groups: int) -> int:
        """Mini-batches of a batch in which so many groups have an advantage: `num_mini_batches`, or the default."""
        if self.num_mini_batches is not None:
            return self.num_mini_batches
        return METHOD_DEFAULTS[self.name].mini_batches_of(min(groups, self.prompts_per_step))

    @property
    def updates_per_batch(self) -> int:
        """Most updates on the batch of a step."""
        return self.passes_per_batch * self.updates_per_pass
