"""Evaluates models one after another on the same rollout actors, without a learner."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from threading import Event
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from adagrpo_ray.cluster.authentication import warn_unguarded
from adagrpo_ray.cluster.connecting import connect
from adagrpo_ray.cluster.placement import Placement
from adagrpo_ray.config.data import PLAIN, FormatSettings
from adagrpo_ray.config.fixed import fixed_settings
from adagrpo_ray.config.tree import Config
from adagrpo_ray.environments.episodes import Episodes, Generate, with_environment
from adagrpo_ray.errors import ConfigError, DataError, StoppedError
from adagrpo_ray.evaluation.models import OPTION, Candidate, Place, candidates, locate, served
from adagrpo_ray.evaluation.results import CompletionResult, ProblemResult, ResultFile
from adagrpo_ray.evaluation.settings import counting_settings, for_evaluation, prompt_settings
from adagrpo_ray.lora.adapters import read_adapter
from adagrpo_ray.model.node_files import ModelFiles
from adagrpo_ray.rewards import Scores
from adagrpo_ray.rewards.extract import exact_answer, holds_answer
from adagrpo_ray.rewards.scorer import RewardScorer
from adagrpo_ray.rollout.architectures import check_lora_type
from adagrpo_ray.rollout.endings import Endings
from adagrpo_ray.rollout.fleet import Fleet
from adagrpo_ray.rollout.member import sequences_in_flight
from adagrpo_ray.sampling.evaluate import evaluation_request, generate_and_score
from adagrpo_ray.training.actors import put_model
from adagrpo_ray.training.preflight import Inputs, check
from adagrpo_ray.types import Completion, Prompt

Split = Literal["held_out", "train", "all"]
POLL_S = 0.2


class Watcher(Protocol):
    """Receives the progress of an evaluation."""

    def phase(self, text: str) -> None:
        """A part of the evaluation begins, or there is a notice."""

    def model(self, name: str, finished: Sequence[float], problems: int) -> None:
        """The evaluation of a model begins; `finished` are the accuracies of those of its problems that are finished.

        problems: the number of all its problems.
        """

    def problem(self, accuracy: float, tokens: int) -> None:
        """A problem of the model is finished: its share of correct completions, and their number of tokens."""


@dataclass(frozen=True, eq=False)
class Plan:
    """A checked evaluation, of which nothing has been started.

    prompts: the problems of every model.
    settings: those that results depend on.
    """

    config: Config
    inputs: Inputs
    prompts: tuple[Prompt, ...]
    models: tuple[Candidate, ...]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Rollouts:
    """Generates and scores the completions, or episodes, of all models."""

    generate: Generate
    scorer: RewardScorer | Episodes
    endings: Endings


def plan(
    config: Config,
    adapters: Sequence[str],
    *,
    base: bool,
    split: Split,
    limit: int | None,
    notify: Callable[[str], None],
) -> Plan:
    """Find and check models, data and rewards. Raises an AdaGRPOError if one of them cannot be used.

    adapters: as `locate` takes them.
    base: whether to evaluate the base model too.
    limit: the number of prompts of the split, from the first one; None for all.
    notify: receives warnings and notices.
    """
    if not adapters and not base:
        raise ConfigError("there is nothing to evaluate: give --adapter, or leave out --no-base")
    places = [locate(given, notify) for given in adapters]
    found = [read_adapter(place.folder, OPTION) for place in places]
    config = served(for_evaluation(config), found)
    inputs = check(config, training=False)
    sets = inputs.prompts
    for note in (*sets.notes, *inputs.notices):
        notify(note)
    prompts = {"held_out": sets.held_out, "train": sets.train, "all": (*sets.held_out, *sets.train)}[split]
    if not prompts:
        key = "data.eval_prompts" if split == "held_out" else "data.train_prompts"
        raise DataError(f"--split {split}: {key} leaves no prompt there; raise it, or give --split all")
    for place in places:
        _warn_of_other_data(place, config, notify)
    named = [(place.name, adapter) for place, adapter in zip(places, found, strict=True)]
    return Plan(
        config=config,
        inputs=inputs,
        prompts=prompts[:limit],
        models=candidates(config.model, config.rollout, inputs.model_path, named, base, notify),
        settings={**counting_settings(config, inputs.model_path), **prompt_settings(sets)},
    )


def execute(plan: Plan, results: ResultFile, watcher: Watcher, stop: Event) -> None:
    """Evaluate every model on every problem that `results` does not have yet; each result is stored at once.

    Raises StoppedError soon after `stop` is set, ConfigError as `check_lora_type` on a joined cluster (on a local Ray
    `plan` checks it), and the errors of rollouts, syncs and scoring.
    """
    if not unfinished(plan, results):
        watcher.phase(f"{results.path} has all results already")
        return
    if stop.is_set():
        raise StoppedError("stopped as asked, before anything was started")
    joined = plan.inputs.joined
    with connect(plan.config, joined, learner=False) as placement:
        if joined is not None:
            warn_unguarded(joined, watcher.phase)
            check_lora_type(plan.config.model, plan.config.rollout, gpu=placement.gpus > 0)
        watcher.phase(f"starting {', '.join(placement.lines())}")
        asyncio.run(_execute(plan, placement, results, watcher, stop))


def unfinished(plan: Plan, results: ResultFile) -> int:
    """The number of unfinished problems, over all models."""
    return sum(len(_left(plan, results, model)) for model in plan.models)


def finished(plan: Plan, results: ResultFile, model: Candidate) -> list[ProblemResult]:
    """The finished problems of a model, in the order of the plan."""
    stored = results.of(model.digest)
    return [stored[prompt.id] for prompt in plan.prompts if prompt.id in stored]


async def _execute(plan: Plan, placement: Placement, results: ResultFile, watcher: Watcher, stop: Event) -> None:
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
    work = asyncio.create_task(_models(plan, fleet, Rollouts(generate, scorer, endings), results, watcher, stop))
    try:
        while not work.done():
            await asyncio.wait({work}, timeout=POLL_S)
            for notice in (*fleet.notices(), *scorer.notices()):
                watcher.phase(notice)
            if stop.is_set() and unfinished(plan, results):
                raise StoppedError("stopped as asked")  # takes precedence over errors of the work
        work.result()
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        scorer.close()
        await fleet.close()


async def _models(
    plan: Plan, fleet: Fleet, rollouts: Rollouts, results: ResultFile, watcher: Watcher, stop: Event
) -> None:
    """Evaluate one model after another. The base is the first one, since an adapter cannot be removed again."""
    await fleet.ready()
    rollout, samples = plan.config.rollout, plan.config.evaluation.samples
    at_once = math.ceil((rollout.max_actors or rollout.actors) * sequences_in_flight(rollout) / samples)
    generate, score = rollouts.generate, rollouts.scorer.score
    slots = asyncio.Semaphore(at_once)  # a program that is killed loses only these

    async def finish(model: Candidate, prompt: Prompt) -> None:
        async with slots:
            request = evaluation_request(prompt, plan.config.evaluation, rollout.max_new_tokens, plan.config.run.seed)
            completions, scores, correct = await generate_and_score(prompt, request, generate, score)
        if stop.is_set():  # the stop may have caused a failure of this problem
            return
        result = judge(plan.config.data.format, model.digest, results.digest, prompt, completions, scores, correct)
        results.add(result)
        watcher.problem(float(np.mean(correct)), sum(c.tokens for c in result.completions))

    for version, model in enumerate(plan.models):
        before, left = finished(plan, results, model), _left(plan, results, model)
        watcher.model(model.name, [_accuracy(result) for result in before], len(plan.prompts))
        if left and model.weights is not None:
            await fleet.pool.apply(replace(model.weights, version=version))
        tasks = [asyncio.create_task(finish(model, prompt)) for prompt in left]
        try:
            await asyncio.gather(*tasks)
            for notice in rollouts.endings.notices():
                watcher.phase(notice)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def judge(
    format: FormatSettings,
    model: str,
    settings: str,
    prompt: Prompt,
    completions: Sequence[Completion],
    scores: Scores,
    correct: NDArray[np.bool_],
) -> ProblemResult:
    """The result of a problem whose G completions were scored.

    model, settings: their digests.
    correct: shape [G].
    """
    return ProblemResult(
        model=model,
        settings=settings,
        problem=prompt.id,
        prompt=prompt.text,
        answer=prompt.answer,
        difficulty=prompt.difficulty,
        error=scores.error or "",
        completions=tuple(
            CompletionResult(
                text=completion.text,
                tokens=len(completion.token_ids),
                cut_off=completion.finish_reason == "length",
                reward=float(reward),
                correct=bool(is_correct),
                correct_format=exact_answer(completion.text, format) is not None,
                correct_anywhere=bool(is_correct) or holds_answer(completion.text, prompt.answer),
            )
            for completion, reward, is_correct in zip(completions, scores.rewards, correct, strict=True)
        ),
    )


def _left(plan: Plan, results: ResultFile, model: Candidate) -> list[Prompt]:
    stored = results.of(model.digest)
    return [prompt for prompt in plan.prompts if prompt.id not in stored]


def _accuracy(result: ProblemResult) -> float:
    return float(np.mean([completion.correct for completion in result.completions]))


def _warn_of_other_data(place: Place, config: Config, notify: Callable[[str], None]) -> None:
    """Warn if the adapter's run may have trained on prompts that are held out here."""
    if place.config is None:
        return
    try:
        theirs = fixed_settings(Config.load(place.config))
    except ConfigError:  # written by another version of this program, which cannot be compared
        return
    ours = fixed_settings(config)
    keys = ["run.seed", *(key for key in {**ours, **theirs} if key.startswith(("data.", "arithmetic.")))]
    other = [key for key in keys if ours.get(key) != theirs.get(key) and key != "data.shuffle"]
    if other:
        notify(
            f"warning: the run of {place.folder} had other values of {', '.join(other)}: it may have been "
            "trained on prompts that are held out here"
        )
