"""One episode while it runs: its tokens, of which the policy wrote some and the environment others, and its turns."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from adagrpo_ray.data.messages import Message
from adagrpo_ray.environments.protocol import StepResult
from adagrpo_ray.types import Completion, TokenIds, Turn

FAILED = "failed"
"""The `finish_reason` of an episode whose environment failed. Its last turn has the error."""


class Transcript:
    """The tokens and turns of an episode after its prompt. Nothing that the policy wrote is tokenized again."""

    def __init__(self) -> None:
        self._parts: list[tuple[TokenIds, Completion | None]] = []  # the completion that wrote them, if one did
        self._turns: list[Turn] = []
        self.length = self.written = 0  # tokens, and those of the policy

    @property
    def turns(self) -> int:
        """Number of turns of the policy."""
        return len(self._turns)

    @property
    def tokens(self) -> TokenIds:
        """All tokens so far."""
        return np.concatenate([tokens for tokens, _ in self._parts])

    def add_turn(self, completion: Completion) -> None:
        """Add a turn of the policy."""
        first, end = self.length, self.length + len(completion.token_ids)
        self._turns.append(Turn(first, end, completion.text))
        self._parts.append((completion.token_ids, completion))
        self.length, self.written = end, self.written + len(completion.token_ids)

    def add_step(self, result: StepResult) -> None:
        """Add the reward of the newest turn, and the tool that it used."""
        self._change(reward=result.reward, tool=result.tool, error=result.error)

    def add_reward(self, reward: float) -> None:
        """Add a reward to that of the newest turn."""
        self._change(reward=(self._turns[-1].reward or 0.0) + reward)

    def add_observation(self, messages: Sequence[Message], token_ids: Sequence[int]) -> None:
        """Add messages of the environment, with their tokens."""
        self._change(observation="\n".join(str(message["content"]) for message in messages))
        self._parts.append((np.asarray(token_ids, np.int32), None))
        self.length += len(token_ids)

    def add_error(self, error: str) -> None:
        """Add the error of an environment that failed."""
        self._change(error=error)

    def completion(self, reason: str) -> Completion:
        """Return the episode, which ended for that reason: as one completion, whose text is that of the last turn."""
        written = [completion for _, completion in self._parts if completion is not None]
        return Completion(
            token_ids=self.tokens,
            logprobs=np.concatenate(
                [np.zeros(len(tokens), np.float32) if by is None else by.logprobs for tokens, by in self._parts]
            ),
            text=self._turns[-1].text,
            finish_reason=reason,
            weight_version=min(completion.weight_version for completion in written),
            observed=np.concatenate([np.full(len(tokens), by is None, np.bool_) for tokens, by in self._parts]),
            turns=tuple(self._turns),
        )

    def _change(self, **values: object) -> None:
        self._turns[-1] = replace(self._turns[-1], **values)  # type: ignore[arg-type]


def turn_seed(request_seed: int, episode: int, turn: int) -> int:
    """Seed of a turn after the first one, 0 <= seed < 2**31; the same whenever the request is sent again."""
    key = f"{request_seed}/{episode}/{turn}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:4], "big") >> 1


def environment_seed(prompt_id: str) -> int:
    """Seed of the environments of a prompt, 0 <= seed < 2**31: the same for all its episodes, in any run."""
    return int.from_bytes(hashlib.sha256(f"environment/{prompt_id}".encode()).digest()[:4], "big") >> 1
