"""The parts of simulation.py: the measured constants, time, queues, and an engine with continuous batching."""

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
    """The costs of the parts. constants.py measures each field in the function named in brackets.

    *rank 0* is the Python process that samples, scores, packs and sends; its work is serial.
    """

    decode_seconds: (
        float  # s of an engine iteration (one token per sequence), for any number of sequences; above 0 [engine]
    )
    decode_seconds_per_sequence: float  # s for each running sequence [engine]
    prefill_seconds_per_token: float  # s for each token of a prompt, once for each group [engine]
    max_sequences: int  # sequences that an actor decodes at a time [rollout.max_num_seqs]
    merged: bool  # a sync drops the cache of running sequences, which are prefilled again [rollout.lora_mode]
    request_seconds: float  # s of rank 0 for a request: sample, call, pass to a scoring process [sampler+calls+scorer]
    completion_seconds: float  # s of rank 0 for each completion of an answer [sampler+calls]
    pending_seconds: float  # s of rank 0 for each open group of the step, whenever a group ends [sampler]
    batch_seconds: float  # s of rank 0 for each completion of a whole step: samples, micro-batches, put [batches]
    call_seconds: float  # s from the call of an idle actor to its answer [calls]
    pack_seconds: float  # s of rank 0 to make the buffer of an adapter, with its digest [adapter]
    pack_seconds_per_byte: float  # s for each byte [adapter]
    put_seconds: float  # s of rank 0 to put an object into Ray's store [store]
    put_seconds_per_byte: float  # s for each byte [store]
    dispatch_seconds: float  # s of rank 0 to send a version's reference to an actor and receive its receipt [fan_out]
    apply_seconds: float  # s in which an actor decodes nothing because it applies a version [adapter]
    apply_seconds_per_byte: float  # s for each byte [adapter]
    adapter_bytes: int  # [adapter]
    learner_seconds_per_token: float  # s of one rank for a token of a completion, all updates of a step [learner]
    reward_seconds: float  # s of one scoring process for a group [scorer]
    reward_workers: int  # scoring processes [rewards.workers]
    network_seconds_per_byte: float = (
        0.0  # s to a node, one node after the other; 0 if all actors are on one node [not measured]
    )
    actors_per_node: int = 8  # has an effect only with a network [not measured]


class Loop:
    """Simulated time: runs events in the order of their times; events at the same time in the order of `at`."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Call]] = []
        self._numbers = itertools.count()

    def at(self, time: float, call: Call) -> None:
        heapq.heappush(self._events, (time, next(self._numbers), call))

    def run(self, ended: Callable[[], bool]) -> None:
        while not ended():
            self.now, _, call = heapq.heappop(self._events)
            call()


class Servers:
    """`count` equal servers of one first-in-first-out queue."""

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
    """A group in flight: tokens of its prompt and of each completion; `left` completions are still decoded."""

    step: int
    prompt: int
    lengths: list[int]
    left: int
    actor: int = -1


class Engine:
    """The engine of an actor. Sequences join and leave between two iterations, where pauses are too.

    Iterations are equally long until a sequence joins, so that there is one event for each change, not for each token.
    """

    def __init__(
        self, loop: Loop, constants: Constants, answer: Callable[[Request], None], busy: Callable[[int], None]
    ) -> None:
        self._loop, self._c, self._answer, self._report_busy = loop, constants, answer, busy
        self._waiting: deque[tuple[int, Request]] = deque()
        self._running: list[tuple[int, int, int, Request]] = []  # the first item is the last iteration of the sequence
        self._numbers = itertools.count()
        self._pauses: list[Call] = []
        self._iteration = 0  # number of finished iterations at `_clock`
        self._clock = 0.0  # time at which the current sequence of equal iterations began, or may begin
        self._step, self._planned, self._plan = 0.0, 0, 0

    def add(self, request: Request) -> None:
        self._waiting.extend((length, request) for length in request.lengths)
        self._change()

    def pause(self, then: Call) -> None:
        """Apply a version before the next iteration."""
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
        """Called between two iterations; does nothing if the plan was replaced."""
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
                stall += c.prefill_seconds_per_token * self._cached()
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

    def _cached(self) -> float:
        """Tokens in the cache; the prompt of a group is counted once."""
        return sum(
            length - (end - self._iteration) + request.prompt / len(request.lengths)
            for end, _, length, request in self._running
        )
