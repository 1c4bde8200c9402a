"""The data that flows through a training step, as frozen dataclasses.

Axis names used in all docstrings: G completions of a group, T tokens of one completion,
F reward functions, N completions of a training batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adagrpo_ray.config.sampling import SamplingParams as SamplingParams  # a setting that flows as it is

TokenIds = NDArray[np.int32]
Floats = NDArray[np.float32]
Part = Literal["whole", "pilot", "commit"]
"""A whole attempt or, with `algorithm.pilot_size`, its pilot or its commit: the rest of its completions."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """One problem, as the model sees it.

    - `id`: unique in its data set, and the same in every run, with every model and every template.
    - `text`: the problem as the user wrote it.
    - `token_ids`: the problem rendered by the chat template, with the generation prompt.
    - `answer`: the ground truth, for the reward functions.
    - `difficulty`: the difficulty class, for reports; "" if there is none.
    - `columns`: all columns of the row by their names, for the reward functions.
    """

    id: str
    text: str
    token_ids: TokenIds
    answer: str
    difficulty: str = ""
    columns: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class GenerationRequest:
    """One call of a rollout actor: n completions of one prompt, all with the same parameters."""

    prompt_id: str
    prompt_token_ids: TokenIds
    n: int
    sampling: SamplingParams
    max_new_tokens: int
    seed: int


@dataclass(frozen=True, eq=False)
class Completion:
    """One sampled completion.

    - `token_ids` [T]: ends with the end-of-text token if `finish_reason` is "stop". It may contain pad tokens, which
      are sampled tokens like any other.
    - `logprobs` [T]: log-probabilities under the behaviour policy, which is the distribution that the tokens were drawn
      from, after temperature and filters.
    - `weight_version`: the LoRA version in effect when the request arrived. All tokens were drawn from it, with one
      exception: if weights are merged and rollouts run ahead of training, a later version may have drawn the last ones.
    """

    token_ids: TokenIds
    logprobs: Floats
    text: str
    finish_reason: str
    weight_version: int

    @property
    def truncated(self) -> bool:
        """Whether a limit ended the completion."""
        return self.finish_reason != "stop"


@dataclass(frozen=True, eq=False)
class Attempt:
    """One sampling of a group, with its scores: a whole attempt, its pilot, or its commit.

    - `rung`: -1 for the base parameters, which first attempts and commits use; else the index in the ladder of
      resamples, from 0.
    - `rewards` [G]: the weighted sums of the scores.
    - `rewards_by_function` [G, F]: the scores themselves; NaN if a function does not apply.
    - `correct` [G]: whether each completion counts as correct.
    - `part`: a pilot and its commit are entries of their own; together they are one attempt.
    """

    rung: int
    sampling: SamplingParams
    completions: tuple[Completion, ...]
    rewards: Floats
    rewards_by_function: Floats
    correct: NDArray[np.bool_]
    part: Part = "whole"

    @property
    def generated_tokens(self) -> int:
        """Tokens sampled in this attempt."""
        return sum(len(c.token_ids) for c in self.completions)


@dataclass(frozen=True, eq=False)
class Group:
    """One epoch of a prompt and its attempts so far.

    - `epoch`: how often the prompt was drawn from the data before, from 0.
    - `born`: the step that drew the prompt.
    - `size`: G, the number of completions of each attempt; a pilot and its commit have so many together.
    - `start`: how many rungs above the base the first attempt is.
    - `late`: whether an earlier step ended without this group.
    - `attempts`: the oldest first. Only the last one may be a commit: after it the group is ready.
    - `chance`: the success rate that was expected when the prompt was drawn; None without earlier results.

    Worked example: four completions score [0, 0, 0, 0]. None is correct, so the group is resampled and scores [1, 0, 0,
    0]. It then has two attempts, and its statistics are over all eight rewards.
    """

    prompt: Prompt
    epoch: int
    born: int
    size: int
    start: int = 0
    late: bool = False
    attempts: tuple[Attempt, ...] = ()
    chance: float | None = None

    def with_attempt(self, attempt: Attempt) -> Group:
        """The group after one more attempt."""
        return replace(self, attempts=(*self.attempts, attempt))

    @property
    def last(self) -> Attempt:
        """The newest attempt, or the newest part of it."""
        return self.attempts[-1]

    @property
    def final(self) -> tuple[Attempt, ...]:
        """The newest attempt with all of its parts, the oldest first."""
        return self.attempts[-2:] if self.last.part == "commit" else self.attempts[-1:]

    @property
    def resamples(self) -> int:
        """The number of attempts after the first one; a commit is part of its attempt."""
        return sum(attempt.part != "commit" for attempt in self.attempts[1:])

    @property
    def generated_tokens(self) -> int:
        """Tokens sampled over all attempts."""
        return sum(a.generated_tokens for a in self.attempts)


@dataclass(frozen=True, eq=False)
class TrainSample:
    """One completion with the inputs of the loss.

    - `token_ids`, `behaviour_logprobs` [T]: those of the `Completion`.
    - `token_weights` [T]: contain the normalisation of the loss over the batch of all ranks. So the weighted sum over
      tokens is the loss, for any division into micro-batches and ranks.
    - `advantage`: of all tokens of the completion.
    - `difficulty`: the difficulty class of the prompt.
    """

    prompt_token_ids: TokenIds
    token_ids: TokenIds
    behaviour_logprobs: Floats
    token_weights: Floats
    advantage: float
    difficulty: str = ""


@dataclass(frozen=True, eq=False)
class TrainBatch:
    """The samples of one rank in one step, divided into micro-batches.

    Every rank has the same number of micro-batches, which is 0 if the step has nothing to train on.
    """

    step: int
    micro_batches: tuple[tuple[TrainSample, ...], ...]
