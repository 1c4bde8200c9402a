"""The pydantic tree of all settings, with one file per section. The description of a field is its documentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import Field

from adagrpo_ray.config import conflicts
from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.config.data import ArithmeticSettings, DataSettings
from adagrpo_ray.config.environments import EnvironmentSettings
from adagrpo_ray.config.learner import LearnerSettings
from adagrpo_ray.config.model import ModelSettings
from adagrpo_ray.config.reading import read_settings
from adagrpo_ray.config.reasoning_gym import ReasoningGymSettings
from adagrpo_ray.config.rewards import RewardsSettings
from adagrpo_ray.config.rollout import RolloutSettings
from adagrpo_ray.config.run_settings import CheckpointSettings, EvaluationSettings, RunSettings
from adagrpo_ray.config.section import Section
from adagrpo_ray.config.tracking import TrackingSettings


class Config(Section):
    """All settings of a run."""

    run: RunSettings = Field(RunSettings(), description="the run itself")
    model: ModelSettings = Field(ModelSettings(), description="base model and adapter")
    arithmetic: ArithmeticSettings = Field(ArithmeticSettings(), description="the embedded task and tiny model")
    reasoning_gym: ReasoningGymSettings = Field(ReasoningGymSettings(), description="generated reasoning tasks")
    data: DataSettings = Field(DataSettings(), description="prompts")
    rewards: RewardsSettings = Field(RewardsSettings(), description="scoring")
    environment: EnvironmentSettings = Field(EnvironmentSettings(), description="episodes with environments and tools")
    algorithm: AlgorithmSettings = Field(AlgorithmSettings(), description="adaptive GRPO")
    rollout: RolloutSettings = Field(RolloutSettings(), description="vLLM rollout actors")
    learner: LearnerSettings = Field(LearnerSettings(), description="DeepSpeed learner")
    evaluation: EvaluationSettings = Field(EvaluationSettings(), description="held-out accuracy")
    checkpoint: CheckpointSettings = Field(CheckpointSettings(), description="checkpoints to resume from")
    tracking: TrackingSettings = Field(TrackingSettings(), description="trackers in addition to TensorBoard")

    @classmethod
    def load(cls, path: str | Path | None = None, overrides: Sequence[str] | Mapping[str, object] = ()) -> Config:
        """Return the configuration in a YAML file, changed by `overrides`; see `config.reading.read_settings`."""
        return read_settings(cls, path, overrides)

    def conflicts(self) -> Iterator[str]:
        """Yield conflicts between settings of two or more sections."""
        yield from conflicts.of_texts(self.model_dump())
        yield from conflicts.of_problems(self.reasoning_gym, self.data, self.rewards)
        yield from conflicts.of_environment(self.environment, self.data, self.rewards, self.rollout)
        yield from conflicts.of_sampling(self.algorithm, self.rollout)
        yield from conflicts.of_criterion(self.algorithm, self.rewards)
        yield from conflicts.of_schedule(self.run, self.algorithm, self.learner)
        yield from conflicts.of_best_checkpoint(self.checkpoint, self.evaluation, self.data)

    @property
    def resolved(self) -> dict[str, int | str | None]:
        """The values in effect of settings whose defaults depend on the method, by key; None: no limit."""
        a = self.algorithm
        return {
            "algorithm.train_on": a.selection,
            "algorithm.train_size": a.trained_at_most,
            "algorithm.num_iterations": a.num_iterations or _at_most(a.passes_per_batch),
            "algorithm.num_mini_batches": a.num_mini_batches or _at_most(a.updates_per_pass),
        }

    @property
    def uses_phases(self) -> bool:
        """Whether some completions may be sampled with other parameters after the thought."""
        a = self.algorithm
        rungs = [rung for trigger in a.triggers for rung in trigger.rungs]
        own = a.ladder is not None  # its parameters are not known beforehand
        return own or any(s.answer is not None for s in (a.sampling, self.evaluation.sampling, *rungs))


def _at_most(number: int) -> int | str:
    """The number of a setting that a step may have fewer of; 1 is exact."""
    return f"at most {number}" if number > 1 else number
