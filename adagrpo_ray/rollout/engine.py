"""vLLM's async engine: one request per group, and LoRA versions put into effect in memory."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from adagrpo_ray.cluster.environment import collector_off
from adagrpo_ray.config.tree import Config
from adagrpo_ray.data.completion_text import CompletionText, stop_ids
from adagrpo_ray.data.template_choice import use_template
from adagrpo_ray.errors import ActorLostError, AdaGRPOError, RolloutError, SyncError
from adagrpo_ray.lora.payload import AdapterWeights
from adagrpo_ray.rollout.engine_load import EngineLoad
from adagrpo_ray.rollout.output import EngineOutput
from adagrpo_ray.runs.records import RolloutLoad
from adagrpo_ray.types import Completion, GenerationRequest
from adagrpo_ray.types import SamplingParams as OurParams

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

PHASES = "adagrpo_ray.rollout.phases:PhaseLogitsProcessor"
# By itself vLLM gives the model a process of its own on CPUs, and the engine spins a whole core while it waits.
IN_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


def kept_versions(config: Config) -> int:
    """Versions that an engine holds in mode `adapter`: the newest, those of steps in flight, and one more."""
    return config.algorithm.max_staleness + 2


@dataclass(frozen=True)
class SyncReceipt:
    """What a rollout actor says after it applied a version: the digest of what it holds now."""

    version: int
    digest: str


@dataclass(frozen=True)
class Piece:
    """What a completion has grown by; `finish_reason` is None until its end."""

    text: str
    tokens: int
    finish_reason: str | None


class RolloutEngine:
    """One vLLM engine. Make it with `start` or `create`; all methods are coroutines of one event loop."""

    def __init__(
        self, engine: Any, tokenizer: Any, config: Config, load: EngineLoad, output: EngineOutput | None = None
    ) -> None:
        self._engine, self._config, self._load = engine, config, load
        self._output = output or EngineOutput()
        self._text, self._stops = CompletionText(tokenizer, config.data.format), stop_ids(tokenizer)
        self._version = -1
        self._lora: LoRARequest | None = None
        self._lora_ids = count(1)  # vLLM's own numbers of adapters; versions may be applied in any order
        self._requests = 0

    @classmethod
    async def start(
        cls, model_path: str, max_model_len: int, config: Config, template: str | None = None
    ) -> RolloutEngine:
        """Load the base model; the engine serves version -1, the base, until `apply`.

        `template` as `chosen_template` gave it: completions end at the token that it writes after a message.
        """
        return cls.create(model_path, max_model_len, config, template)

    @classmethod
    def create(cls, model_path: str, max_model_len: int, config: Config, template: str | None = None) -> RolloutEngine:
        """`start` for a thread that may wait, outside of the event loop; RolloutError with the cause if vLLM fails."""
        output = EngineOutput()
        try:
            with output.captured(), collector_off():
                return cls._create(model_path, max_model_len, config, output, template)
        except AdaGRPOError:
            raise
        except Exception as error:  # a model, a GPU or a setting makes vLLM fail in any way
            raise RolloutError(
                f"vLLM does not start with model.path={config.model.path!r}: {output.cause(error)}; "
                f"{output.whereabouts}"
            ) from error

    @classmethod
    def _create(
        cls, model_path: str, max_model_len: int, config: Config, output: EngineOutput, template: str | None
    ) -> RolloutEngine:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        from vllm import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        r, on_cpu = config.rollout, current_platform.is_cpu()
        if on_cpu:
            # Two engines that each bind to all cores spin against one another.
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
            if r.enforce_eager:  # vLLM compiles some of its sampler even then, which needs a C++ compiler
                os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        elif config.uses_phases:  # vLLM's second model runner does not take logits processors of this interface
            os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
        adapter, kept = r.lora_mode == "adapter", kept_versions(config)
        args = AsyncEngineArgs(
            model=model_path,
            load_format="safetensors",  # by itself vLLM takes pickled weights where there are no others
            dtype=config.model.dtype,
            trust_remote_code=config.model.trust_remote_code,
            seed=config.run.seed,
            max_model_len=max_model_len,
            max_num_seqs=r.max_num_seqs,
            # A seeded request whose prefill is cut in two ends vLLM's CPU engine, so none is ever cut there.
            enable_chunked_prefill=False if on_cpu else None,
            max_num_batched_tokens=max(max_model_len, 8192) if on_cpu else None,
            # vLLM's 128 there is longer than many a prompt: each completion of a group would compute it again.
            block_size=32 if on_cpu else None,
            tensor_parallel_size=r.tensor_parallel_size,
            enforce_eager=r.enforce_eager,
            # By itself vLLM would put several workers into our own placement group, where there is no room for them.
            distributed_executor_backend="mp" if r.tensor_parallel_size > 1 else IN_PROCESS if on_cpu else None,
            kv_cache_memory_bytes=int(r.kv_cache_gib * 2**30) if r.kv_cache_gib is not None else None,
            gpu_memory_utilization=r.gpu_memory_utilization,
            enable_sleep_mode=bool(r.sleep),
            enable_lora=adapter,
            # On CPUs vLLM computes a request without an adapter with the last slot, so that one is left empty.
            max_loras=kept + on_cpu if adapter else 1,
            max_cpu_loras=kept + 1 if adapter else None,
            max_lora_rank=config.model.lora.r if adapter else 16,
            # The log-probabilities of the distribution really sampled from, after temperature and filters.
            logprobs_mode="processed_logprobs",
            logits_processors=[PHASES] if config.uses_phases else None,
            worker_extension_cls="adagrpo_ray.rollout.worker_extension.AdapterWorker",
            disable_log_stats=True,
        )
        load = EngineLoad()
        engine = AsyncLLM.from_engine_args(args, stat_loggers=[load.logger()])
        tokenizer = engine.get_tokenizer()
        use_template(tokenizer, template)
        return cls(engine, tokenizer, config, load, output)

    @property
    def load(self) -> RolloutLoad:
        """How much the engine had to do in its last decoding step."""
        return self._load.newest

    async def warm_up(self) -> None:
        """Generate a little, so that what is compiled late is compiled now, however long that takes."""
        request = GenerationRequest("warm-up", np.zeros(4, np.int32), 2, OurParams(), 2, seed=0)
        await self._last(request, self._params(request), self._lora)

    async def generate(self, request: GenerationRequest) -> tuple[Completion, ...]:
        """The request's n completions, under the version in force when it came in; see `apply` for mode `merged`."""
        from vllm.sampling_params import RequestOutputKind

        params = self._params(
            request, logprobs=0, flat_logprobs=True, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
        )
        version = self._version
        final = await self._while_it_steps(self._last(request, params, self._lora))
        if final is None or len(final.outputs) != request.n:
            raise RolloutError(f"vLLM gave no {request.n} completions for prompt {request.prompt_id}")
        return tuple(
            Completion(
                token_ids=np.asarray(output.token_ids, dtype=np.int32),
                logprobs=_sampled_logprobs(output),
                text=self._text.text(output.token_ids, ended=output.finish_reason == "stop"),
                finish_reason=str(output.finish_reason),
                weight_version=version,
            )
            for output in final.outputs
        )

    async def _last(self, request: GenerationRequest, params: Any, lora: LoRARequest | None) -> Any:
        """The last of vLLM's outputs; None where there is none."""
        last = None
        with self._alive():
            async for output in self._outputs(request, params, lora):
                last = output
        return last

    async def _while_it_steps(self, work: Coroutine[Any, Any, Any]) -> Any:
        """What `work` gives; ActorLostError where the engine does no step for `rollout.stall_timeout_s` meanwhile."""
        limit = self._config.rollout.stall_timeout_s
        began, task = time.monotonic(), asyncio.ensure_future(work)
        try:
            while not task.done():
                left = max(began, self._load.stepped_at) + limit - time.monotonic()
                if left <= 0:
                    raise ActorLostError(f"its vLLM engine did no step for rollout.stall_timeout_s={limit:g} s")
                await asyncio.wait({task}, timeout=left)
            return task.result()
        finally:
            task.cancel()  # where the caller is cancelled or gives up, vLLM aborts the request

    async def stream(self, request: GenerationRequest, *, base: bool = False) -> AsyncGenerator[Piece, None]:
        """One completion as it grows, under the version in force, or under none: the base model's (mode `adapter`).

        Close it (`contextlib.aclosing`) to give the request up.
        """
        from vllm.sampling_params import RequestOutputKind

        params = self._params(request, detokenize=False, output_kind=RequestOutputKind.DELTA)
        text = self._text.stream()
        with self._alive():
            async with aclosing(self._outputs(request, params, None if base else self._lora)) as outputs:
                async for output in outputs:
                    grown = output.outputs[0]
                    news = text.grow(grown.token_ids, grown.finish_reason)
                    yield Piece(news, len(grown.token_ids), grown.finish_reason)

    def _params(self, request: GenerationRequest, **how: Any) -> Any:
        """The request in vLLM's words; `how` says what comes back."""
        from vllm import SamplingParams

        from adagrpo_ray.rollout.phases import phase_args

        s = request.sampling
        # With phases the request's own parameters stay neutral; the logits processor applies those of the phase.
        own = OurParams() if s.answer is not None else s
        return SamplingParams(
            n=request.n,
            temperature=own.temperature,
            top_p=own.top_p,
            top_k=own.top_k,
            min_p=own.min_p,
            repetition_penalty=own.repetition_penalty,
            seed=request.seed,
            max_tokens=request.max_new_tokens,
            # Beside these, vLLM stops at those that generation_config.json names.
            stop_token_ids=self._stops,
            extra_args=phase_args(self._config.data.format.think_end, s, s.answer) if s.answer is not None else None,
            **how,
        )

    def _outputs(self, request: GenerationRequest, params: Any, lora: LoRARequest | None) -> Any:
        """vLLM's outputs of the request; where the caller is cancelled, vLLM aborts it."""
        from vllm.inputs.engine import tokens_input

        self._requests += 1
        prompt = tokens_input(request.prompt_token_ids.tolist())
        return self._engine.generate(prompt, params, str(self._requests), lora_request=lora)

    async def apply(self, weights: AdapterWeights) -> SyncReceipt:
        """Put a version into effect for all requests that come after; SyncError where it did not arrive whole.

        In mode `adapter`, requests in flight end under the version that they began with. In mode `merged` the engine
        pauses between two decoding steps, and they go on under the new weights: what the cache holds of them and
        of all prefixes belongs to the old weights, so it is dropped and computed again.
        """
        with self._alive():
            digests = await self._install(weights)
        wrong = next((digest for digest in digests if digest != weights.digest), None)
        if wrong is not None:
            raise SyncError(
                f"version {weights.version}: sent {weights.digest[:12]}, a rollout worker holds {wrong[:12]}"
            )
        self._version = weights.version
        return SyncReceipt(weights.version, digests[0])

    async def _install(self, weights: AdapterWeights) -> list[str]:
        """Hand the tensors to all workers; the digest of what each one holds."""
        digests: list[str]
        data = weights.data.tobytes()
        if self._config.rollout.lora_mode == "adapter":
            lora_id = next(self._lora_ids)
            digests = await self._engine.collective_rpc(
                "install_adapter", args=(lora_id, data, weights.r, weights.alpha, kept_versions(self._config))
            )
            from vllm.lora.request import LoRARequest

            # Name and id are new for every version: adapters of one name share prefix-cache blocks.
            self._lora = LoRARequest(f"adapter-{lora_id}", lora_id, lora_path="in-memory")
        else:
            # What the engine's own `pause_generation` does, without the 20 ms that it sleeps.
            await self._engine.engine_core.pause_scheduler_async(mode="keep", clear_cache=True)
            try:
                digests = await self._engine.collective_rpc("merge_adapter", args=(data, weights.r, weights.alpha))
            finally:
                await self._engine.resume_generation()
        return digests

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """ActorLostError, with the cause, if vLLM's engine process is gone."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            yield
        except EngineDeadError as error:
            told = f"{self._output.last_words}; {self._output.whereabouts}"
            raise ActorLostError(f"its vLLM engine died ({told})") from error

    async def sleep(self) -> None:
        """Leave the GPU: weights go to host memory, the cache is dropped. No request may be in flight."""
        await self._engine.sleep(difficulty=1)

    async def wake(self) -> None:
        """Come back to the GPU. The adapter may be lost (vLLM issues 39934, 53888) until the next `apply`."""
        await self._engine.wake_up()

    async def stop(self) -> None:
        """End the engine's processes."""
        from vllm.platforms import current_platform

        # By itself vLLM gives the engine 5 s to tidy up, which it uses on CPUs, although there is nothing to give back.
        self._engine.shutdown(timeout=0.0 if current_platform.is_cpu() else None)
        # Its finalizer does it once more, and fails where that is at the end of Python, of which little is left then.
        self._engine.shutdown = lambda: None
        self._engine = None


def _sampled_logprobs(output: Any) -> Any:
    """Log-probabilities [T] of the sampled tokens, out of vLLM's flat container."""
    return np.asarray(output.logprobs.logprobs, dtype=np.float32)
