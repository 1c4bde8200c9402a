"""vLLM's async engine: one request for each group, and versions of the adapter applied in memory."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from adagrpo_ray.config.sampling import PhaseParams
from adagrpo_ray.config.tree import Config
from adagrpo_ray.data.completion_text import CompletionText, stop_ids
from adagrpo_ray.errors import RolloutError, SyncError
from adagrpo_ray.lora.payload import AdapterWeights
from adagrpo_ray.rollout.engine_log import EngineLog
from adagrpo_ray.rollout.engine_start import StartedEngine, kept_versions, start_engine
from adagrpo_ray.rollout.vllm_params import vllm_params
from adagrpo_ray.runs.records import RolloutLoad
from adagrpo_ray.types import Completion, GenerationRequest
from adagrpo_ray.types import SamplingParams as OurParams

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest


@dataclass(frozen=True)
class SyncReceipt:
    """The reply of a rollout actor to a new version: the digest of the weights that it has now."""

    version: int
    digest: str


class RolloutEngine:
    """One vLLM engine. All methods are coroutines of one event loop."""

    def __init__(self, started: StartedEngine, config: Config) -> None:
        self._started, self._engine, self._load, self._config = started, started.engine, started.load, config
        self._text, self._stops = CompletionText(started.tokenizer, config.data.format), stop_ids(started.tokenizer)
        self._version = -1
        self._lora: LoRARequest | None = None
        self._lora_ids = count(1)  # vLLM's ids of adapters; not the versions, which may be applied in any order
        self._requests = 0

    @classmethod
    async def start(
        cls,
        model_path: str,
        max_model_len: int,
        config: Config,
        template: str | None = None,
        log: EngineLog | None = None,
    ) -> Self:
        """Load the base model with `start_engine`; the engine serves version -1, the base, until `apply`."""
        return cls(start_engine(model_path, max_model_len, config, template, log), config)

    @property
    def load(self) -> RolloutLoad:
        """The load of the engine in its last decoding step."""
        return self._load.newest

    async def warm_up(self) -> None:
        """Generate a few tokens, so that lazy compilation happens now, without a time limit.

        With phases, the processor also reads the vocabulary for the marker, which takes seconds.
        """
        sampling = OurParams(answer=PhaseParams() if self._config.uses_phases else None)
        request = GenerationRequest("warm-up", np.zeros(4, np.int32), 2, sampling, 2, seed=0)
        await self._last(request, self._params(request), self._lora)
        await asyncio.to_thread(self._started.copy_log)

    async def generate(self, request: GenerationRequest) -> tuple[Completion, ...]:
        """Generate the n completions of the request with the version in effect on arrival; see `apply` for `merged`."""
        from vllm.sampling_params import RequestOutputKind

        params = self._params(
            request, logprobs=0, flat_logprobs=True, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
        )
        version, limit = self._version, self._config.rollout.stall_timeout_s
        final = await self._load.while_it_steps(self._last(request, params, self._lora), limit)
        if final is None or len(final.outputs) != request.n:
            raise RolloutError(f"vLLM did not return {request.n} completions for prompt {request.prompt_id}")
        return tuple(
            Completion(
                token_ids=np.asarray(output.token_ids, dtype=np.int32),
                logprobs=np.asarray(output.logprobs.logprobs, dtype=np.float32),  # of the sampled tokens alone
                text=self._text.text(output.token_ids, ended=output.finish_reason == "stop"),
                finish_reason=str(output.finish_reason),
                weight_version=version,
            )
            for output in final.outputs
        )

    async def _last(self, request: GenerationRequest, params: Any, lora: LoRARequest | None) -> Any:
        """Wait for the last of vLLM's outputs; returns None if there is none."""
        last = None
        with self._started.alive():
            async for output in self._outputs(request, params, lora):
                last = output
        return last

    def _params(self, request: GenerationRequest, **output: Any) -> Any:
        return vllm_params(request, self._stops, self._config.data.format.think_end, **output)

    def _outputs(self, request: GenerationRequest, params: Any, lora: LoRARequest | None) -> Any:
        """Start the request and return vLLM's outputs; if the caller is cancelled, vLLM aborts the request."""
        from vllm.inputs.engine import tokens_input

        self._requests += 1
        prompt = tokens_input(request.prompt_token_ids.tolist())
        return self._engine.generate(prompt, params, str(self._requests), lora_request=lora)

    async def apply(self, weights: AdapterWeights) -> SyncReceipt:
        """Apply a version of the adapter for all later requests. Raises SyncError if the weights do not arrive whole.

        In mode `adapter`, requests in flight end with the version that they began with. In mode `merged`, the engine
        pauses between two decoding steps, and requests in flight continue with the new weights. Their cached keys and
        values belong to the old weights, so they are dropped and computed again.
        """
        with self._started.alive():
            digests = await self._install(weights)
        wrong = next((digest for digest in digests if digest != weights.digest), None)
        if wrong is not None:
            raise SyncError(f"version {weights.version}: sent {weights.digest[:12]}, a rollout worker has {wrong[:12]}")
        self._version = weights.version
        return SyncReceipt(weights.version, digests[0])

    async def _install(self, weights: AdapterWeights) -> list[str]:
        """Send the tensors to all workers; returns the digest of the weights that each worker has."""
        digests: list[str]
        data = weights.data.tobytes()
        if self._config.rollout.lora_mode == "adapter":
            lora_id = next(self._lora_ids)
            digests = await self._engine.collective_rpc(
                "install_adapter", args=(lora_id, data, weights.r, weights.alpha, kept_versions(self._config.algorithm))
            )
            from vllm.lora.request import LoRARequest

            # Name and id are new for every version: adapters of one name share prefix-cache blocks.
            self._lora = LoRARequest(f"adapter-{lora_id}", lora_id, lora_path="in-memory")
        else:
            # Like the engine's own `pause_generation`, but without its sleep of 20 ms.
            await self._engine.engine_core.pause_scheduler_async(mode="keep", clear_cache=True)
            try:
                digests = await self._engine.collective_rpc("merge_adapter", args=(data, weights.r, weights.alpha))
            finally:
                await self._engine.resume_generation()
        return digests

    async def sleep(self) -> None:
        """Release the GPU's memory: move weights to host memory and drop the cache. No request may be in flight."""
        with self._started.alive():
            await self._engine.sleep(level=1)

    async def wake(self) -> None:
        """Take the GPU's memory again. The adapter may be lost (vLLM issues 39934, 53888) until the next `apply`."""
        with self._started.alive():
            await self._engine.wake_up()

    async def stop(self) -> None:
        """End the engine's processes."""
        self._started.stop()
        await asyncio.to_thread(self._started.copy_log, last=True)
