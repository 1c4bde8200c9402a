"""Settings of the run itself, of what it measures, and of what it keeps."""

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
        description="folder of the run; null: config name and time",
    )
    output_dir: Location = Field(
        "runs", description="where run folders are made: a path, or a URL as in s3://bucket/runs"
    )
    steps: PositiveInt = Field(100, description="training steps")
    seed: Count = Field(0, description="seed of data order, sampling and initial LoRA weights")
    max_restarts: Count = Field(
        2, description="how often a run goes on from its last checkpoint by itself when a learner rank dies"
    )
    samples_per_step: Count = Field(
        4, description="groups of each step that samples.jsonl shows in full, resampled ones first; 0: none"
    )
    report: bool = Field(True, description="leave report.html and plots/ in the run folder at the end")
    ray_address: Location | None = Field(
        None,
        description="Ray cluster to join ('auto' or an address); null: RAY_ADDRESS if set, else a local one",
    )


class EvaluationSettings(Section):
    """Accuracy on the held-out prompts."""

    samples: PositiveInt = Field(1, description="completions of each held-out prompt")
    sampling: SamplingParams = Field(SamplingParams(), description="their sampling parameters")
    every: Count = Field(0, description="steps between measurements while training; 0: only before and after")

    def conflicts(self) -> Iterator[str]:
        """More than one completion of each prompt, all of them the same."""
        if self.samples > 1 and self.sampling.temperature == 0.0:
            yield (
                f"evaluation.samples={self.samples} with temperature 0 draws the same completion again; "
                "use samples=1 or a temperature above 0"
            )


class CheckpointSettings(Section):
    """What a run keeps to go on from."""

    every: Count = Field(0, description="steps between checkpoints, which wait for all rollouts; 0: one at the end")
    save_total_limit: PositiveInt = Field(2, description="how many checkpoints stay, the newest ones")
    keep_best: bool = Field(
        False,
        description="the checkpoint with the best held-out accuracy stays too, named by the file best; "
        "one is made after each measurement that is the best so far",
    )
