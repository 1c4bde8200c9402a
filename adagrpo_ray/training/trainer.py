"""The training loop. Control messages and reports pass through here, never batches or weights."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from adagrpo_ray.cards.card import Facts, adapter_card, package_versions
from adagrpo_ray.checkpoint.resume import FOLDER, Past, progress_of
from adagrpo_ray.cluster.authentication import takes_token
from adagrpo_ray.cluster.nodes import check_shared
from adagrpo_ray.cluster.placement import Placement, address
from adagrpo_ray.config.secrets import shown_command
from adagrpo_ray.config.tree import Config
from adagrpo_ray.errors import (
    AdaGRPOError,
    DivergedError,
    ExtensionError,
    LearnerLostError,
    RecordError,
    RewardError,
    RolloutError,
    StoppedError,
)
from adagrpo_ray.learner.actor import Collected, Pending
from adagrpo_ray.learner.schedule import learning_rate
from adagrpo_ray.learner.updates import TrainReport, update_metrics
from adagrpo_ray.model.identity import identify
from adagrpo_ray.runs import EvaluationRecord, GroupSample, Observer, StepRecord, Summary, summarize
from adagrpo_ray.runs.measured import ratio
from adagrpo_ray.stop import Stop
from adagrpo_ray.storage.places import join
from adagrpo_ray.training.actors import Actors, actors, any_dead, connect, get
from adagrpo_ray.training.memory import settled
from adagrpo_ray.training.preflight import Inputs

UNGUARDED = (
    "asks for no token, so that whoever reaches its ports can run anything on it; start it with RAY_AUTH_MODE=token "
    "(docs/jobs.md)"
)


def place_and_train(
    config: Config,
    inputs: Inputs,
    folder: Path,
    observer: Observer,
    past: Past | None = None,
    stop: Stop | None = None,
    home: str | None = None,
    patience_s: float = 0.0,
) -> Summary:
    """A whole run on checked inputs, or the rest of one with a `past`; leaves the adapter in `home`/adapter.

    `folder` is where `observer` writes, `home` the path or URL where the learners do: `folder` too unless given.
    Ends soon after `stop` is set, with a checkpoint of the last finished step; raises StoppedError where that was
    by a signal or no step was finished, LearnerLostError where a learner rank died, and ResourceError where a joined
    cluster has no room, after `patience_s` of waiting for it.
    """
    with connect(config, patience_s) as placement:
        config = settled(config, placement)
        if address(config) is not None:
            if not takes_token():
                observer.phase(f"warning: the Ray cluster at {address(config)} {UNGUARDED}")
            check_shared(home or str(folder))
        observer.phase(f"starting {_where(config, placement)}")
        with actors(config, placement, inputs, stop) as running:
            return train_on(running, config, folder, observer, past, stop, home, partial(_card, config, inputs))


def _card(config: Config, inputs: Inputs, summary: Summary) -> str:
    """The model card of the adapter that the run leaves, with the command that this process is."""
    prompts = (len(inputs.prompts.train), len(inputs.prompts.held_out))
    base = identify(config.model.path, inputs.model_path)
    command = shown_command(["python", *sys.orig_argv[1:]])
    return adapter_card(Facts(config, base, summary, command, prompts, package_versions(), inputs.template))


def _where(config: Config, placement: Placement) -> str:
    """The placement in one line."""
    turns = "both stay there" if not config.rollout.sleep else "vLLM sleeps while the learner trains"
    return ", ".join([*placement.describe().splitlines(), *([turns] if placement.shared else [])])


def train_on(
    running: Actors,
    config: Config,
    folder: Path,
    observer: Observer,
    past: Past | None = None,
    stop: Stop | None = None,
    home: str | None = None,
    card: Callable[[Summary], str] | None = None,
) -> Summary:
    """The steps and evaluations of `place_and_train`, on actors that are ready to begin; `card` words its card."""
    run = _Run(running, config, folder, observer, stop or Stop(), home or str(folder), card)
    try:
        return run.finish(past)
    except (StoppedError, DivergedError, RewardError, RolloutError, ExtensionError, RecordError) as error:
        kept = run.keep()
        raise type(error)(f"{error}; {kept}") from error


class _Run:
    """One run on its actors, with its records so far."""

    def __init__(
        self,
        running: Actors,
        config: Config,
        folder: Path,
        observer: Observer,
        stop: Stop,
        home: str,
        card: Callable[[Summary], str] | None,
    ) -> None:
        self._learners, self._config, self._folder, self._home = running.learners, config, folder, home
        self._observer, self._stop, self._card = observer, stop, card
        self._records: list[StepRecord] = []
        self._accuracies: dict[int, float] = {}  # of evaluations, by step
        self._saved = 0  # the step of the newest checkpoint
        self._skipped_in_a_row = 0  # updates, when the last one was skipped
        self._in_step = True  # the learners stand where the newest record says

    def finish(self, past: Past | None) -> Summary:
        """All steps that are left, evaluated, kept and summed up."""
        config, observer = self._config, self._observer
        before, last = self._begin(past)
        try:
            for step in range(len(self._records) + 1, config.run.steps + 1):
                try:
                    record, groups = self._step(step)
                except (DivergedError, RecordError):  # the learners have begun a step that has no record
                    self._in_step = False
                    raise
                self._records.append(record)
                observer.step(record)
                observer.samples(groups)
                self._check_skipped(record)
                ends = step == config.run.steps
                if ends or _due(config.evaluation.every, step):
                    last = self._evaluate("after" if ends else f"step {step}", step)
                if (
                    ends
                    or _due(config.checkpoint.every, step)
                    or (config.checkpoint.keep_best and _is_best(self._accuracies, step))
                ):
                    self._save_checkpoint()
        except StoppedError:
            if self._stop.interrupted or not self._records:
                raise
            observer.phase(f"stopped as asked; {self.keep()}")
        adapter = join(self._home, "adapter")
        summary = summarize(self._records, before, last, name=self._folder.name, folder=self._home, adapter=adapter)
        self._on_all("save_adapter", adapter, self._card(summary) if self._card else None)
        observer.summary(summary)
        return summary

    def keep(self) -> str:
        """A checkpoint of the last finished step, where there is none yet; what to say of it."""
        get(self._learners[0].abandon.remote())
        if not self._records:
            return "no step was finished, so there is nothing to keep"
        if not self._in_step and not self._saved:
            return "nothing was kept, since there was no checkpoint before (checkpoint.every)"
        if self._in_step and self._saved < self._records[-1].step:
            self._save_checkpoint()
        return f"step {self._saved} is in {join(self._home, FOLDER)}: go on with --resume {self._home}"

    def _begin(self, past: Past | None) -> tuple[EvaluationRecord | None, EvaluationRecord | None]:
        """Bring all actors to where the run begins or goes on; its first and last evaluation so far."""
        if past is None or past.checkpoint is None:
            self._on_all("sync", 0)
            before = self._evaluate("before", 0)
            return before, before
        self._on_all("load_checkpoint", past.source)
        self._on_all("sync", past.mark.step)
        self._records, self._saved = list(past.records), past.mark.step
        self._accuracies = {record.step: record.accuracy for record in past.evaluations}
        evaluations = past.evaluations or (None,)
        return evaluations[0], evaluations[-1]

    def _step(self, step: int) -> tuple[StepRecord, tuple[GroupSample, ...]]:
        """One step: sample and resample groups, one optimizer step on all ranks, the new adapter to all rollouts."""
        began = time.perf_counter()
        collected: Collected = self._patiently("collect", step, _ahead(self._config, step))
        sampled = time.perf_counter()
        reports: list[TrainReport] = []
        if collected.trained_tokens:
            batches = zip(self._learners, collected.batches, strict=True)
            reports = self._answers([learner.train.remote(batch) for learner, batch in batches])
        trained = time.perf_counter()
        sync, *_ = self._on_all("sync", step)
        ended = time.perf_counter()
        updates = self._config.algorithm.updates_per_batch
        record = StepRecord(
            step=step,
            step_time=ended - began,
            **asdict(collected.metrics),
            trained_tokens=collected.trained_tokens if any(report.first for report in reports) else 0,
            **update_metrics(reports, updates),
            learning_rate=reports[0].learning_rate if reports else learning_rate(self._config, step, updates - 1),
            weight_version=sync.version,
            sync_bytes=sync.sent_bytes,
            rollout_actors=collected.rollout_actors,
            rollout_restarts=collected.rollout_restarts,
            tokens_per_second=ratio(collected.metrics.generated_tokens, ended - began),
            time={"rollout": sampled - began, "train": trained - sampled, "sync": ended - trained},
        )
        if reports and reports[0].cause is not None:
            self._observer.phase(
                f"warning: step {step}: an update was skipped, because numbers were not finite: {reports[0].cause} "
                f"({reports[0].skipped_in_a_row} in a row)"
            )
            self._skipped_in_a_row = reports[0].skipped_in_a_row
        return record, collected.groups

    def _check_skipped(self, record: StepRecord) -> None:
        """DivergedError if an update of the step was skipped, and as many in a row as may be."""
        most, skipped = self._config.learner.max_skipped_updates, self._skipped_in_a_row
        if record.skipped_updates and most is not None and skipped >= most:
            raise DivergedError(
                f"step {record.step}: {skipped} updates in a row were skipped, because numbers in them were not finite "
                f"(learner.max_skipped_updates={most}); lower learner.learning_rate="
                f"{self._config.learner.learning_rate}, or read in samples.jsonl what the policy writes"
            )

    def _evaluate(self, label: str, step: int) -> EvaluationRecord | None:
        if not self._config.data.eval_prompts:
            return None
        record: EvaluationRecord = self._patiently("evaluate", step)
        self._observer.evaluation(label, record)
        self._accuracies[step] = record.accuracy
        return record

    def _save_checkpoint(self) -> None:
        progress = progress_of(self._config, self._folder, self._records)
        accuracies = self._accuracies if self._config.checkpoint.keep_best else {}
        self._on_all("save_checkpoint", join(self._home, FOLDER), progress, accuracies)
        self._saved = progress.step

    def _on_all(self, method: str, *arguments: Any) -> Any:
        """The answers of all learner ranks, which work together on it."""
        return self._answers([getattr(learner, method).remote(*arguments) for learner in self._learners])

    def _answers(self, calls: list[Any]) -> Any:
        """What the ranks answer. Where one dies, the others may be the first to fail, for want of its messages."""
        try:
            return get(calls)
        except LearnerLostError:
            raise
        except AdaGRPOError as error:
            if len(self._learners) > 1 and any_dead(self._learners, within_s=5.0):
                raise LearnerLostError("a learner rank died") from error
            raise

    def _patiently(self, method: str, *arguments: Any) -> Any:
        """Rank 0's answer to what may take long; StoppedError where the user does not want to wait for it."""
        while not self._stop.is_set():
            answer = get(getattr(self._learners[0], method).remote(*arguments))
            for notice in getattr(answer, "notices", ()):
                self._observer.phase(notice)
            if not isinstance(answer, Pending):
                return answer
        raise StoppedError("stopped as asked")


def _due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


def _is_best(accuracies: Mapping[int, float], step: int) -> bool:
    """Whether the evaluation after `step` is the best, the first of equal ones, after any training."""
    return step == max((at for at in accuracies if at > 0), key=accuracies.__getitem__, default=0)


def _ahead(config: Config, step: int) -> int:
    """The last step whose rollouts may begin with those of `step`; none is in flight where a checkpoint may be made."""
    periods = (config.checkpoint.every, config.evaluation.every if config.checkpoint.keep_best else 0)
    pauses = (math.ceil(step / every) * every for every in periods if every > 0)
    return min(step + config.algorithm.max_staleness, config.run.steps, *pauses)
