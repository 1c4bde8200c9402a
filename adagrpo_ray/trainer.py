"""The training loop. Control messages and reports pass through here, never samples or weights."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, fields
from pathlib import Path

from adagrpo_ray.algorithm.loss import LossSums
from adagrpo_ray.cluster import Actors, actors, connect, get
from adagrpo_ray.config.tree import Config
from adagrpo_ray.memory import settled
from adagrpo_ray.observe import EvaluationRecord, Observer, StepRecord, Summary, summarize
from adagrpo_ray.placement import Placement
from adagrpo_ray.preflight import Inputs
from adagrpo_ray.resume import FOLDER, Past, progress_of
from adagrpo_ray.storage import join


def train(
    config: Config, inputs: Inputs, folder: Path, observer: Observer, past: Past | None = None, home: str | None = None
) -> Summary:
    """A whole run on checked inputs, or the rest of one with a `past`; leaves the adapter in `home`/adapter.

    `folder` is where `observer` writes, `home` the path or URL where the learners do: `folder` too unless given.
    """
    with connect(config) as placement:
        config = settled(config, placement)
        observer.phase(f"starting {_where(config, placement)}")
        with actors(config, placement, inputs) as running:
            return train_on(running, config, folder, observer, past, home)


def _where(config: Config, placement: Placement) -> str:
    """The placement in one line."""
    turns = "both stay there" if not config.rollout.sleep else "vLLM sleeps while the learner trains"
    return ", ".join([*placement.describe().splitlines(), *([turns] if placement.shared else [])])


def train_on(
    running: Actors, config: Config, folder: Path, observer: Observer, past: Past | None = None, home: str | None = None
) -> Summary:
    """The steps and measurements of `train`, on actors that are ready to begin."""
    home = home or str(folder)
    records, before, last = _begin(running, config, observer, past)
    for step in range(len(records) + 1, config.run.steps + 1):
        records.append(_step(running, config, step))
        observer.step(records[-1])
        ends = step == config.run.steps
        if ends or _due(config.evaluation.every, step):
            last = _evaluate(running, config, observer, "after" if ends else f"step {step}", step)
        if ends or _due(config.checkpoint.every, step):
            progress = progress_of(config, folder, records)
            get([learner.save_checkpoint.remote(join(home, FOLDER), progress) for learner in running.learners])
    adapter = join(home, "adapter")
    get([learner.save_adapter.remote(adapter) for learner in running.learners])
    summary = summarize(records, before, last, name=folder.name, folder=home, adapter=adapter)
    observer.summary(summary)
    return summary


def _begin(
    running: Actors, config: Config, observer: Observer, past: Past | None
) -> tuple[list[StepRecord], EvaluationRecord | None, EvaluationRecord | None]:
    """Bring all actors to where the run begins or goes on; its records so far, first and last measurement."""
    if past is None or past.checkpoint is None:
        get([learner.sync.remote(0) for learner in running.learners])
        before = _evaluate(running, config, observer, "before", 0)
        return [], before, before
    get([learner.load_checkpoint.remote(past.source) for learner in running.learners])
    get([learner.sync.remote(past.mark.step) for learner in running.learners])
    measured = past.evaluations or (None,)
    return list(past.records), measured[0], measured[-1]


def _due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


def _ahead(config: Config, step: int) -> int:
    """The last step whose rollouts may begin with those of `step`; none is in flight where a checkpoint is due."""
    every = config.checkpoint.every or config.run.steps
    return min(step + config.algorithm.max_staleness, math.ceil(step / every) * every, config.run.steps)


def _step(running: Actors, config: Config, step: int) -> StepRecord:
    """One step: sample and resample groups, one optimizer step on all ranks, the new adapter to all rollouts."""
    began = time.perf_counter()
    collected = get(running.learners[0].collect.remote(step, _ahead(config, step)))
    sampled = time.perf_counter()
    reports = []
    if collected.trained_tokens:
        reports = get(
            [learner.train.remote(batch) for learner, batch in zip(running.learners, collected.batches, strict=True)]
        )
    trained = time.perf_counter()
    sync, *_ = get([learner.sync.remote(step) for learner in running.learners])
    ended = time.perf_counter()
    sums = {field.name: sum(r.sums[field.name] for r in reports) for field in fields(LossSums)}
    weight = sums["weight"] or math.nan  # nan: nothing was trained on
    return StepRecord(
        step=step,
        seconds=ended - began,
        **asdict(collected.figures),
        trained_tokens=collected.trained_tokens,
        loss=sums["loss"],
        kl=sums["kl"] / weight,
        clip_share=sums["clipped"] / weight,
        behaviour_gap=sums["gap"] / weight,
        correction_mean=sums["correction"] / weight,
        capped_share=sums["capped"] / weight,
        grad_norm=reports[0].grad_norm if reports else 0.0,
        learning_rate=reports[0].learning_rate if reports else 0.0,
        weight_version=sync.version,
        sync_bytes=sync.sent_bytes,
        seconds_by_phase={"rollout": sampled - began, "train": trained - sampled, "sync": ended - trained},
    )


def _evaluate(running: Actors, config: Config, observer: Observer, label: str, step: int) -> EvaluationRecord | None:
    if not config.data.held_out_prompts:
        return None
    record: EvaluationRecord = get(running.learners[0].evaluate.remote(step))
    observer.evaluation(label, record)
    return record
