"""Settings of the run, its evaluation and its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from adagrpo_ray.config.sampling import SamplingParams
from adagrpo_ray.config.section import Count, Location, PositiveInt, Section


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
    """Accuracy on the held-out prompts."""

    samples: PositiveInt = Field(1, description="completions of each held-out prompt")
    sampling: SamplingParams = Field(SamplingParams(), description="sampling parameters of the evaluation")
    every: Count = Field(0, description="steps between evaluations during training; 0: only before and after")

    def conflicts(self) -> Iterator[str]:
        """Yield a conflict if all completions of a prompt would be the same."""
        if self.samples > 1 and self.sampling.temperature == 0.0:
            yield (
                f"evaluation.samples={self.samples} with temperature 0 draws the same completion again; "
                "use samples=1 or a temperature above 0"
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
