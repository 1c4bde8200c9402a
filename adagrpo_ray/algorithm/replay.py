"""Replay: informative groups of earlier steps fill up a step that has few of its own.

Sources: a buffer of bounded age lets rollouts be trained on more than once (Arnal et al., "Efficient RL Training for
LLMs with Experience Replay", arXiv 2604.08706). The fresh groups of a batch are kept and replayed ones added, and an
age limit bounds staleness (arXiv 2606.04560, which replays single rollouts). Groups of equal rewards make room for
groups of earlier batches in TRL's experimental `GRPOWithReplayBufferTrainer`. Unlike these, the groups with the rarest
successes are replayed first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from adagrpo_ray.config.group_replay import ReplaySettings
from adagrpo_ray.types import Group, Prompt


@dataclass(frozen=True, eq=False)
class Replayable:
    """A group that may be trained on again, with the log-probabilities and versions of its sampling.

    - `step`: the step that first trained on it.
    - `times`: how often it was replayed.
    """

    group: Group
    step: int
    times: int = 0


class ReplayBuffer:
    """The groups of earlier steps that may be replayed, at most one for each prompt.

    It holds no more groups than the last `settings.max_age` steps trained on.
    """

    def __init__(self, settings: ReplaySettings, prompts_per_step: int) -> None:
        self._settings, self._places = settings, prompts_per_step
        self._kept: dict[str, Replayable] = {}  # by prompt

    def fill(
        self, step: int, informative: Sequence[Group], attempts: Iterable[Group], solved: Callable[[Prompt], bool]
    ) -> tuple[Replayable, ...]:
        """Choose the groups that `step` replays, and keep its own `informative` groups for later steps.

        `attempts` has the group after each attempt of the step, and `solved` knows the prompts that are solved by
        earlier results. A step replays as many groups as it lacks to `prompts_per_step` informative ones, and at most
        a share of `settings.share` of that number:

        - groups of earlier steps, at most `settings.max_age` steps old, each at most `settings.times` times,
        - of prompts that this step has not sampled and that are not solved,
        - those with the lowest share of correct completions first; of equal ones, those of the newest step.

        A group is kept if some of its completions are correct and some wrong, over all attempts, and replaces an
        earlier one of its prompt. It leaves if the prompt is solved: by `solved`, or since all completions of a newer
        group are correct.
        """
        sampled = {group.prompt.id: group for group in attempts}  # the newest attempt of a prompt is its last one
        done = {prompt for prompt, group in sampled.items() if success_rate(group) == 1.0}
        kept = {
            prompt: each
            for prompt, each in self._kept.items()
            if step - each.step <= self._settings.max_age and prompt not in done and not solved(each.group.prompt)
        }
        able = [each for prompt, each in kept.items() if each.step < step and prompt not in sampled]
        able.sort(key=lambda each: (success_rate(each.group), -each.step))
        most = min(math.ceil(self._settings.share * self._places), self._places - len(informative))
        replayed = tuple(replace(each, times=each.times + 1) for each in able[: max(0, most)])
        kept |= {each.group.prompt.id: each for each in replayed}
        kept |= {group.prompt.id: Replayable(group, step) for group in informative if _replayable(group)}
        self._kept = {prompt: each for prompt, each in kept.items() if self._remains(each, step)}
        return replayed

    def state(self) -> list[Replayable]:
        """The groups that may be replayed, in the order of their choice among equal ones."""
        return list(self._kept.values())

    def restore(self, state: Iterable[Replayable]) -> None:
        """Restore a result of `state`."""
        self._kept = {each.group.prompt.id: each for each in state}

    def _remains(self, each: Replayable, step: int) -> bool:
        """Whether a step after `step` may replay it."""
        return each.times < self._settings.times and step - each.step < self._settings.max_age


def success_rate(group: Group) -> float:
    """The share of correct completions over all attempts."""
    return float(np.concatenate([attempt.correct for attempt in group.attempts]).mean())


def _replayable(group: Group) -> bool:
    """Whether a group has correct and wrong completions.

    Log-probabilities that are not finite come from weights or logits that are not, and would skip an update again.
    """
    finite = all(np.isfinite(c.logprobs).all() for attempt in group.attempts for c in attempt.completions)
    return finite and 0.0 < success_rate(group) < 1.0
