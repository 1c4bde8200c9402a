"""Evaluates models one after another on the same rollout actors, without a learner."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Event
from typing import Protocol

import numpy as np

from adagrpo_ray.cluster.authentication import warn_unguarded
from adagrpo_ray.cluster.connecting import connect
from adagrpo_ray.cluster.placement import Placement
from adagrpo_ray.config.data import PLAIN
from adagrpo_ray.environments.episodes import Episodes, Generate, with_environment
from adagrpo_ray.errors import StoppedError
from adagrpo_ray.evaluation.models import Candidate
from adagrpo_ray.evaluation.planning import Part, Plan
from adagrpo_ray.evaluation.problem_result import problem_result
from adagrpo_ray.evaluation.results import ProblemResult, ResultFile
from adagrpo_ray.model.node_files import ModelFiles
from adagrpo_ray.rewards.consumption import counted_for
from adagrpo_ray.rewards.scorer import RewardScorer
from adagrpo_ray.rewards.together import together
from adagrpo_ray.rollout.architectures import check_lora_type
from adagrpo_ray.rollout.endings import Endings
from adagrpo_ray.rollout.fleet import Fleet
from adagrpo_ray.rollout.member import sequences_in_flight
from adagrpo_ray.sampling.evaluate import evaluation_request, generate_and_score
from adagrpo_ray.training.actors import put_model
from adagrpo_ray.types import Prompt

POLL_S = 0.2

Files = Mapping[str, ResultFile]
"""The file of results of each part, by its name."""


class Watcher(Protocol):
    """Receives the progress of an evaluation."""

    def phase(self, text: str) -> None:
        """A part of the evaluation begins, or there is a notice."""

    def model(self, name: str, finished: Sequence[float], problems: int) -> None:
        """The evaluation of a model begins; `finished` are the accuracies of those of its problems that are finished.

        problems: the number of all its problems. With benchmarks this is called for each of them.
        """

    def problem(self, accuracy: float, tokens: int) -> None:
        """A problem of the model is finished: its share of correct completions, and their number of tokens."""


@dataclass(frozen=True)
class Rollouts:
    """Generates and scores the completions, or episodes, of all models."""

    generate: Generate
    scorer: RewardScorer | Episodes
    endings: Endings


def execute(plan: Plan, files: Files, watcher: Watcher, stop: Event) -> None:
    """Evaluate every model on every problem that `files` do not have yet; each result is stored at once.

    Raises StoppedError soon after `stop` is set, ConfigError as `check_lora_type` on a joined cluster (on a local Ray
    `plan` checks it), and the errors of rollouts, syncs and scoring.
    """
    if not unfinished(plan, files):
        for file in files.values():
            watcher.phase(f"{file.path} has all results already")
        return
    if stop.is_set():
        raise StoppedError("stopped as asked, before anything was started")
    joined = plan.inputs.joined
    with connect(plan.config, joined, learner=False) as placement:
        if joined is not None:
            warn_unguarded(joined, watcher.phase)
            check_lora_type(plan.config.model, plan.config.rollout, gpu=placement.gpus > 0)
        watcher.phase(f"starting {', '.join(placement.lines())}")
        asyncio.run(_execute(plan, placement, files, watcher, stop))


def unfinished(plan: Plan, files: Files) -> int:
    """The number of unfinished problems, over all models."""
    return sum(len(_left(part, files, model)) for part in plan.parts for model in plan.models)


def finished(part: Part, files: Files, model: Candidate) -> list[ProblemResult]:
    """The finished problems of a model in a part, in the order of the part."""
    stored = files[part.name].of(model.digest)
    return [stored[prompt.id] for prompt in part.prompts if prompt.id in stored]


async def _execute(plan: Plan, placement: Placement, files: Files, watcher: Watcher, stop: Event) -> None:
    """Start actors and scorer, and evaluate all models, until they are done or `stop` is set."""
    config = plan.config
    fleet = Fleet(config, placement, put_model(config.model, plan.inputs), plan.inputs.max_model_len)
    endings = Endings(config.rollout.max_new_tokens, plain=config.data.chat_template == PLAIN)
    generate, scorer = with_environment(
        config,
        ModelFiles(plan.inputs.model_path, template=plan.inputs.template),
        (*plan.inputs.prompts.train, *plan.inputs.prompts.held_out),
        endings.watched(fleet.pool.generate),
        RewardScorer(config.rewards, config.data.format),
    )
    await fleet.open()
    work = asyncio.create_task(_models(plan, fleet, Rollouts(generate, scorer, endings), files, watcher, stop))
    try:
        while not work.done():
            await asyncio.wait({work}, timeout=POLL_S)
            for notice in (*fleet.notices(), *scorer.notices()):
                watcher.phase(notice)
            if stop.is_set() and unfinished(plan, files):
                raise StoppedError("stopped as asked")  # takes precedence over errors of the work
        work.result()
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        scorer.close()
        await fleet.close()


async def _models(plan: Plan, fleet: Fleet, rollouts: Rollouts, files: Files, watcher: Watcher, stop: Event) -> None:
    """Evaluate one model after another. The base is the first one, since an adapter cannot be removed again."""
    await fleet.ready()
    for version, model in enumerate(plan.models):
        if model.weights is not None and any(_left(part, files, model) for part in plan.parts):
            await fleet.pool.apply(replace(model.weights, version=version))
        for part in plan.parts:
            before = [_accuracy(result) for result in finished(part, files, model)]
            watcher.model(f"{model.name} {part.name}" if plan.benchmarks else model.name, before, len(part.prompts))
            await _problems(plan, part, model, rollouts, files, watcher, stop)
            for notice in rollouts.endings.notices():
                watcher.phase(notice)


async def _problems(
    plan: Plan, part: Part, model: Candidate, rollouts: Rollouts, files: Files, watcher: Watcher, stop: Event
) -> None:
    """Evaluate the model that the actors have on the unfinished problems of a part."""
    config, results = plan.config, files[part.name]
    rollout, settings = config.rollout, config.evaluation.model_copy(update={"samples": part.samples})
    at_once = math.ceil((rollout.max_actors or rollout.actors) * sequences_in_flight(rollout) / part.samples)
    slots = asyncio.Semaphore(at_once)  # a program that is killed loses only these

    async def finish(prompt: Prompt) -> None:
        async with slots:
            request = evaluation_request(prompt, settings, rollout.max_new_tokens, config.run.seed)
            with counted_for(prompt.id):
                completions, scores, correct = await generate_and_score(
                    prompt, request, rollouts.generate, rollouts.scorer.score
                )
            consumed = rollouts.scorer.consumption(prompt.id)
        if stop.is_set():  # the stop may have caused a failure of this problem
            return
        digests = (model.digest, results.digest)
        result = problem_result(config.data.format, *digests, prompt, completions, scores, correct, consumed)
        results.add(result)
        watcher.problem(float(np.mean(correct)), sum(c.tokens for c in result.completions))

    await together([finish(prompt) for prompt in _left(part, files, model)])


def _left(part: Part, files: Files, model: Candidate) -> list[Prompt]:
    stored = files[part.name].of(model.digest)
    return [prompt for prompt in part.prompts if prompt.id not in stored]


def _accuracy(result: ProblemResult) -> float:
    return float(np.mean([completion.correct for completion in result.completions]))
