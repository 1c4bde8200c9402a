"""New groups: prompts in their order, with group sizes chosen from the results of earlier epochs."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adagrpo_ray.algorithm.allocation import Share, allocate, left_out
from adagrpo_ray.algorithm.posterior import ClassResults, Posterior, PromptResults
from adagrpo_ray.algorithm.rungs import BASE, ClassRungs, RungResults, pays
from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.config.group_allocation import AllocationSettings
from adagrpo_ray.data.order import PromptOrder
from adagrpo_ray.sampling.calibration import Forecast
from adagrpo_ray.types import Group, Prompt


@dataclass(frozen=True)
class Position:
    """The place from which the next groups are drawn.

    - `taken`: the number of prompts taken from their order, over all passes.
    - `planned`: groups of prompts taken that have a size and are not drawn yet.
    - `skipped`: the number of prompts left out, by step.
    """

    taken: int
    planned: tuple[Group, ...]
    skipped: Mapping[int, int]


class Allocator:
    """Draws prompts as new groups. Without `allocation` every group has `settings.group_size` completions.

    By the rule `value`, `settings.prompts_per_step` prompts share a total of completions. So they are planned together,
    and drawn when a step has places for them.
    """

    def __init__(
        self, prompts: PromptOrder, settings: AlgorithmSettings, allocation: AllocationSettings | None, run_seed: int
    ) -> None:
        self._prompts, self._allocation, self._run_seed = prompts, allocation, run_seed
        self._group_size = settings.group_size
        self._together = settings.prompts_per_step if allocation is not None and allocation.rule == "value" else 1
        self._shared = settings.shared_completions
        self._replaces = allocation is None or allocation.replace_left_out
        self._smallest = min(settings.group_size, settings.group_sizes[0])
        self._planned: tuple[Group, ...] = ()
        self._skipped = Counter[int]()
        self._results: dict[str, PromptResults] = {}  # by prompt
        self._classes: dict[str, ClassResults] = {}  # by difficulty class
        self._rungs: dict[str, ClassRungs] = {}  # by difficulty class

    def draw(
        self, step: int, most: float = math.inf, places: float = math.inf, *, needed: bool = False
    ) -> Group | None:
        """Draw the next prompt as a new group of `step`, skipping prompts that the allocation leaves out.

        Returns None if the group would have more than `most` completions. If its size is new, it is then chosen again,
        from newer results, with the next call. If prompts that are left out are not replaced, each takes one of the
        `places` that are left in the step; returns None once there are none, unless a group is `needed` in any case.
        """
        if most < self._smallest:
            return None
        before = self.position
        if not self._planned:
            self._planned = self._plan(step, math.inf if self._replaces else places, needed)
        if not self._planned:
            return None
        if self._planned[0].size > most:
            self.position = before
            return None
        drawn, *rest = self._planned
        self._planned = tuple(rest)
        return replace(drawn, born=step)

    def skipped(self, step: int) -> int:
        """The number of prompts that were left out since the last call, to draw groups of `step`."""
        return self._skipped.pop(step, 0)

    def places_left_out(self, step: int) -> int:
        """The number of places of `step` that prompts have taken which were left out and are not replaced."""
        return 0 if self._replaces else self._skipped[step]

    @property
    def position(self) -> Position:
        """The place from which the next groups are drawn; a caller may set it back."""
        return Position(self._prompts.taken, self._planned, dict(self._skipped))

    @position.setter
    def position(self, position: Position) -> None:
        self._prompts.taken, self._planned = position.taken, position.planned
        self._skipped = Counter(position.skipped)

    def _plan(self, step: int, places: float, needed: bool) -> tuple[Group, ...]:
        """Choose the sizes of the groups of the next prompts that are not left out.

        These are of at most `places` prompts or, if a group is `needed`, of as many as it takes to find one.
        """
        chosen: list[tuple[Prompt, int, Posterior | None]] = []
        passed_over, first = 0, self._prompts.taken
        while len(chosen) < self._together and (self._prompts.taken - first < places or (needed and not chosen)):
            ((prompt, epoch),) = self._prompts.take(1)
            posterior = self._posterior(prompt)
            # If a whole pass is left out, every prompt is solved or hopeless: train on them again.
            if passed_over < len(self._prompts) and self._left_out(prompt, epoch, posterior):
                passed_over += 1
                self._skipped[step] += 1
            else:
                passed_over = 0
                chosen.append((prompt, epoch, posterior))
        if not chosen:
            return ()
        posteriors = [posterior for _, _, posterior in chosen]
        shares = [Share(self._group_size, 0)] * len(chosen)
        if self._allocation is not None:
            total = self._shared if self._replaces else self._shared * len(chosen) // self._together
            shares = allocate(posteriors, self._allocation, self._group_size, total)
        groups = [
            Group(prompt, epoch, step, share.size, share.start, chance=None if posterior is None else posterior.mean)
            for (prompt, epoch, posterior), share in zip(chosen, shares, strict=True)
        ]
        return tuple(
            replace(group, start=0) if group.start and not self.rung_pays(group) else group for group in groups
        )

    def rung_pays(self, group: Group) -> bool:
        """Whether the next rung of a group pays, by the results of its class."""
        if self._allocation is None or not self._allocation.judge_rungs:
            return True
        seed = f"{self._run_seed}/{group.prompt.id}/{group.epoch}/{group.next_rung}"
        return pays(self._rungs.get(group.prompt.difficulty, {}), group.next_rung, seed)

    def _left_out(self, prompt: Prompt, epoch: int, posterior: Posterior | None) -> bool:
        if self._allocation is None:
            return False
        return left_out(posterior, prompt.id, epoch, self._run_seed, self._allocation)

    def _posterior(self, prompt: Prompt) -> Posterior | None:
        """The posterior of a prompt from its class and its own results; None if its class has no results."""
        if (of_class := self._classes.get(prompt.difficulty)) is None:
            return None
        prior = of_class.prior(self._group_size)
        return self._results.get(prompt.id, PromptResults()).posterior(prior, of_class.rate)

    def _forecast(self, group: Group) -> Forecast | None:
        """The expected success rate of a group's prompt, with its newest completions; None without a posterior."""
        if (posterior := self._posterior(group.prompt)) is None:
            return None
        of_class = self._classes[group.prompt.difficulty].prior(self._group_size)
        return Forecast(posterior.mean, of_class.mean, *group.last.counts)

    def learn(self, attempts: Sequence[Group]) -> tuple[Forecast, ...]:
        """Learn from the newest completions of groups; returns the success rates that were expected before.

        Results on a rung are those of all attempts. Those of prompts and classes are of first attempts and commits.

        Resamples would bias the results of a prompt, since they end at a success. A commit does not: whatever decided
        on it, its completions are drawn at the success rate of the prompt. It would bias those of the class, since
        prompts that are solved or hopeless have none.
        """
        if self._allocation is None:
            return ()
        discount = self._allocation.discount
        first_attempts = [group for group in attempts if not group.resamples]
        begun = [group for group in first_attempts if group.last.part != "commit"]
        forecasts = tuple(forecast for group in begun if (forecast := self._forecast(group)) is not None)
        counts: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for group in begun:
            counts[group.prompt.difficulty].append(group.last.counts)
        self._learn_rungs(attempts, discount)
        for difficulty, of_prompts in counts.items():
            before = self._classes.get(difficulty, ClassResults())
            self._classes[difficulty] = before.after(of_prompts, discount)
        for group in first_attempts:
            prompt, (correct, completions) = group.prompt, group.last.counts
            kept = 1.0 if group.last.part == "commit" else discount  # a commit is of the epoch of its pilot
            self._results[prompt.id] = self._results.get(prompt.id, PromptResults()).after(
                correct, completions - correct, kept, self._classes[prompt.difficulty].rate
            )
        return forecasts

    def _learn_rungs(self, attempts: Sequence[Group], discount: float) -> None:
        counts: dict[str, dict[int, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
        for group in attempts:
            if group.last.part != "commit":
                counts[group.prompt.difficulty][group.last.rung].append(group.last.counts)
        for difficulty, by_rung in counts.items():
            before = self._rungs.get(difficulty, {})
            after = {
                # Rungs have fewer results, and the base must show soon that the policy has forgotten a class.
                rung: before.get(rung, RungResults()).after(found, discount if rung == BASE else discount ** (1 / 4))
                for rung, found in by_rung.items()
            }
            self._rungs[difficulty] = {**before, **after}

    def state_dict(self) -> dict[str, Any]:
        """The state that determines the next groups."""
        return {
            "prompts": self._prompts.state_dict(),
            "planned": list(self._planned),
            "results": dict(self._results),
            "classes": dict(self._classes),
            "rungs": dict(self._rungs),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a result of `state_dict`; prompts, settings and seed must be the same."""
        self._prompts.load_state_dict(state["prompts"])
        self._planned = tuple(state["planned"])
        self._results, self._classes = dict(state["results"]), dict(state["classes"])
        self._rungs = dict(state["rungs"])
