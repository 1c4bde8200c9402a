"""Runs the groups of one step side by side: samples each until it is ready, exhausted or has to wait.

It needs only two callables, `generate` and `score`, so that tests need neither Ray nor an engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from adagrpo_ray.algorithm.methods import Method
from adagrpo_ray.algorithm.overlong import overlong_penalty
from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.errors import RequestLostError
from adagrpo_ray.rewards.registry import Scores
from adagrpo_ray.sampling.admission import Admission, GroupRun
from adagrpo_ray.sampling.budget import Budget
from adagrpo_ray.sampling.collection import Failure
from adagrpo_ray.sampling.pilot import Planned, Planner, verdict
from adagrpo_ray.types import Attempt, Completion, GenerationRequest, Group, Prompt

Generate = Callable[[GenerationRequest], Awaitable[tuple[Completion, ...]]]
Score = Callable[[Prompt, Sequence[Completion]], Awaitable[tuple[Scores, NDArray[np.bool_]]]]


class GroupSampler:
    """Runs groups: generates, scores, and applies the criterion and the ladder of the method.

    `rung_pays` decides whether a group that failed is sampled on its next rung.
    """

    def __init__(
        self,
        settings: AlgorithmSettings,
        method: Method,
        generate: Generate,
        score: Score,
        rung_pays: Callable[[Group], bool],
        *,
        max_new_tokens: int,
        seed: int,
        drop_failed: bool,
    ) -> None:
        self._settings, self._method, self._generate, self._score = settings, method, generate, score
        self._rung_pays = rung_pays
        self._max_new_tokens, self._drop_failed = max_new_tokens, drop_failed
        self._planner = Planner(method.ladder.base, settings.pilot_size, max_new_tokens, seed)

    async def run(
        self,
        resumed: Sequence[Group],
        draw: Callable[[float, int], Group | None],
        left_out: Callable[[], int],
        step: int,
        budget: Budget,
    ) -> list[GroupRun]:
        """Run `resumed` and new groups side by side until the step is full, or no other request can be sent.

        `draw` takes the most completions of a new group and the places that are left. It returns the group, or None if
        it would be larger or the step gets no more. `left_out` returns the number of places that no group will fill.
        Returns the runs in the order of the groups.
        Groups that are still generating at the end are cancelled. Groups whose completions are complete are scored and
        count.
        """

        def begin(most: float, places: int) -> GroupRun | None:
            group = draw(most, places)
            return None if group is None else self._plan(GroupRun(group), step)

        def start() -> None:
            for run, planned in admission.starting():
                tasks[asyncio.create_task(attempt(run, planned))] = run

        async def attempt(run: GroupRun, planned: Planned) -> None:
            await self._attempt(run, planned, step, budget)
            start()

        runs = [self._plan(GroupRun(group), step) for group in resumed]
        admission = Admission(runs, begin, left_out, self._settings, budget, refill=self._method.refill)
        tasks: dict[asyncio.Task[None], GroupRun] = {}
        try:
            start()
            while tasks and not admission.full:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in [task for task in tasks if task.done()]:
                    del tasks[task]
                    task.result()  # raises its error
            for task, run in tasks.items():
                if not run.scoring:
                    task.cancel()
            await asyncio.gather(*(task for task, run in tasks.items() if run.scoring))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return runs

    def _plan(self, run: GroupRun, step: int) -> GroupRun:
        """Set the next request of a group, or the state in which it ends in this step; returns the run."""
        group = run.group = self._method.ladder.placed(run.group, step)
        # A group of an earlier step failed its last attempt, unless that step ended between a pilot and its commit.
        judged = run.history or (group.attempts and group.last.part == "pilot")
        match verdict(group, self._method.criterion) if judged else "resample":
            case "ready":
                run.state = "ready"
            case "commit":
                run.next = self._planner.commit(group)
            case "resample":
                sampling = self._method.ladder.next(group, step)
                if sampling is None or (group.attempts and not self._rung_pays(group)):
                    run.state = "exhausted"
                elif run.history and self._settings.resample == "deferred":
                    run.state = "waiting"
                else:
                    run.next = self._planner.attempt(group, sampling)
        return run

    async def _attempt(self, run: GroupRun, planned: Planned, step: int, budget: Budget) -> None:
        """Sample the next attempt of a group, or the next part of one, and decide how the group continues."""
        try:
            attempt, error = await self._sampled(run, planned)
        except RequestLostError as lost:
            first = str(lost) if run.failure is None else run.failure.error
            run.failure = Failure(run.group, 0, dropped=True, error=first, generated=False, part=planned.part)
            run.state = "failed"
        else:
            tokens, dropped = attempt.generated_tokens, self._drop_failed
            budget.give_back(planned.request.n, tokens)
            run.reserved -= planned.request.n
            if error is not None and run.failure is None:
                run.failure = Failure(run.group, tokens, dropped, error, part=planned.part)
            if error is not None and dropped:
                run.state = "failed"
            else:
                run.group = run.group.with_attempt(attempt)
                run.history.append(run.group)
                self._plan(run, step)
        if run.next is None or run.next.part != "commit":
            budget.release(run.reserved)
            run.reserved = 0

    async def _sampled(self, run: GroupRun, planned: Planned) -> tuple[Attempt, str | None]:
        """Sample and score the completions of a request; returns them, and the error if they could not be scored."""
        completions = await self._generate(planned.request)
        run.scoring = True
        scores, correct = await self._score(run.group.prompt, completions)
        run.scoring = False
        rewards, buffer = scores.rewards, self._settings.overlong_buffer
        if buffer is not None:
            lengths = [c.policy_tokens for c in completions]
            rewards = rewards + overlong_penalty(lengths, self._max_new_tokens, buffer)
        attempt = Attempt(
            rung=planned.rung,
            sampling=planned.request.sampling,
            completions=completions,
            rewards=rewards,
            rewards_by_function=scores.by_function,
            correct=correct,
            part=planned.part,
        )
        return attempt, scores.error
