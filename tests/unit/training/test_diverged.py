"""A run that skips several updates in a row ends with a checkpoint and an error."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from adagrpo_ray.algorithm.update_statistics import Aggregate, UpdateStatistics
from adagrpo_ray.config import Config
from adagrpo_ray.config.run_settings import EvaluationSettings
from adagrpo_ray.errors import ConfigError, DivergedError, RolloutError
from adagrpo_ray.learner.replies import Collected, SyncReport
from adagrpo_ray.learner.updates import TrainReport, UpdateReport, of_pass, update_metrics
from adagrpo_ray.rewards import Scores
from adagrpo_ray.runs import Observer, StepRecord
from adagrpo_ray.runs.sampling_metrics import SamplingMetrics
from adagrpo_ray.sampling.batch import broken_samples
from adagrpo_ray.sampling.evaluate import evaluate
from adagrpo_ray.stop import Stop
from adagrpo_ray.training import learners
from adagrpo_ray.training.actors import Actors
from adagrpo_ray.training.start import train_on
from adagrpo_ray.types import Completion, GenerationRequest, Prompt
from tests.support.builders import make_attempt, make_completion, make_group, make_prompt
from tests.support.histories import STEP

METRICS = SamplingMetrics(**{name: getattr(STEP, name) for name in SamplingMetrics.__dataclass_fields__})


def statistics(loss: float, ratio: float = 1.0) -> UpdateStatistics:
    one = Aggregate(1, ratio, ratio, ratio)
    return UpdateStatistics(
        loss=loss,
        tokens=1,
        ratio=one,
        logp_difference=one,
        clipped_high=int(ratio > 1),
        entropy=Aggregate(1, 2.0, 2.0, 2.0),
    )


def made(loss: float = 0.5) -> TrainReport:
    update = UpdateReport(statistics(loss), 1.5)
    return TrainReport(update, update, 1e-5, 0, None, 0)


def skipped(in_a_row: int) -> TrainReport:
    return TrainReport(None, None, 1e-5, 1, "loss", in_a_row)


class Learner:
    """One rank whose updates end with `reports`; None for a step with nothing to train on."""

    def __init__(
        self, reports: Sequence[TrainReport | None], sync_fails: int | None = None, error: Exception | None = None
    ) -> None:
        self.reports, self.sync_fails, self.saved = list(reports), sync_fails, []
        self.error = error or DivergedError("after step 2 weights are not finite")

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: getattr(self, f"do_{name}")(*arguments))

    def do_collect(self, step: int, last: int) -> Collected:
        tokens = 0 if self.reports[0] is None else 7
        return Collected(("batch",), tokens, 2, METRICS, (), 1, 0, ())

    def do_train(self, batch: Any) -> TrainReport:
        report = self.reports[0]
        assert report is not None
        return report

    def do_sync(self, version: int, wait: bool) -> SyncReport:
        if version:
            self.reports.pop(0)
        if version == self.sync_fails:
            raise self.error
        return SyncReport(version, 1, 0.5)

    def do_abandon(self) -> None: ...

    def do_save_adapter(self, folder: str, card: str) -> None: ...

    def do_save_checkpoint(self, folder: str, progress: Any, accuracies: Any) -> None:
        self.saved.append(progress.step)


class Seen(Observer):
    def __init__(self) -> None:
        self.phases: list[str] = []
        self.steps: list[StepRecord] = []

    def phase(self, text: str) -> None:
        self.phases.append(text)

    def step(self, record: StepRecord) -> None:
        self.steps.append(record)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace actors by objects of this process."""
    monkeypatch.setattr(learners, "get", lambda answer: answer)


def run(folder: Path, learner: Learner, *overrides: str, seen: Seen | None = None) -> Seen:
    steps = f"run.steps={len(learner.reports)}"
    config = Config.load(None, [steps, "data.eval_prompts=0", "learner.learning_rate=1e-3", *overrides])
    for name in ("metrics.jsonl", "evaluations.jsonl", "samples.jsonl"):
        (folder / name).touch()
    seen = seen or Seen()
    train_on(Actors((learner,), None), config, folder, seen, None, Stop(), str(folder), str)
    return seen


@pytest.mark.usefixtures("here")
def test_skipped_updates_in_a_row_end_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    learner, seen = Learner([made(), skipped(1), skipped(2), skipped(3), made()]), Seen()
    wanted = (
        r"step 4: 3 updates in a row were skipped.*learner\.max_skipped_updates=3.*learner\.learning_rate=0\.001"
        rf".*step 4 is in {tmp_path}/checkpoints: continue with --resume {tmp_path}"
    )
    with pytest.raises(DivergedError, match=wanted):
        run(tmp_path, learner, seen=seen)
    assert learner.saved == [4]
    assert [record.skipped_updates for record in seen.steps] == [0, 1, 1, 1]
    assert [record.loss for record in seen.steps] == [0.5, None, None, None]
    assert [(record.trained_tokens, record.passes) for record in seen.steps] == [(7, 2), (0, 0), (0, 0), (0, 0)]
    assert [text for text in seen.phases if "skipped" in text] == [
        f"warning: step {step}: an update was skipped, because numbers were not finite: loss ({count} in a row)"
        for step, count in ((2, 1), (3, 2), (4, 3))
    ]


@pytest.mark.usefixtures("here")
def test_an_update_that_is_made_resets_the_count(tmp_path: Path) -> None:
    learner = Learner([skipped(1), skipped(2), made(), skipped(1), None, skipped(2)])
    seen = run(tmp_path, learner)
    assert [record.skipped_updates for record in seen.steps] == [1, 1, 0, 1, 0, 1]
    assert all(record.tokens_per_second == record.generated_tokens / record.step_time for record in seen.steps)
    assert learner.saved == [6]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("most", "ends"), [("1", 1), ("2", 2), ("null", None)])
def test_the_limit_of_skipped_updates_is_a_setting(tmp_path: Path, most: str, ends: int | None) -> None:
    learner = Learner([skipped(1), skipped(2), skipped(3), skipped(4)])
    setting = f"learner.max_skipped_updates={most}"
    if ends is None:
        assert len(run(tmp_path, learner, setting).steps) == 4
    else:
        with pytest.raises(DivergedError, match=f"step {ends}: {ends} updates"):
            run(tmp_path, learner, setting)


def test_a_limit_of_zero_skipped_updates_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"learner\.max_skipped_updates"):
        Config.load(None, ["learner.max_skipped_updates=0"])


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("skipped", [False, True])
def test_no_checkpoint_is_written_if_a_sync_fails(tmp_path: Path, skipped: bool) -> None:
    """Also if the step trained on nothing: the sampler has drawn the prompts of the step."""
    for settings, saved, kept in (([], [], "nothing was kept"), (["checkpoint.every=1"], [1], "step 1 is in")):
        reports = [made(), None if skipped else made(), made()]
        learner = Learner(reports, sync_fails=2, error=RolloutError("no rollout actor is left"))
        with pytest.raises(RolloutError, match=rf"no rollout actor is left; {kept}"):
            run(tmp_path, learner, *settings)
        assert learner.saved == saved


@pytest.mark.usefixtures("here")
def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    learner = Learner([made(), made(), made()], sync_fails=2)
    with pytest.raises(DivergedError, match=r"weights are not finite; nothing was kept.*checkpoint\.every"):
        run(tmp_path, learner)
    assert learner.saved == []
    learner = Learner([made(), made(), made()], sync_fails=2)
    with pytest.raises(DivergedError, match=r"weights are not finite; step 1 is in"):
        run(tmp_path, learner, "checkpoint.every=1")
    assert learner.saved == [1]


@pytest.mark.usefixtures("here")
def test_the_learning_rate_of_a_step_without_an_update_is_that_of_the_schedule(tmp_path: Path) -> None:
    learner = Learner([None, None, None, None])
    seen = run(
        tmp_path,
        learner,
        "algorithm.num_iterations=1",
        "algorithm.num_mini_batches=1",
        "learner.schedule=linear",
        "learner.warmup_ratio=0.0",
    )
    assert [record.learning_rate for record in seen.steps] == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_metrics_are_of_the_first_pass_and_the_last() -> None:
    """Metrics of two ranks are merged; those of the ratio are of the last pass, since it is 1 in the first."""
    ranks = [
        TrainReport(
            UpdateReport(statistics(0.25 * rank), 3.0), UpdateReport(statistics(1.0 * rank, 1.5), 4.0), 1e-5, 0, None, 0
        )
        for rank in (1, 2)
    ]
    metrics = update_metrics(ranks, passes=3)
    assert (metrics["loss"], metrics["grad_norm"], metrics["entropy"]) == (0.75, 3.0, 2.0)
    assert (metrics["last_update_loss"], metrics["last_update_grad_norm"], metrics["last_update_entropy"]) == (
        3.0,
        4.0,
        2.0,
    )
    assert (metrics["policy_ratio_max"], metrics["clip_ratio_region_mean"], metrics["skipped_updates"]) == (1.5, 1.0, 0)
    once = update_metrics(ranks, passes=1)
    assert [once[f"last_update_{name}"] for name in ("loss", "kl", "entropy", "grad_norm")] == [None] * 4
    nothing = update_metrics([], passes=3)
    assert {value for name, value in nothing.items() if name != "entropy_by_difficulty"} == {None, 0}
    assert replace(STEP, **nothing).loss is None  # all are fields of a record


def test_report_of_a_pass_has_the_tokens_of_all_mini_batches_and_means_of_loss_and_norm() -> None:
    assert of_pass([]) is None
    report = of_pass([UpdateReport(statistics(1.0), 3.0), UpdateReport(statistics(2.0, 1.5), 5.0)])
    assert report is not None
    one = statistics(1.0)
    assert (report.statistics.loss, report.grad_norm) == (1.5, 4.0)
    assert (report.statistics.tokens, report.statistics.ratio.maximum) == (2 * one.tokens, 1.5)
    assert report.statistics.logp_difference == one.logp_difference  # of one token


def test_completions_that_are_not_finite_reach_the_learner_with_any_rewards() -> None:
    """Equal rewards have no advantage, and the group would be left out."""
    good, bad = make_completion(3), make_completion(2)
    bad = replace(bad, logprobs=np.array([0.0, math.nan], np.float32))
    attempt = replace(make_attempt([0.0, 0.0]), completions=(good, bad))
    assert broken_samples([make_group([1.0, 0.0])]) == ()
    (sample,) = broken_samples([make_group([1.0, 0.0]), make_group(attempt)])
    assert (len(sample.token_ids), sample.advantage, sample.token_weights.tolist()) == (2, 0.0, [0.0, 0.0])
    assert not np.isfinite(sample.behaviour_logprobs).all()


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_an_evaluation_of_a_model_that_is_not_finite_is_refused(bad: float) -> None:
    async def generate(request: GenerationRequest) -> tuple[Completion, ...]:
        return (replace(make_completion(2), logprobs=np.array([-1.0, bad], np.float32)),)

    async def score(prompt: Prompt, group: Sequence[Completion]) -> tuple[Scores, NDArray[np.bool_]]:
        zero = np.zeros(len(group), np.float32)
        return Scores(zero, zero[:, None], None), zero > 0

    with pytest.raises(DivergedError, match="not finite"):
        asyncio.run(evaluate([make_prompt("one")], EvaluationSettings(), generate, score, max_new_tokens=8, seed=0))
