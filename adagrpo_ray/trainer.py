"""The training loop. Control messages and reports pass through here, never samples or weights."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, fields
from pathlib import Path

from adagrpo_ray.algorithm.loss import LossSums
from adagrpo_ray.cluster import Actors, actors, connect, get
from adagrpo_ray.config.tree import Config
from adagrpo_ray.observe import EvaluationRecord, Observer, StepRecord, Summary, summarize
from adagrpo_ray.preflight import Inputs


def train(config: Config, inputs: Inputs, folder: Path, observer: Observer) -> Summary:
    """A whole run on checked inputs; leaves the adapter in `folder`/adapter and returns the summary."""
    observer.phase(f"starting {config.rollout.actors} rollout actor(s) and {config.learner.ranks} learner rank(s)")
    with connect(config) as placement, actors(config, placement, inputs) as running:
        return train_on(running, config, folder, observer)


def train_on(running: Actors, config: Config, folder: Path, observer: Observer) -> Summary:
    """The steps and measurements of `train`, on actors that are ready to begin."""
    get([learner.sync.remote(0) for learner in running.learners])
    before = _evaluate(running, config, observer, "before", 0)
    records, last = [], before
    for step in range(1, config.run.steps + 1):
        records.append(_step(running, config, step))
        observer.step(records[-1])
        every = config.evaluation.every
        if step == config.run.steps or (every and step % every == 0):
            last = _evaluate(running, config, observer, "after" if step == config.run.steps else f"step {step}", step)
    adapter = folder / "adapter"
    get([learner.save_adapter.remote(str(adapter)) for learner in running.learners])
    summary = summarize(records, before, last, name=folder.name, folder=folder, adapter=adapter)
    observer.summary(summary)
    return summary


def _step(running: Actors, config: Config, step: int) -> StepRecord:
    """One step: sample and resample groups, one optimizer step on all ranks, the new adapter to all rollouts."""
    began = time.perf_counter()
    collected = get(running.learners[0].collect.remote(step))
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
