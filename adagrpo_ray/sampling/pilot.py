"""Pilot and commit: how a group continues after each part of an attempt, and the request for the next part.

A pilot is a few completions at the parameters of the attempt. If some of them are correct, the rest of the group, its
commit, follows at once at the base parameters. This is the two-stage sampling of arXiv 2605.26606 with the ladder of
adaptive GRPO for groups that fail; docs/method.md has the differences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adagrpo_ray.algorithm.criterion import Criterion
from adagrpo_ray.algorithm.ladder import request_seed
from adagrpo_ray.types import GenerationRequest, Group, Part, SamplingParams

Verdict = Literal["ready", "commit", "resample"]


@dataclass(frozen=True)
class Planned:
    """The next request of a group.

    - `part`, `rung`: those of the attempt that it samples.
    - `price`: completions whose price is reserved in the budget before it is sent. For a pilot these are all of the
      group, so that a commit never lacks room.
    """

    request: GenerationRequest
    part: Part
    rung: int
    price: int


def verdict(group: Group, criterion: Criterion) -> Verdict:
    """How a group continues after its newest completions.

    - A whole attempt: it is ready if it meets the criterion, else sampled again.
    - A pilot: if all of its completions are correct, the prompt is solved, and the group is ready without a commit.
      Else it gets its commit if it meets the criterion, and is sampled again if not.
    - A commit: it is ready, whatever the commit gave.
    """
    newest = group.last
    if newest.part == "commit" or (newest.part == "pilot" and newest.correct.all()):
        return "ready"
    if not criterion(group):
        return "resample"
    return "commit" if newest.part == "pilot" else "ready"


class Planner:
    """Makes the requests of groups. Their seeds depend on run seed, prompt, epoch, attempt and part alone."""

    def __init__(self, base: SamplingParams, pilot_size: int | None, max_new_tokens: int, seed: int) -> None:
        self._base, self._pilot_size = base, pilot_size or 0
        self._max_new_tokens, self._seed = max_new_tokens, seed

    def attempt(self, group: Group, sampling: SamplingParams) -> Planned:
        """The request for the next attempt of `group`, or for its pilot if there are pilots.

        A group that is not larger than a pilot is sampled as a whole.
        """
        part: Part = "pilot" if 0 < self._pilot_size < group.size else "whole"
        number = len(group.attempts)
        request = self._request(group, self._pilot_size if part == "pilot" else group.size, sampling, number)
        return Planned(request, part, group.next_rung, group.size)

    def commit(self, group: Group) -> Planned:
        """The request for the rest of `group` after its pilot."""
        rest = group.size - len(group.last.completions)
        request = self._request(group, rest, self._base, len(group.attempts) - 1, commit=True)
        return Planned(request, "commit", -1, rest)

    def _request(
        self, group: Group, n: int, sampling: SamplingParams, number: int, *, commit: bool = False
    ) -> GenerationRequest:
        prompt = group.prompt
        return GenerationRequest(
            prompt_id=prompt.id,
            prompt_token_ids=prompt.token_ids,
            n=n,
            sampling=sampling,
            max_new_tokens=self._max_new_tokens,
            seed=request_seed(self._seed, prompt.id, group.epoch, number, commit=commit),
        )
