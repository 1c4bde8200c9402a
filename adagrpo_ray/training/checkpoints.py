"""The finished steps of a run, and the checkpoints that keep them."""

from __future__ import annotations

from pathlib import Path

from adagrpo_ray.checkpoint.resume import FOLDER, Past, progress_of
from adagrpo_ray.config.tree import Config
from adagrpo_ray.runs import EvaluationRecord, StepRecord
from adagrpo_ray.storage.places import join
from adagrpo_ray.training.learners import Learners


class Checkpoints:
    """The records and evaluations of a run so far, and its checkpoints in `home`, a path or URL."""

    def __init__(self, learners: Learners, config: Config, folder: Path, home: str) -> None:
        self._learners, self._config, self._folder, self._home = learners, config, folder, home
        self.records: list[StepRecord] = []
        self.evaluations: list[EvaluationRecord] = []
        self.between_steps = True  # whether sampler and weights are in the state of the newest record, not past it
        self._saved = 0  # the step of the newest checkpoint

    def add(self, record: StepRecord) -> None:
        """Add the record of a step that all ranks have finished; sampler and weights are in its state."""
        self.records.append(record)
        self.between_steps = True

    @property
    def accuracies(self) -> dict[int, float]:
        """The accuracies on held-out prompts, by step: benchmarks select no checkpoint."""
        return {record.step: record.accuracy for record in self.evaluations if record.accuracy is not None}

    def load(self, past: Past) -> int:
        """Load the checkpoint of a past run on all ranks; returns its step."""
        self._learners.on_all("load_checkpoint", past.source)
        self.records, self._saved = list(past.records), past.mark.step
        self.evaluations = list(past.evaluations)
        return self._saved

    def save(self) -> None:
        """Write a checkpoint of the newest record's step."""
        progress = progress_of(self._config, self._folder, self.records)
        accuracies = self.accuracies if self._config.checkpoint.keep_best else {}
        self._learners.on_all("save_checkpoint", join(self._home, FOLDER), progress, accuracies)
        self._saved = progress.step

    def keep(self) -> str:
        """Write a checkpoint of the last finished step if there is none yet; returns a clause about it."""
        self._learners.abandon()
        if not self.records:
            return "no step was finished, so there is nothing to keep"
        if not self.between_steps and not self._saved:
            return "nothing was kept, since there was no checkpoint before (checkpoint.every)"
        if self.between_steps and self._saved < self.records[-1].step:
            self.save()
        return f"step {self._saved} is in {join(self._home, FOLDER)}: continue with --resume {self._home}"
