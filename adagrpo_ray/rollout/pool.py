"""Several rollout actors behind one `generate`: the least loaded gets the next request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from adagrpo_ray.adapter import AdapterWeights
from adagrpo_ray.errors import AdaGRPOError, RolloutError, SyncError
from adagrpo_ray.rollout.engine import SyncReceipt
from adagrpo_ray.types import Completion, GenerationRequest


class RolloutPool:
    """Handles of running `RolloutActor`s. Lives in the process that samples; not shared between threads."""

    def __init__(self, actors: Sequence[Any], request_timeout_s: float) -> None:
        self._actors = list(actors)
        self._outstanding = [0] * len(self._actors)  # tokens that each actor may still have to generate
        self._timeout = request_timeout_s
        self.version = -1  # in effect on all actors
        self._newest = -1  # in effect on some, while it is being applied

    async def generate(self, request: GenerationRequest) -> tuple[Completion, ...]:
        """The request's completions, from the actor with the fewest outstanding tokens.

        Where the caller is cancelled or the request takes too long, the actor gives it up too. Raises RolloutError
        where the actor died, failed or took too long, SyncError where it answered under a version that was not in
        effect meanwhile.
        """
        index = min(range(len(self._actors)), key=self._outstanding.__getitem__)
        tokens, oldest = request.n * request.max_new_tokens, self.version
        self._outstanding[index] += tokens
        answer = self._actors[index].generate.remote(request)
        try:
            completions: tuple[Completion, ...] = await asyncio.wait_for(answer, self._timeout)
        except asyncio.CancelledError:
            ray.cancel(answer)  # the actor aborts it, so that nothing is generated that nobody needs
            raise
        except TimeoutError:
            ray.cancel(answer)
            raise RolloutError(
                f"rollout actor {index} gave no answer for prompt {request.prompt_id} in {self._timeout:g} s; "
                "raise rollout.request_timeout_s, or lower rollout.max_new_tokens"
            ) from None
        except (RayActorError, RayTaskError) as error:
            raise _as_ours(error, f"rollout actor {index} failed on prompt {request.prompt_id}") from error
        finally:
            self._outstanding[index] -= tokens
        wrong = {c.weight_version for c in completions if not oldest <= c.weight_version <= self._newest}
        if wrong:
            raise SyncError(f"rollout actor {index} answered under version {wrong}, the pool is at {self.version}")
        return completions

    async def apply(self, weights: AdapterWeights) -> list[SyncReceipt]:
        """Put a version into effect on all actors; the tensors are put into the object store once.

        Returns only when every actor has read back the learner's digest; raises SyncError otherwise.
        """
        reference, self._newest = ray.put(weights), weights.version
        try:
            receipts: list[SyncReceipt] = await asyncio.gather(*(a.apply.remote(reference) for a in self._actors))
        except (RayActorError, RayTaskError) as error:
            raise _as_ours(error, f"version {weights.version} could not be put into effect") from error
        for index, receipt in enumerate(receipts):
            if (receipt.version, receipt.digest) != (weights.version, weights.digest):
                raise SyncError(
                    f"rollout actor {index} holds version {receipt.version} with digest {receipt.digest[:12]}; "
                    f"the learner sent version {weights.version} with {weights.digest[:12]}"
                )
        self.version = weights.version
        return receipts

    async def sleep(self) -> None:
        """Have all actors leave their GPUs; nothing may be in flight."""
        await self._on_all("sleep")

    async def wake(self) -> None:
        """Have them come back; a version has to be applied before they generate again."""
        await self._on_all("wake")
        self.version = self._newest = -1  # so that no answer counts before

    async def _on_all(self, method: str) -> None:
        try:
            await asyncio.gather(*(getattr(actor, method).remote() for actor in self._actors))
        except (RayActorError, RayTaskError) as error:
            raise _as_ours(error, f"the rollout actors could not {method}") from error


def _as_ours(error: Exception, what: str) -> AdaGRPOError:
    """The actor's own AdaGRPOError where it raised one, else a RolloutError that says what failed."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, AdaGRPOError):
        return cause
    return RolloutError(f"{what}: {str(error).strip().splitlines()[-1]}")
