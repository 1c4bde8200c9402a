"""What simulation.py is made of: the measured constants, time, queues, and an engine with continuous batching."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

Call = Callable[[], None]


@dataclass(frozen=True)
class Constants:
    """What the parts take; constants.py measures a field in the function named in brackets.

    *rank 0* is the one Python process that samples, scores, packs and sends: its seconds are serial.
    """

    decode_seconds: float  # s of an engine iteration (one token a sequence), whatever runs in it; above 0 [engine]
    decode_seconds_per_sequence: float  # s more for each running sequence [engine]
    prefill_seconds_per_token: float  # s more for each token of a prompt, once a group [engine]
    max_sequences: int  # sequences that an actor decodes at a time [rollout.max_num_seqs]
    merged: bool  # a sync drops what the cache holds of running sequences, so prefills them again [rollout.lora_mode]
    request_seconds: float  # s of rank 0 for a request: sample, call, hand over to be scored [sampler+calls+scorer]
    completion_seconds: float  # s of rank 0 for each completion of an answer [sampler+calls]
    pending_seconds: float  # s of rank 0 for each group of the step still open, whenever one ends [sampler]
    batch_seconds: float  # s of rank 0 for each completion of a whole step: samples, micro-batches, put [batches]
    call_seconds: float  # s from an actor call to its answer where nobody else calls [calls]
    pack_seconds: float  # s of rank 0 to make one buffer of the adapter, with its digest [adapter]
    pack_seconds_per_byte: float  # s more for each byte [adapter]
    put_seconds: float  # s of rank 0 to put an object into Ray's store [store]
    put_seconds_per_byte: float  # s more for each byte [store]
    dispatch_seconds: float  # s of rank 0 to send a version's reference to one actor and take its receipt [fan_out]
    apply_seconds: float  # s that one actor decodes nothing because it puts a version into effect [adapter]
    apply_seconds_per_byte: float  # s more for each byte [adapter]
    adapter_bytes: int  # [adapter]
    learner_seconds_per_token: float  # s of one rank for a completion's token, all updates of a step [learner]
    reward_seconds: float  # s of one scoring process for a group [scorer]
    reward_workers: int  # scoring processes [rewards.workers]
    network_seconds_per_byte: float = 0.0  # s to a node, one node after the other; 0: all on one [not measured]
    actors_per_node: int = 8  # counts only with a network [not measured]


class Loop:
    """Simulated time: what is to happen, in the order of its time, and of the asking where the times are equal."""

    def __init__(self) -> None:
        self.now = 0.0
        self._coming: list[tuple[float, int, Call]] = []
        self._numbers = itertools.count()

    def at(self, time: float, call: Call) -> None:
        heapq.heappush(self._coming, (time, next(self._numbers), call))

    def run(self, ended: Callable[[], bool]) -> None:
        while not ended():
            self.now, _, call = heapq.heappop(self._coming)
            call()


class Servers:
    """`count` equal servers of one queue; first come, first served."""

    def __init__(self, loop: Loop, count: int = 1) -> None:
        self._loop, self._free = loop, [0.0] * count
        self.busy = 0.0

    def do(self, seconds: float, then: Call | None = None, counted: bool = True) -> None:
        end = max(self._free[0], self._loop.now) + seconds
        heapq.heapreplace(self._free, end)
        self.busy += seconds if counted else 0.0
        if then is not None:
            self._loop.at(end, then)


@dataclass(eq=False)
class Request:
    """A group on its way: tokens of its prompt and of each completion, and how many still decode."""

    step: int
    prompt: int
    lengths: list[int]
    left: int
    actor: int = -1


class Engine:
    """One actor's engine: sequences join and leave between two iterations, pauses fall there too.

    While nothing joins, iterations take equally long, so there is one event for each change, not for each token.
    """

    def __init__(
        self, loop: Loop, constants: Constants, answer: Callable[[Request], None], busy: Callable[[int], None]
    ) -> None:
        self._loop, self._c, self._answer, self._report_busy = loop, constants, answer, busy
        self._waiting: deque[tuple[int, Request]] = deque()
        self._running: list[tuple[int, int, int, Request]] = []  # first the iteration that ends the sequence
        self._numbers = itertools.count()
        self._pauses: list[Call] = []
        self._iteration = 0  # how many are over, at `_clock`
        self._clock = 0.0  # when the current row of iterations began, or may begin
        self._step, self._planned, self._plan = 0.0, 0, 0

    def add(self, request: Request) -> None:
        self._waiting.extend((length, request) for length in request.lengths)
        self._change()

    def pause(self, then: Call) -> None:
        """Put a version into effect before the next iteration."""
        self._pauses.append(then)
        self._change()

    def _change(self) -> None:
        now = self._loop.now
        if not self._running:
            self._next_change(max(now, self._clock), 0)
        elif self._pauses or len(self._running) < self._c.max_sequences:
            iterations = max(1, math.ceil((now - self._clock) / self._step - 1e-9))
            if iterations < self._planned:
                self._next_change(self._clock + iterations * self._step, iterations)

    def _next_change(self, time: float, iterations: int) -> None:
        self._plan, self._planned = self._plan + 1, iterations
        self._loop.at(time, partial(self._boundary, self._plan))

    def _boundary(self, plan: int) -> None:
        """Between two iterations; of no effect where another plan has come in between."""
        if plan != self._plan:
            return
        c, now, was_busy = self._c, self._loop.now, bool(self._running)
        self._iteration += self._planned
        while self._running and self._running[0][0] <= self._iteration:
            request = heapq.heappop(self._running)[3]
            request.left -= 1
            if not request.left:
                self._loop.at(now + c.call_seconds / 2, partial(self._answer, request))
        stall = 0.0
        for then in self._pauses:
            stall += c.apply_seconds + c.apply_seconds_per_byte * c.adapter_bytes
            self._loop.at(now + stall + c.call_seconds / 2, then)
            if c.merged:
                stall += c.prefill_seconds_per_token * self._held()
        self._pauses.clear()
        while self._waiting and len(self._running) < c.max_sequences:
            length, request = self._waiting.popleft()
            stall += c.prefill_seconds_per_token * request.prompt / len(request.lengths)
            heapq.heappush(self._running, (self._iteration + length, next(self._numbers), length, request))
        self._clock = now + stall
        if self._running:
            self._step = c.decode_seconds + c.decode_seconds_per_sequence * len(self._running)
            iterations = self._running[0][0] - self._iteration
            self._next_change(self._clock + iterations * self._step, iterations)
        if was_busy != bool(self._running):
            self._report_busy(-1 if was_busy else 1)

    def _held(self) -> float:
        """Tokens in the cache; a group holds its prompt once."""
        return sum(
            length - (end - self._iteration) + request.prompt / len(request.lengths)
            for end, _, length, request in self._running
        )
