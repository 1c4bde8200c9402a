"""Settings of the run, its evaluation and its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field, field_validator

from adagrpo_ray.config.benchmarks import BenchmarkSettings
from adagrpo_ray.config.sampling import SamplingParams
from adagrpo_ray.config.section import Count, Location, PositiveInt, Section
from adagrpo_ray.config.yaml_text import Plain


class RunSettings(Section):
    """The run itself."""

    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=255,
        description="name of the run folder; null: name of the configuration, and the time",
    )
    output_dir: Location = Field("runs", description="parent of run folders: a path, or a URL such as s3://bucket/runs")
    steps: PositiveInt = Field(100, description="training steps")
    seed: Count = Field(0, description="seed of data order, sampling and initial LoRA weights")
    max_restarts: Count = Field(
        2, description="number of times that a run resumes from its last checkpoint after a learner rank died"
    )
    samples_per_step: Count = Field(
        4, description="groups of each step that samples.jsonl has in full, resampled ones first; 0: none"
    )
    report: bool = Field(True, description="write report.html and plots/ to the run folder at the end")
    ray_address: Location | None = Field(
        None,
        description="Ray cluster to join ('auto' or an address); null: RAY_ADDRESS if set, else start a local Ray",
    )


class EvaluationSettings(Section):
    """Accuracy on the held-out prompts, and on benchmarks."""

    samples: PositiveInt = Field(1, description="completions of each held-out prompt")
    sampling: SamplingParams = Field(SamplingParams(), description="sampling parameters of the evaluation")
    every: Count = Field(0, description="steps between evaluations during training; 0: only before and after")
    benchmarks: tuple[BenchmarkSettings, ...] = Field(
        (), description="benchmarks that each evaluation during training covers too, as in [gsm8k, aime24]"
    )

    @field_validator("benchmarks", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        """Return the list with each name alone as the section of that benchmark."""
        if not isinstance(value, list | tuple):
            return value
        return [{"name": each} if isinstance(each, str | Plain) else each for each in value]

    def conflicts(self) -> Iterator[str]:
        """Yield conflicts: all completions of a prompt would be the same, or a benchmark is named twice."""
        names = [benchmark.name for benchmark in self.benchmarks]
        if len(set(names)) < len(names):
            yield f"evaluation.benchmarks names a benchmark twice: {names}; give it once"
        if self.sampling.temperature > 0.0:
            return
        keys = {"evaluation.samples": self.samples}
        keys |= {f"evaluation.benchmarks.{i}.samples": b.samples or 1 for i, b in enumerate(self.benchmarks)}
        for key, samples in keys.items():
            if samples > 1:
                yield (
                    f"{key}={samples} with temperature 0 draws the same completion again; use samples=1 or a "
                    "temperature above 0"
                )


class CheckpointSettings(Section):
    """Checkpoints, from which a run resumes."""

    every: Count = Field(
        0, description="steps between checkpoints, which wait for all rollouts; 0: only one, at the end"
    )
    save_total_limit: PositiveInt = Field(2, description="number of checkpoints to keep, the newest ones")
    keep_best: bool = Field(
        False,
        description="also keep the checkpoint with the best held-out accuracy, named by the file best; one is made "
        "after each evaluation that is the best so far",
    )
