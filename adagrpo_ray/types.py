"""What flows through a training step, as frozen dataclasses.

Axis names used in all docstrings: G completions of a group, T tokens of one completion,
F reward functions, N completions of a training batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

TokenIds = NDArray[np.int32]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn, in no engine's own words.

    `top_k` 0 and `min_p` 0.0 switch those filters off. A temperature of 0 is greedy decoding. Where `answer` is
    given it takes over after the marker of the thought's end; its own `answer` is None.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    answer: SamplingParams | None = None


@dataclass(frozen=True, eq=False)
class Prompt:
    """One problem, as the model sees it.

    `id` is stable over runs, models and templates, and unique in its data set. `text` is the problem as the user
    wrote it, `token_ids` the chat template's rendering with the generation prompt. `answer` is the ground truth
    handed to the reward functions, `difficulty` a difficulty class for the reports ("" where there is none),
    `columns` all that the row holds, each column whole and under its own name, for the reward functions.
    """

    id: str
    text: str
    token_ids: TokenIds
    answer: str
    difficulty: str = ""
    columns: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class GenerationRequest:
    """One call on a rollout actor: n completions of one prompt, all with the same parameters."""

    prompt_id: str
    prompt_token_ids: TokenIds
    n: int
    sampling: SamplingParams
    max_new_tokens: int
    seed: int


@dataclass(frozen=True, eq=False)
class Completion:
    """One sampled completion.

    `token_ids` [T] ends with the end-of-text token where `finish_reason` is "stop"; it may hold pad tokens,
    which are sampled tokens like any other. `logprobs` [T] are those of the behaviour policy: the
    distribution that the tokens were really drawn from, after temperature and filters.
    `weight_version` is the LoRA version in force when the request came in. It drew all of them, except where weights
    are merged and rollouts run ahead of training: there a later version may have drawn the last ones.
    """

    token_ids: TokenIds
    logprobs: Floats
    text: str
    finish_reason: str
    weight_version: int

    @property
    def truncated(self) -> bool:
        """Whether it ended by a limit and not by itself."""
        return self.finish_reason != "stop"


@dataclass(frozen=True, eq=False)
class Attempt:
    """One sampling of a group, scored.

    `rung` is -1 for the first attempt (the base parameters), else the place in the ladder of resamples,
    from 0. `rewards` [G] are the weighted totals, `rewards_by_function` [G, F] the raw scores (NaN where a
    function does not apply), `correct` [G] says which completions are correct.
    """

    rung: int
    sampling: SamplingParams
    completions: tuple[Completion, ...]
    rewards: Floats
    rewards_by_function: Floats
    correct: NDArray[np.bool_]

    @property
    def generated_tokens(self) -> int:
        """Tokens sampled in this attempt."""
        return sum(len(c.token_ids) for c in self.completions)


@dataclass(frozen=True, eq=False)
class Group:
    """One epoch of a prompt and its attempts so far.

    `epoch` counts how often the prompt was drawn from the data, from 0; `born` is the step that drew it; `size`
    is G, the completions of each attempt; `start` is how many rungs above the base the first attempt stands; `late`
    says that an earlier step ended without it.
    Worked example: four completions score [0, 0, 0, 0], none is correct, so the group is resampled and
    scores [1, 0, 0, 0]: two attempts, statistics over all eight rewards.
    """

    prompt: Prompt
    epoch: int
    born: int
    size: int
    start: int = 0
    late: bool = False
    attempts: tuple[Attempt, ...] = ()

    def with_attempt(self, attempt: Attempt) -> Group:
        """The group after one more attempt."""
        return replace(self, attempts=(*self.attempts, attempt))

    @property
    def last(self) -> Attempt:
        """The newest attempt."""
        return self.attempts[-1]

    @property
    def generated_tokens(self) -> int:
        """Tokens sampled over all attempts."""
        return sum(a.generated_tokens for a in self.attempts)


@dataclass(frozen=True, eq=False)
class TrainSample:
    """One completion with all that the loss needs.

    `token_weights` [T] already hold the loss's normalisation over the whole batch of all ranks, so that
    the sum over tokens is the loss whatever micro-batches or ranks the samples fall into. `difficulty` is the prompt's.
    """

    prompt_token_ids: TokenIds
    token_ids: TokenIds
    behaviour_logprobs: Floats
    token_weights: Floats
    advantage: float
    difficulty: str = ""


@dataclass(frozen=True, eq=False)
class TrainBatch:
    """What one rank trains on in one step, cut into micro-batches.

    Every rank has the same number of micro-batches; none at all where the step has nothing to train on.
    """

    step: int
    micro_batches: tuple[tuple[TrainSample, ...], ...]
