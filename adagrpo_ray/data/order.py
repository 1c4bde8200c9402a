"""The order of prompts: endless passes over the data, each with its own permutation, exactly resumable."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adagrpo_ray.errors import CheckpointError
from adagrpo_ray.types import Prompt

IDS = "row"
"""The source of prompt ids: rows, see `data.row_id`. A checkpoint without this entry has ids of rendered texts."""


def check_ids(state: Mapping[str, Any]) -> None:
    """Raise CheckpointError if a state of `PromptOrder.state_dict` has prompt ids of an older kind."""
    if state.get("ids") != IDS:
        raise CheckpointError(
            "the checkpoint was written by a version that names prompts in another way; finish that run with that "
            "version, or start a new run (model.adapter continues from its adapter)"
        )


class PromptOrder:
    """Returns prompts in order. The epoch of a prompt is the number of the pass, from 0."""

    def __init__(self, prompts: Sequence[Prompt], seed: int, shuffle: bool, template: str = "") -> None:
        """Create the order at its beginning; `template` identifies the chat template that rendered the prompts."""
        self._prompts, self._seed, self._shuffle, self._template = prompts, seed, shuffle, template
        self.taken = 0  # number of prompts taken, over all passes; a caller may set it back
        self._pass, self._order = -1, list[int]()

    def __len__(self) -> int:
        """Return the number of prompts in a pass."""
        return len(self._prompts)

    def take(self, n: int) -> list[tuple[Prompt, int]]:
        """Return the next `n` prompts with their epochs."""
        size, chosen = len(self._prompts), []
        for position in range(self.taken, self.taken + n):
            epoch, place = divmod(position, size)
            chosen.append((self._prompts[self._permutation(epoch)[place]], epoch))
        self.taken += n
        return chosen

    def state_dict(self) -> dict[str, Any]:
        """Return the state, which together with the same prompts and seed is enough to resume."""
        return {"taken": self.taken, "prompts": self._digest(), "ids": IDS, "template": self._template}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a result of `state_dict`.

        Raises CheckpointError if the prompts, their order or the chat template differ.
        """
        check_ids(state)
        if state["prompts"] != self._digest():
            raise CheckpointError(
                f"data.source: the {len(self)} prompts to train on are not those that the run began with; "
                "restore that data, or start a new run"
            )
        if state.get("template") != self._template:
            raise CheckpointError(
                "model.path or data.chat_template: the chat template is not the one that the run began with; restore "
                "that one, or start a new run"
            )
        self.taken = state["taken"]

    def _digest(self) -> str:
        return hashlib.sha256("\n".join(prompt.id for prompt in self._prompts).encode()).hexdigest()

    def _permutation(self, epoch: int) -> Sequence[int]:
        if not self._shuffle:
            return range(len(self._prompts))
        if self._pass != epoch:
            order = np.random.default_rng([self._seed, epoch]).permutation(len(self._prompts))
            self._pass, self._order = epoch, order.tolist()
        return self._order
