"""The data that flows through a training step, as frozen dataclasses.

Axis names used in all docstrings: G completions of a group, T tokens of one completion,
P tokens of it that the policy wrote, F reward functions, N completions of a training batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from adagrpo_ray.config.sampling import SamplingParams as SamplingParams  # a setting that flows as it is

TokenIds = NDArray[np.int32]
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
Part = Literal["whole", "pilot", "commit"]
"""A whole attempt or, with `algorithm.pilot_size`, its pilot or its commit: the rest of its completions."""

MAX_TURNS = "max_turns"
"""The `finish_reason` of an episode that the largest number of turns ended."""


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


@dataclass(frozen=True)
class Turn:
    """One turn of an episode: text of the policy, and the observation that follows it.

    - `first`, `end`: the policy wrote `token_ids[first:end]` of the completion in this turn.
    - `text`: the text of these tokens.
    - `observation`: the text of the messages that the environment wrote after them; "" if it wrote none.
    - `reward`: the reward of the environment for this turn; None if it gave none.
    - `tool`: the name of the tool that the turn called; "" if it called none.
    - `error`: the message of an error of the tool or of the environment; "" if there was none.
    """

    first: int
    end: int
    text: str
    observation: str = ""
    reward: float | None = None
    tool: str = ""
    error: str = ""


@dataclass(frozen=True, eq=False)
class Completion:
    """One sampled completion: an answer to the prompt or, with an environment, an episode of several turns.

    - `token_ids` [T]: without an environment they end with the end-of-text token if `finish_reason` is "stop". They may
      contain pad tokens, which are sampled tokens like any other. The tokens of an episode are those of all its turns
      and observations in their order, exactly as the policy read and wrote them.
    - `logprobs` [T]: log-probabilities under the behaviour policy, which is the distribution that the tokens were drawn
      from, after temperature and filters. 0 at observed tokens.
    - `finish_reason`: "stop" if it ended by itself, "length" if the token limit ended it, MAX_TURNS if the largest
      number of turns did.
    - `weight_version`: the LoRA version in effect when the request arrived. All tokens were drawn from it, with one
      exception: if weights are merged and rollouts run ahead of training, a later version may have drawn the last ones.
    - `observed` [T]: whether the environment wrote a token: in an observation, a tool's result, or the text of the
      chat template between turns. None if the policy wrote all tokens.
    - `turns`: the turns of an episode; none without an environment.
    """

    token_ids: TokenIds
    logprobs: Floats
    text: str
    finish_reason: str
    weight_version: int
    observed: Mask | None = None
    turns: tuple[Turn, ...] = ()

    @property
    def policy_tokens(self) -> int:
        """Number of tokens that the policy wrote; lengths, budgets and losses count these."""
        return len(self.token_ids) if self.observed is None else int(np.count_nonzero(~self.observed))

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
        """Tokens that the policy wrote in this attempt."""
        return sum(c.policy_tokens for c in self.completions)

    @property
    def counts(self) -> tuple[int, int]:
        """The number of correct completions, and of all."""
        return int(self.correct.sum()), len(self.correct)


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
    def next_rung(self) -> int:
        """The rung of the next attempt of a group without a commit; -1: the base parameters."""
        return len(self.attempts) + self.start - 1

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

    - `token_ids`, `behaviour_logprobs`, `observed` [T]: those of the `Completion`.
    - `token_weights` [T]: contain the normalisation of the loss over the batch of all ranks. So the weighted sum over
      tokens is the loss, for any division into micro-batches and ranks. 0 at observed tokens.
    - `advantage`: of all tokens of the completion.
    - `difficulty`: the difficulty class of the prompt.
    """

    prompt_token_ids: TokenIds
    token_ids: TokenIds
    behaviour_logprobs: Floats
    token_weights: Floats
    advantage: float
    difficulty: str = ""
    observed: Mask | None = None

    def written(self, values: NDArray[Any]) -> NDArray[Any]:
        """`values` [T] of all tokens without those of observed tokens: P values, one for each that the policy wrote."""
        return values if self.observed is None else values[~self.observed]

    @property
    def policy_tokens(self) -> int:
        """P, the number of tokens that the policy wrote."""
        return len(self.written(self.token_ids))


@dataclass(frozen=True, eq=False)
class TrainBatch:
    """The samples of one rank in one step, divided into mini-batches, and these into micro-batches.

    Each mini-batch has an optimizer step of its own in each of the `passes`, and the gradients of its micro-batches are
    summed. Every rank has the same numbers of all three. There is no mini-batch if the step has nothing to train on.
    """

    step: int
    mini_batches: tuple[tuple[tuple[TrainSample, ...], ...], ...]
    passes: int = 1

    @property
    def micro_batches(self) -> tuple[tuple[TrainSample, ...], ...]:
        """The micro-batches of all mini-batches."""
        return tuple(samples for micro_batches in self.mini_batches for samples in micro_batches)
