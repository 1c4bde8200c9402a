"""A rollout actor as its pool sees it: its outstanding tokens, its answers, and the signs that it is lost."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError, TaskCancelledError

from adagrpo_ray.errors import ActorLostError, AdaGRPOError, RolloutError, first_line
from adagrpo_ray.types import Completion, GenerationRequest


@dataclass(eq=False)
class Member:
    """A rollout actor that takes requests; `outstanding` is in tokens that `requests` may still have to generate."""

    actor: Any
    name: str
    node: str = ""
    outstanding: int = 0
    requests: int = 0

    async def generate(self, request: GenerationRequest, limit_s: float) -> tuple[Completion, ...]:
        """The request's completions; ActorLostError if there is no answer in time. The actor then gives it up too."""
        tokens = request.n * request.max_new_tokens
        self.outstanding += tokens
        self.requests += 1
        reference = self.actor.generate.remote(request)
        try:
            async with asyncio.timeout(limit_s):
                completions: tuple[Completion, ...] = await self.answer(reference)
            return completions
        except asyncio.CancelledError:
            ray.cancel(reference)  # the actor aborts it, so that nothing is generated that is not needed
            raise
        except TimeoutError:
            ray.cancel(reference)
            raise ActorLostError(
                f"{self.name} gave no answer for prompt {request.prompt_id} in {limit_s:g} s; "
                "raise rollout.request_timeout_s, or lower rollout.max_new_tokens"
            ) from None
        finally:
            self.outstanding -= tokens
            self.requests -= 1

    async def in_time(self, reference: Any, limit_s: float, what: str) -> Any:
        """The actor's answer; ActorLostError if it hangs, which names its task, `what`."""
        try:
            async with asyncio.timeout(limit_s):
                return await self.answer(reference)
        except TimeoutError:
            raise ActorLostError(f"{self.name} did not {what} within rollout.stall_timeout_s={limit_s:g} s") from None

    async def answer(self, reference: Any) -> Any:
        """The actor's answer; ActorLostError if it or its engine is gone, its own error if it raised one."""
        try:
            return await reference
        except TaskCancelledError as error:
            raise ActorLostError(f"{self.name} gave the request up") from error
        except RayTaskError as error:
            if isinstance(error.cause, ActorLostError):
                raise ActorLostError(f"{self.name}: {error.cause}") from None
            if isinstance(error.cause, AdaGRPOError):
                raise error.cause from None
            failed = f"{type(error.cause).__name__}: {first_line(error.cause)}"
            raise RolloutError(f"{self.name} failed: {failed}") from error
        except RayActorError as error:
            # The first line has how it ended; many more list possible causes.
            raise ActorLostError(f"{self.name} died: {first_line(error)}") from error
