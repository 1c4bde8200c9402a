"""A rollout actor in a pool: its requests in flight, its replies, and the detection of its loss."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError, TaskCancelledError

from adagrpo_ray.cluster.deaths import DEATHS
from adagrpo_ray.config.rollout import RolloutSettings
from adagrpo_ray.errors import ActorLostError, AdaGRPOError, RolloutError, SyncError, first_line
from adagrpo_ray.lora.payload import AdapterWeights
from adagrpo_ray.rollout.engine import SyncReceipt
from adagrpo_ray.rollout.engine_load import ends_while_active
from adagrpo_ray.types import Completion, GenerationRequest

AHEAD = 4
"""Sequences in flight on a rollout actor, as a multiple of those that its engine decodes at a time.

It is above 1 since a group is in flight until its longest completion ends, when most of its sequences have ended."""


def sequences_in_flight(settings: RolloutSettings) -> int:
    """Number of sequences in flight from which a rollout actor gets no further request."""
    return AHEAD * settings.max_num_seqs


@dataclass(eq=False)
class Member:
    """A rollout actor that takes requests.

    - `actor`: its Ray handle.
    - `node`: the id of its node; "" until it has one.
    - `outstanding`: the most tokens that its requests in flight may generate.
    - `sequences`: number of completions of its requests in flight.
    - `limits`: for each request in flight, the limit that was given to `generate`.
    - `replied_at`: time of its newest reply to a request (`time.monotonic`).
    - `kept`: whether it gets no request but one with a low limit, which waits for it.
    """

    actor: Any
    name: str
    node: str = ""
    outstanding: int = 0
    sequences: int = 0
    limits: list[int] = field(default_factory=list)
    replied_at: float = 0.0
    kept: bool = False

    @property
    def requests(self) -> int:
        """Number of requests in flight."""
        return len(self.limits)

    def has_room(self, limit: int) -> bool:
        """Whether a request with this limit may be sent: fewer sequences are in flight than all limits allow.

        A group that is larger than its limit is thus sent to an actor without requests.
        """
        return self.sequences < min((limit, *self.limits))

    async def generate(self, request: GenerationRequest, limit: int, timeout_s: float) -> tuple[Completion, ...]:
        """Send the request and wait for its completions.

        While it is in flight, the actor has room for another one only with fewer than `limit` sequences. Raises
        ActorLostError if the actor finishes no request for `timeout_s` seconds; it then aborts this one. An engine that
        runs a request finishes one in the time that a request takes, so time in its queue does not count.
        """
        reference = self.actor.generate.remote(request)  # first, since nothing is in flight if it raises
        answer = asyncio.ensure_future(self.answer(reference))
        tokens = request.n * request.max_new_tokens
        self.outstanding += tokens
        self.sequences += request.n
        self.limits.append(limit)
        try:
            if not await ends_while_active(answer, lambda: self.replied_at, timeout_s):
                raise ActorLostError(
                    f"{self.name} finished no request for rollout.request_timeout_s={timeout_s:g} s (prompt "
                    f"{request.prompt_id} is one of them); raise it, or lower rollout.max_new_tokens"
                )
            completions: tuple[Completion, ...] = answer.result()
            self.replied_at = time.monotonic()
            return completions
        finally:
            if not answer.done():
                answer.cancel()
                ray.cancel(reference)  # the actor aborts the request, and generates no more tokens for it
            self.outstanding -= tokens
            self.sequences -= request.n
            self.limits.remove(limit)

    async def apply(self, reference: Any, weights: AdapterWeights, limit_s: float) -> SyncReceipt:
        """Apply a version of the adapter, of which `reference` is in the object store, and compare its digest.

        Raises ActorLostError if there is no reply in time, and SyncError if the digest is another one.
        """
        applied, task = self.actor.apply.remote(reference), f"apply version {weights.version}"
        receipt: SyncReceipt = await self.in_time(applied, limit_s, task)
        if (receipt.version, receipt.digest) != (weights.version, weights.digest):
            raise SyncError(
                f"{self.name} has version {receipt.version} with digest {receipt.digest[:12]}; "
                f"the learner sent version {weights.version} with {weights.digest[:12]}"
            )
        return receipt

    async def in_time(self, reference: Any, limit_s: float, task: str) -> Any:
        """Wait for the actor's reply. Raises ActorLostError, which names the `task`, if it hangs."""
        try:
            async with asyncio.timeout(limit_s):
                return await self.answer(reference)
        except TimeoutError:
            raise ActorLostError(f"{self.name} did not {task} within rollout.stall_timeout_s={limit_s:g} s") from None

    async def answer(self, reference: Any) -> Any:
        """Wait for the actor's reply. Raises ActorLostError if it or its engine is gone, or else the actor's error.

        Errors of Ray that are no death, such as a lost argument, are RolloutErrors.
        """
        try:
            return await reference
        except TaskCancelledError as error:
            raise ActorLostError(f"{self.name} cancelled the request") from error
        except RayTaskError as error:
            if isinstance(error.cause, ActorLostError):
                raise ActorLostError(f"{self.name}: {error.cause}") from None
            if isinstance(error.cause, AdaGRPOError):
                raise error.cause from None
            failed = f"{type(error.cause).__name__}: {first_line(error.cause)}"
            raise RolloutError(f"{self.name} failed: {failed}") from error
        except DEATHS as error:
            # The first line has the kind of death; many more lines list possible causes.
            raise ActorLostError(f"{self.name} died: {first_line(error)}") from error
        except RayError as error:
            raise RolloutError(f"{self.name} failed: {type(error).__name__}: {first_line(error)}") from error
