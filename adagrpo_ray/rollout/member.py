"""A rollout actor in a pool: its outstanding tokens, its replies, and the detection of its loss."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError, TaskCancelledError

from adagrpo_ray.errors import ActorLostError, AdaGRPOError, RolloutError, SyncError, first_line
from adagrpo_ray.lora.payload import AdapterWeights
from adagrpo_ray.rollout.engine import SyncReceipt
from adagrpo_ray.types import Completion, GenerationRequest


@dataclass(eq=False)
class Member:
    """A rollout actor that takes requests.

    - `actor`: its Ray handle.
    - `node`: the id of its node; "" until it has one.
    - `outstanding`: the most tokens that its requests in flight may generate.
    - `requests`: number of requests in flight.
    """

    actor: Any
    name: str
    node: str = ""
    outstanding: int = 0
    requests: int = 0

    async def generate(self, request: GenerationRequest, limit_s: float) -> tuple[Completion, ...]:
        """Send the request and wait for its completions.

        Raises ActorLostError if there is no reply in time; the actor then aborts the request.
        """
        tokens = request.n * request.max_new_tokens
        self.outstanding += tokens
        self.requests += 1
        reference = self.actor.generate.remote(request)
        try:
            async with asyncio.timeout(limit_s):
                completions: tuple[Completion, ...] = await self.answer(reference)
            return completions
        except asyncio.CancelledError:
            ray.cancel(reference)  # the actor aborts the request, and generates no more tokens for it
            raise
        except TimeoutError:
            ray.cancel(reference)
            raise ActorLostError(
                f"{self.name} did not answer for prompt {request.prompt_id} in {limit_s:g} s; "
                "raise rollout.request_timeout_s, or lower rollout.max_new_tokens"
            ) from None
        finally:
            self.outstanding -= tokens
            self.requests -= 1

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
        """Wait for the actor's reply. Raises ActorLostError if it or its engine is gone, or else the actor's error."""
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
        except RayActorError as error:
            # The first line has the kind of death; many more lines list possible causes.
            raise ActorLostError(f"{self.name} died: {first_line(error)}") from error
