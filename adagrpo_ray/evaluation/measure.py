"""Models evaluated one after another on the same rollout actors, without a learner."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from threading import Event
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from adagrpo_ray.cluster.authentication import takes_token
from adagrpo_ray.cluster.placement import Placement
from adagrpo_ray.config.data import PLAIN, FormatSettings
from adagrpo_ray.config.fixed import fixed_settings
from adagrpo_ray.config.load import load_config
from adagrpo_ray.config.tree import Config
from adagrpo_ray.errors import ConfigError, DataError, StoppedError
from adagrpo_ray.evaluation.models import OPTION, Candidate, Place, candidates, locate, served
from adagrpo_ray.evaluation.results import CompletionResult, ProblemResult, ResultFile
from adagrpo_ray.evaluation.settings import counting_settings, for_measuring, prompt_settings
from adagrpo_ray.lora.adapters import read_adapter
from adagrpo_ray.rewards import Scores
from adagrpo_ray.rewards.extract import exact_answer, holds_answer
from adagrpo_ray.rewards.scorer import RewardScorer
from adagrpo_ray.rollout.endings import Endings
from adagrpo_ray.rollout.fleet import Fleet
from adagrpo_ray.sampling.evaluate import check_finite, evaluation_request
from adagrpo_ray.training.actors import connect, put_model
from adagrpo_ray.training.preflight import Inputs, check
from adagrpo_ray.training.start import UNGUARDED
from adagrpo_ray.types import Completion, Prompt

Split = Literal["held_out", "train", "all"]
POLL_S = 0.2
AHEAD = 2  # how many times the sequences that all actors decode at once may be asked for


class Watcher(Protocol):
    """Who hears how an evaluation goes on."""

    def phase(self, text: str) -> None:
        """Something begins, or is worth saying."""

    def model(self, name: str, finished: Sequence[float], problems: int) -> None:
        """A model's turn: the accuracies of its problems that are finished already, of so many in all."""

    def problem(self, accuracy: float, tokens: int) -> None:
        """One more of its problems is finished: the share of correct completions, and what they took."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What is to be evaluated: checked, and nothing started. `settings` are those that results depend on."""

    config: Config
    inputs: Inputs
    prompts: tuple[Prompt, ...]
    models: tuple[Candidate, ...]
    settings: dict[str, Any]


def plan(
    config: Config,
    adapters: Sequence[str],
    *,
    base: bool,
    split: Split,
    limit: int | None,
    tell: Callable[[str], None],
) -> Plan:
    """Find and check models, data and rewards; raises an AdaGRPOError that says what to mend.

    `adapters` as `locate` takes them; `limit` keeps the first so many prompts of the split.
    """
    if not adapters and not base:
        raise ConfigError("there is nothing to evaluate: give --adapter, or leave out --no-base")
    places = [locate(given, tell) for given in adapters]
    found = [read_adapter(place.folder, OPTION) for place in places]
    config = served(for_measuring(config), found)
    inputs = check(config, training=False)
    sets = inputs.prompts
    for note in (*sets.notes, *inputs.notices):
        tell(note)
    prompts = {"held_out": sets.held_out, "train": sets.train, "all": (*sets.held_out, *sets.train)}[split]
    if not prompts:
        key = "data.eval_prompts" if split == "held_out" else "data.train_prompts"
        raise DataError(f"--split {split}: {key} leaves no prompt there; raise it, or give --split all")
    for place in places:
        _warn_of_other_data(place, config, tell)
    named = [(place.name, adapter) for place, adapter in zip(places, found, strict=True)]
    return Plan(
        config=config,
        inputs=inputs,
        prompts=prompts[:limit],
        models=candidates(config.model, config.rollout, inputs.model_path, named, base, tell),
        settings={**counting_settings(config, inputs.model_path), **prompt_settings(sets)},
    )


def measure(plan: Plan, results: ResultFile, watcher: Watcher, stop: Event) -> None:
    """Finish every problem of every model that `results` does not hold yet; each one is kept as soon as it is.

    Raises StoppedError soon after `stop` is set, and what rollouts, syncs and scoring raise.
    """
    if not unfinished(plan, results):
        watcher.phase(f"all of it is in {results.path} already")
        return
    if stop.is_set():
        raise StoppedError("stopped as asked, before anything was started")
    joined = plan.inputs.joined
    with connect(plan.config, joined, learner=False) as placement:
        if joined is not None and not takes_token():
            watcher.phase(f"warning: the Ray cluster at {joined} {UNGUARDED}")
        watcher.phase(f"starting {placement.describe()}")
        asyncio.run(_measure(plan, placement, results, watcher, stop))


def unfinished(plan: Plan, results: ResultFile) -> int:
    """How many problems are left, over all models."""
    return sum(len(_left(plan, results, model)) for model in plan.models)


def finished(plan: Plan, results: ResultFile, model: Candidate) -> list[ProblemResult]:
    """The finished problems of a model, in the order of the plan."""
    kept = results.of(model.digest)
    return [kept[prompt.id] for prompt in plan.prompts if prompt.id in kept]


async def _measure(plan: Plan, placement: Placement, results: ResultFile, watcher: Watcher, stop: Event) -> None:
    """All models, until they are done or `stop` is set."""
    config = plan.config
    fleet = Fleet(config, placement, put_model(config.model, plan.inputs), plan.inputs.max_model_len)
    scorer = RewardScorer(config.rewards, config.data.format)
    await fleet.open()
    work = asyncio.create_task(_models(plan, fleet, scorer, results, watcher, stop))
    try:
        while not work.done():
            await asyncio.wait({work}, timeout=POLL_S)
            for notice in (*fleet.notices(), *scorer.notices()):
                watcher.phase(notice)
            if stop.is_set() and unfinished(plan, results):
                raise StoppedError("stopped as asked")  # whatever failed meanwhile
        work.result()
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        scorer.close()
        await fleet.close()


async def _models(
    plan: Plan, fleet: Fleet, scorer: RewardScorer, results: ResultFile, watcher: Watcher, stop: Event
) -> None:
    """One model after another: the base first, which no adapter can be taken back to."""
    await fleet.ready()
    rollout, samples = plan.config.rollout, plan.config.evaluation.samples
    at_once = math.ceil(AHEAD * (rollout.max_actors or rollout.actors) * rollout.max_num_seqs / samples)
    endings = Endings(rollout.max_new_tokens, plain=plan.config.data.chat_template == PLAIN)
    generate = endings.watched(fleet.pool.generate)
    places = asyncio.Semaphore(at_once)  # so that few are lost with a program that is killed

    async def finish(model: Candidate, prompt: Prompt) -> None:
        async with places:
            request = evaluation_request(prompt, plan.config.evaluation, rollout.max_new_tokens, plan.config.run.seed)
            completions = await generate(request)
            check_finite(completions)
            scores, correct = await scorer.score(prompt, completions)
        if stop.is_set():  # what failed then may have failed for that
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
            for notice in endings.notices():
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
    """What is kept of a problem whose completions [G] were scored; `model` and `settings` are digests."""
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
                correct=bool(marked),
                correct_format=exact_answer(completion.text, format) is not None,
                correct_anywhere=bool(marked) or holds_answer(completion.text, prompt.answer),
            )
            for completion, reward, marked in zip(completions, scores.rewards, correct, strict=True)
        ),
    )


def _left(plan: Plan, results: ResultFile, model: Candidate) -> list[Prompt]:
    kept = results.of(model.digest)
    return [prompt for prompt in plan.prompts if prompt.id not in kept]


def _accuracy(result: ProblemResult) -> float:
    return float(np.mean([completion.correct for completion in result.completions]))


def _warn_of_other_data(place: Place, config: Config, tell: Callable[[str], None]) -> None:
    """Say where an adapter's own run may have trained on prompts that are held out here."""
    if place.config is None:
        return
    try:
        theirs = fixed_settings(load_config(place.config))
    except ConfigError:  # of another version of this program: nothing is known
        return
    ours = fixed_settings(config)
    keys = ["run.seed", *(key for key in {**ours, **theirs} if key.startswith(("data.", "arithmetic.")))]
    other = [key for key in keys if ours.get(key) != theirs.get(key) and key != "data.shuffle"]
    if other:
        tell(
            f"warning: the run of {place.folder} had other values of {', '.join(other)}: it may have been "
            "trained on prompts that are held out here"
        )
