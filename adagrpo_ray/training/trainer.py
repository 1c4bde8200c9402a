"""The training loop. Only control messages and reports pass through it, never batches or weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adagrpo_ray.checkpoint.resume import Past
from adagrpo_ray.config.tree import Config
from adagrpo_ray.errors import DivergedError, RecordError, StoppedError
from adagrpo_ray.learner.updates import TrainReport
from adagrpo_ray.runs import EvaluationRecord, GroupSample, Observer, StepRecord, Summary, summarize
from adagrpo_ray.stop import Stop
from adagrpo_ray.storage.places import join
from adagrpo_ray.training.cadence import ahead, evaluates_after, saves_after
from adagrpo_ray.training.checkpoints import Checkpoints
from adagrpo_ray.training.learners import Learners
from adagrpo_ray.training.skipped import check_skipped, warn_of_skipped
from adagrpo_ray.training.step_record import step_record


@dataclass(frozen=True)
class FinishedStep:
    """A step that all ranks have finished."""

    record: StepRecord
    groups: tuple[GroupSample, ...]  # for samples.jsonl
    updates: TrainReport | None  # of rank 0; None if there was nothing to train on


class Trainer:
    """The loop of one run on its learners; its `checkpoints` have the finished steps."""

    def __init__(
        self,
        learners: Learners,
        config: Config,
        folder: Path,
        observer: Observer,
        stop: Stop,
        home: str,
        card: Callable[[Summary], str],
    ) -> None:
        self._learners, self._config, self._folder, self._home = learners, config, folder, home
        self._observer, self._stop, self._card = observer, stop, card
        self.checkpoints = Checkpoints(learners, config, folder, home)

    def run(self, past: Past | None) -> Summary:
        """Do the remaining steps with their evaluations and checkpoints, write the adapter, and return the summary."""
        config, observer, kept = self._config, self._observer, self.checkpoints
        before, last = self._begin(past)
        try:
            for step in range(len(kept.records) + 1, config.run.steps + 1):
                try:
                    finished = self._step(step)
                except (DivergedError, RecordError):  # may follow a collection, which has drawn the step's prompts
                    kept.between_steps = False
                    raise
                self._record(finished)
                if evaluates_after(config, step):
                    last = self._evaluate("after" if step == config.run.steps else f"step {step}", step)
                if saves_after(config, step, kept.accuracies):
                    kept.save()
        except StoppedError:
            if self._stop.interrupted or not kept.records:
                raise
            observer.phase(f"stopped as asked; {kept.keep()}")
        adapter = join(self._home, "adapter")
        totals = (kept.records, before, last, kept.evaluations)
        summary = summarize(*totals, name=self._folder.name, folder=self._home, adapter=adapter)
        self._learners.on_all("save_adapter", adapter, self._card(summary))
        observer.summary(summary)
        return summary

    def _begin(self, past: Past | None) -> tuple[EvaluationRecord | None, EvaluationRecord | None]:
        """Set the state that the run begins or continues with; returns its first and last evaluation so far."""
        if past is None or past.checkpoint is None:
            self._learners.sync(0)
            before = self._evaluate("before", 0)
            return before, before
        self._learners.sync(self.checkpoints.load(past))
        evaluations = past.evaluations or (None,)
        return evaluations[0], evaluations[-1]

    def _step(self, step: int) -> FinishedStep:
        """Do one step: sample and resample groups, update on all ranks, and sync the adapter to all rollout actors.

        If rollouts of the next step are in flight, only those of later steps wait for the sync.
        """
        began, last = time.perf_counter(), ahead(self._config, step)
        collected = self._learners.collect(step, last)
        self.checkpoints.between_steps = False  # until this step has its record
        sampled = time.perf_counter()
        reports = self._learners.train(collected.batches) if collected.trained_tokens else []
        trained = time.perf_counter()
        sync = self._learners.sync(step, wait=last == step)
        ended = time.perf_counter()
        seconds = {"rollout": sampled - began, "train": trained - sampled, "sync": ended - trained}
        record = step_record(self._config, step, collected, reports, sync, seconds)
        return FinishedStep(record, collected.groups, reports[0] if reports else None)

    def _record(self, finished: FinishedStep) -> None:
        """Pass a step to the observer. Raises DivergedError if too many updates in a row were skipped."""
        step = finished.record.step
        warn_of_skipped(step, finished.updates, self._observer.phase)
        self.checkpoints.add(finished.record)
        self._observer.step(finished.record)
        self._observer.samples(finished.groups)
        check_skipped(step, finished.updates, self._config.learner)

    def _evaluate(self, label: str, step: int) -> EvaluationRecord | None:
        if not (self._config.data.eval_prompts or self._config.evaluation.benchmarks):
            return None
        record = self._learners.evaluate(step)
        self._observer.evaluation(label, record)
        self.checkpoints.evaluations.append(record)
        return record
