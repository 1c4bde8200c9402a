"""The steps whose rollouts may run ahead, and the steps after which a run is evaluated and saved."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from adagrpo_ray.checkpoint.files import Progress
from adagrpo_ray.config import Config
from adagrpo_ray.errors import RecordError
from adagrpo_ray.learner.replies import Collected, SyncReport
from adagrpo_ray.learner.updates import TrainReport
from adagrpo_ray.runs import Observer
from adagrpo_ray.runs.records import EvaluationRecord
from adagrpo_ray.runs.sampling_metrics import SamplingMetrics
from adagrpo_ray.stop import Stop
from adagrpo_ray.training import learners
from adagrpo_ray.training.actors import Actors
from adagrpo_ray.training.cadence import ahead, evaluates_after, saves_after
from adagrpo_ray.training.start import train_on
from tests.support.histories import ON_BENCHMARKS, STEP


@pytest.mark.parametrize(
    ("staleness", "every", "last"),
    [
        (0, 0, [1, 2, 3, 4, 5, 6, 7]),
        (1, 0, [2, 3, 4, 5, 6, 7, 7]),
        (3, 0, [4, 5, 6, 7, 7, 7, 7]),
        (1, 3, [2, 3, 3, 5, 6, 6, 7]),  # no rollout of step 4 is in flight when step 3 is saved
        (9, 2, [2, 2, 4, 4, 6, 6, 7]),
        (9, 1, [1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_rollouts_run_ahead_up_to_the_next_checkpoint(staleness: int, every: int, last: list[int]) -> None:
    overrides = ["run.steps=7", f"algorithm.max_staleness={staleness}", f"checkpoint.every={every}"]
    config = Config.load(None, overrides)
    assert [ahead(config, step) for step in range(1, 8)] == last


@pytest.mark.parametrize(("every", "last"), [(0, [2, 2, 4, 4, 6, 6, 7]), (3, [2, 2, 3, 4, 6, 6, 7])])
def test_rollouts_do_not_run_ahead_past_an_evaluation_that_may_be_the_best(every: int, last: list[int]) -> None:
    overrides = ["run.steps=7", "algorithm.max_staleness=9", "evaluation.every=2", f"checkpoint.every={every}"]
    config = Config.load(None, [*overrides, "checkpoint.keep_best=true"])
    assert [ahead(config, step) for step in range(1, 8)] == last


def test_an_accuracy_is_the_best_if_it_beats_all_after_training() -> None:
    config = Config.load(None, ["evaluation.every=2", "checkpoint.keep_best=true"])
    accuracies: dict[int, float] = {0: 0.9}
    found = []
    for step, accuracy in ((2, 0.25), (4, 0.5), (6, 0.5), (8, 0.25), (10, 0.75)):
        accuracies[step] = accuracy
        found += [s for s in (step, step + 1) if saves_after(config, s, accuracies)]
    assert found == [2, 4, 10]


def test_evaluations_and_checkpoints_follow_their_settings_and_the_last_step() -> None:
    config = Config.load(None, ["run.steps=5", "evaluation.every=2", "checkpoint.every=3"])
    assert [step for step in range(1, 6) if evaluates_after(config, step)] == [2, 4, 5]
    assert [step for step in range(1, 6) if saves_after(config, step, {0: 0.1, 2: 0.5})] == [3, 5]
    best = Config.load(None, ["run.steps=5", "evaluation.every=2", "checkpoint.keep_best=true"])
    assert [step for step in range(1, 6) if saves_after(best, step, {0: 0.1, 2: 0.5, 4: 0.25})] == [2, 5]
    never = Config.load(None, ["run.steps=5"])
    assert [step for step in range(1, 6) if evaluates_after(never, step) or saves_after(never, step, {})] == [5]


class Learner:
    """A learner rank whose third step has a metric that is not finite, as `fault` selects; records its checkpoints."""

    def __init__(self, fault: str) -> None:
        self.fault, self.steps, self.saved = fault, 0, list[int]()
        self.calls: list[str] = []

    def __getattr__(self, method: str) -> SimpleNamespace:
        return SimpleNamespace(remote=partial(getattr(type(self), f"do_{method}"), self))

    def do_collect(self, step: int, last: int) -> Collected:
        self.calls.append(f"collect {step} to {last}")
        metrics = SamplingMetrics(**{f.name: getattr(STEP, f.name) for f in fields(SamplingMetrics)})
        if self.fault == "collect" and step == 3:
            metrics = replace(metrics, reward=math.nan)
        return Collected((None,), 7, 1, metrics, (), 1, 0, ())

    def do_train(self, batch: object) -> TrainReport:
        self.steps += 1
        self.calls.append("train")
        rate = math.nan if self.fault == "train" and self.steps == 3 else 0.5
        return TrainReport(None, None, rate, skipped=0, cause=None, skipped_in_a_row=0)

    def do_sync(self, version: int, wait: bool) -> SyncReport:
        self.calls.append(f"sync {version}, {'wait' if wait else 'ahead'}")
        return SyncReport(version, 1, 0.5)

    def do_evaluate(self, step: int) -> EvaluationRecord:
        return replace(ON_BENCHMARKS, step=step, accuracy=None, accuracy_by_difficulty={}, samples=0)

    def do_save_adapter(self, folder: str, card: str) -> None: ...

    def do_abandon(self) -> None: ...

    def do_save_checkpoint(self, folder: str, progress: Progress, accuracies: object) -> None:
        self.calls.append(f"save {progress.step}")
        self.saved.append(progress.step)


@pytest.mark.faults
@pytest.mark.parametrize(("fault", "metric", "trained"), [("train", "learning_rate", 3), ("collect", "reward", 2)])
@pytest.mark.parametrize(("every", "kept"), [(1, "step 2 is in .*continue with --resume"), (0, "nothing was kept")])
def test_a_metric_that_is_not_finite_ends_the_run_without_a_checkpoint_of_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, kept: str, fault: str, metric: str, trained: int
) -> None:
    monkeypatch.setattr(learners, "get", lambda answers: answers)
    learner = Learner(fault)
    running = Actors((learner,), ())
    config = Config.load(None, ["run.steps=5", "data.eval_prompts=0", f"checkpoint.every={every}"])
    with pytest.raises(RecordError, match=rf"\.{metric} is nan.*fault of adagrpo_ray.*; {kept}"):
        train_on(running, config, tmp_path, Observer(), None, Stop(), str(tmp_path), str)
    assert learner.steps == trained
    assert learner.saved == ([1, 2] if every else [])


@pytest.mark.parametrize(
    ("staleness", "expected"),
    [
        (0, [(1, "wait"), (2, "wait"), (3, "wait"), (4, "wait"), (5, "wait")]),
        (1, [(2, "ahead"), (3, "ahead"), (3, "wait"), (5, "ahead"), (5, "wait")]),
        (2, [(3, "ahead"), (3, "ahead"), (3, "wait"), (5, "ahead"), (5, "wait")]),
    ],
)
def test_a_step_waits_for_its_sync_unless_rollouts_of_the_next_step_are_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, staleness: int, expected: list[tuple[int, str]]
) -> None:
    """So no version is on its way when a checkpoint is written and when the run ends."""
    monkeypatch.setattr(learners, "get", lambda answers: answers)
    learner = Learner("")
    overrides = ["run.steps=5", "data.eval_prompts=0", "checkpoint.every=3", f"algorithm.max_staleness={staleness}"]
    running = Actors((learner,), ())
    train_on(running, Config.load(None, overrides), tmp_path, Observer(), None, Stop(), str(tmp_path), str)
    wanted = ["sync 0, wait"]
    for step, (last, way) in enumerate(expected, 1):
        wanted += [f"collect {step} to {last}", "train", f"sync {step}, {way}", *([f"save {step}"] * (step in (3, 5)))]
    assert learner.calls == wanted


def test_benchmarks_are_evaluated_without_held_out_prompts_and_select_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Seen(Observer):
        def __init__(self) -> None:
            self.labels = list[str]()

        def evaluation(self, label: str, record: EvaluationRecord) -> None:
            self.labels.append(f"{label} {record.step}")

    monkeypatch.setattr(learners, "get", lambda answers: answers)
    learner, observer = Learner(""), Seen()
    overrides = ["run.steps=4", "data.eval_prompts=0", "evaluation.every=2", "evaluation.benchmarks=[gsm8k, aime24]"]
    running = Actors((learner,), ())
    summary = train_on(running, Config.load(None, overrides), tmp_path, observer, None, Stop(), str(tmp_path), str)
    assert observer.labels == ["before 0", "step 2 2", "after 4"]
    assert (summary.eval_accuracy_before, summary.eval_accuracy_after) == (None, None)
    assert summary.benchmark_accuracy_after == ON_BENCHMARKS.benchmark_accuracy
    assert learner.saved == [4]
