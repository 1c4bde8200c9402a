"""The phases of requests as tensors on a device, by the slot that vLLM's second model runner gives to a request.

The host never waits for a token: the search for the marker is a table of states on the device. Plain torch, on any
device. Axis names: S slots, R rows of one step, L tokens of the longest sequence, V the vocabulary, M states.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from adagrpo_ray.config.sampling import PhaseParams
from adagrpo_ray.rollout.marker import Automata
from adagrpo_ray.rollout.phase_request import Phases
from adagrpo_ray.rollout.phase_tensors import PhaseTensors, kept_of

ToDevice = Callable[[NDArray[np.generic]], torch.Tensor]
"""Copies an array to the device, if possible without waiting for it."""


class PhaseSlots:
    """Phases, state of the search for the marker, and used tokens of the request in each slot.

    Each marker adds a table of its length + 1 states by V int32, which stays: 5 MB for `</think>` and 152,000 tokens.
    The used tokens take S x V bytes from the first request with a repetition penalty on.
    """

    def __init__(self, slots: int, vocabulary: int, automata: Automata, to_device: ToDevice) -> None:
        self.active = np.zeros(slots, bool)
        """Whether the request in a slot has phases, shape [S], on the host."""
        self._size, self._automata, self._to_device = vocabulary, automata, to_device
        self._staged: dict[int, Phases] = {}
        self._starts: dict[str | tuple[int, ...], tuple[int, int]] = {}  # first and last state of a marker
        self._table = to_device(np.zeros((0, vocabulary), np.int32))  # [M, V]
        self._answering = to_device(np.zeros(0, np.int64))  # [M]: 1 in states after the marker
        self._states = to_device(np.zeros(slots, np.int64))  # [S]
        self._off = np.array([1.0, 0.0, vocabulary, 1.0, 1.0], np.float32)  # columns of `_values`
        self._values = to_device(np.broadcast_to(self._off, (slots, 2, 5)).copy())  # [S, 2, 5]: thought and answer
        self._on = np.zeros((slots, 5), bool)  # whether a phase of the slot has another value than `_off`, on the host
        self._used: torch.Tensor | None = None  # [S, V]

    def stage(self, slot: int, phases: Phases | None) -> bool:
        """Put the phases of a new request into its slot with the next `write`; returns whether it has some."""
        self._staged.pop(slot, None)
        self.active[slot] = phases is not None
        if phases is not None:
            self._staged[slot] = phases
        return phases is not None

    def write(self, tokens: torch.Tensor, prompts: NDArray[np.int32], lengths: NDArray[np.int32]) -> None:
        """Write the staged requests.

        - `tokens` [S, L]: token ids of the requests, prompt and output, on the device.
        - `prompts`, `lengths` [S]: numbers of tokens of the prompt, and of prompt and output. A request that was
          preempted comes back with its output.
        """
        if not self._staged:
            return
        slots = np.array(list(self._staged))
        values = np.array([self._row(phases) for phases in self._staged.values()], np.float32)
        self._on[slots] = (values != self._off).any(axis=1)
        self._values.index_copy_(0, self._to_device(slots), self._to_device(values))
        for slot, phases in self._staged.items():
            self._states[slot] = self._state_after(phases.marker, tokens[slot, prompts[slot] : lengths[slot]])
            if self._on[slot, -1]:
                self._mark(slot, tokens[slot, : lengths[slot]])
        self._staged.clear()

    def advance(self, slots: torch.Tensor, tokens: torch.Tensor, fresh: torch.Tensor) -> None:
        """Read the newest token of each row.

        - `slots`, `tokens` [R]: the slots of the rows, all different, and the ids of their newest tokens.
        - `fresh` [R]: whether the token is an output that has not been read; prompts are fed in several steps.
        """
        before = self._states[slots]
        self._states.index_copy_(0, slots, torch.where(fresh, self._table[before, tokens].long(), before))
        if self._used is not None:
            self._used.index_put_((slots, tokens), self._used[slots, tokens] | fresh)

    def tensors(self, slots: torch.Tensor, on_host: NDArray[np.generic]) -> PhaseTensors:
        """The parameters of the current phases of rows in these slots [R], which are also given on the host."""
        values = self._values[slots, self._answering[self._states[slots]]]
        columns = values.T.contiguous()  # for the kernel behind top_k and top_p, which reads R numbers in a row
        _, min_p, top_k, top_p, penalty = self._on[on_host].any(axis=0)
        return PhaseTensors(
            temperature=columns[0],
            min_p=columns[1] if min_p else None,
            top_k=columns[2].to(torch.int32) if top_k else None,
            top_p=columns[3] if top_p else None,
            penalty=columns[4] if penalty else None,
            used=self._used[slots] if penalty and self._used is not None else None,
        )

    def _row(self, phases: Phases) -> list[list[float]]:
        return [self._columns(params) for params in (phases.thought, phases.answer)]

    def _columns(self, p: PhaseParams) -> list[float]:
        return [p.temperature, p.min_p, kept_of(p.top_k, self._size), p.top_p, p.repetition_penalty]

    def _state_after(self, marker: str | tuple[int, ...], output: torch.Tensor) -> torch.Tensor | int:
        """The state after the output tokens."""
        first, last = self._states_of(marker)
        if not len(output):
            return first
        local = self._table[first : last + 1, output.long()] - first
        return composed(local.T.long())[0] + first

    def _states_of(self, marker: str | tuple[int, ...]) -> tuple[int, int]:
        """First and last state of a marker; its automaton is added if it is new."""
        if marker not in self._starts:
            automaton, first = self._automata.of(marker), len(self._table)
            table = self._to_device(automaton.table(self._size) + np.int32(first))
            self._table = torch.cat([self._table, table])
            answering = np.zeros(automaton.last + 1, np.int64)
            answering[-1] = 1
            self._answering = torch.cat([self._answering, self._to_device(answering)])
            self._starts[marker] = (first, first + automaton.last)
        return self._starts[marker]

    def _mark(self, slot: int, tokens: torch.Tensor) -> None:
        """Make `tokens` the used tokens of a slot."""
        if self._used is None:
            self._used = torch.zeros(len(self.active), self._size, dtype=torch.bool, device=self._values.device)
        self._used[slot] = False
        self._used[slot].index_fill_(0, tokens.long(), True)


def composed(steps: torch.Tensor) -> torch.Tensor:
    """The state [M] after all tokens, for each state before them.

    `steps` [n, M] has the state after each token, for each state before it. Neighbours are joined, so the number of
    operations grows with the logarithm of n: a scan (Hillis and Steele 1986, section on finite-state automata).
    """
    while len(steps) > 1:
        even = len(steps) // 2 * 2
        joined = steps[1:even:2].gather(1, steps[0:even:2])
        steps = torch.cat([joined, steps[even:]])
    return steps[0]
