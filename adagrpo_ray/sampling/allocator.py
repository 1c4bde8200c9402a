"""New groups: prompts in their order, with group sizes chosen from the results of earlier epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adagrpo_ray.algorithm.allocation import Posterior, Share, allocate
from adagrpo_ray.config.algorithm import AllocationSettings
from adagrpo_ray.data.order import PromptOrder
from adagrpo_ray.types import Group


class Allocator:
    """Draws prompts as new groups. Without `settings` every group has `group_size` completions."""

    def __init__(self, prompts: PromptOrder, settings: AllocationSettings | None, group_size: int) -> None:
        self._prompts, self._settings, self._group_size = prompts, settings, group_size
        self._posteriors: dict[str, Posterior] = {}  # by prompt
        self._difficulties: dict[str, Posterior] = {}  # by difficulty class, for prompts that were never seen

    @property
    def largest(self) -> int:
        """The largest number of completions of a group."""
        size = self._group_size
        return size if self._settings is None else max(size, self._settings.sizes(size)[1])

    def draw(self, n: int, step: int) -> list[Group]:
        """Draw the next `n` prompts as new groups of `step`, skipping prompts that the allocation leaves out."""
        groups: list[Group] = []
        passed_over = 0
        while len(groups) < n:
            ((prompt, epoch),) = self._prompts.take(1)
            share: Share | None = Share(self._group_size, 0)
            # If a whole pass is left out, every prompt is solved: train on them again.
            if self._settings is not None and passed_over < len(self._prompts):
                posterior = self._posteriors.get(prompt.id) or self._difficulties.get(prompt.difficulty)
                share = allocate(posterior, epoch, self._settings, self._group_size)
            if share is None:
                passed_over += 1
            else:
                groups.append(Group(prompt, epoch, born=step, size=share.size, start=share.start))
        return groups

    def learn(self, first_attempts: Sequence[Group]) -> None:
        """Update the posteriors from the newest completions of groups whose attempts are first ones, or their commits.

        Resamples would bias them, since they end at a success. A commit does not: it is drawn like its pilot, and the
        likelihood of both is the product, whatever decided on the commit.
        """
        if self._settings is None:
            return
        discount = self._settings.discount
        difficulties: dict[str, NDArray[np.bool_]] = {}
        for group in first_attempts:
            kept = 1.0 if group.last.part == "commit" else discount  # a commit is of the epoch of its pilot
            _update(self._posteriors, group.prompt.id, group.last.correct, kept)
            before = difficulties.get(group.prompt.difficulty, np.empty(0, np.bool_))
            difficulties[group.prompt.difficulty] = np.concatenate([before, group.last.correct])
        for difficulty, correct in difficulties.items():
            _update(self._difficulties, difficulty, correct, discount)

    def state_dict(self) -> dict[str, Any]:
        """The state that determines the next groups."""
        return {
            "prompts": self._prompts.state_dict(),
            "posteriors": dict(self._posteriors),
            "difficulties": dict(self._difficulties),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a result of `state_dict`; prompts and settings must be the same."""
        self._prompts.load_state_dict(state["prompts"])
        self._posteriors, self._difficulties = dict(state["posteriors"]), dict(state["difficulties"])


def _update(posteriors: dict[str, Posterior], key: str, correct: NDArray[np.bool_], discount: float) -> None:
    found = int(correct.sum())
    posteriors[key] = posteriors.get(key, Posterior()).after(found, len(correct) - found, discount)
