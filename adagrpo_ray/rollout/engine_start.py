"""The life of vLLM's async engine: started with the settings of a run, watched, and stopped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from adagrpo_ray.cluster.environment import collector_off
from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.config.tree import Config
from adagrpo_ray.data.template_choice import use_template
from adagrpo_ray.errors import ActorLostError, AdaGRPOError, RolloutError
from adagrpo_ray.rollout.engine_load import EngineLoad
from adagrpo_ray.rollout.output import EngineOutput

PHASES = "adagrpo_ray.rollout.phases:PhaseLogitsProcessor"
# By itself vLLM gives the model a process of its own on CPUs, and the engine spins a whole core while it waits.
IN_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


@dataclass(frozen=True, eq=False)
class StartedEngine:
    """vLLM's AsyncLLM and its tokenizer, with the load that it reports and the output of its processes."""

    engine: Any
    tokenizer: Any
    load: EngineLoad
    output: EngineOutput

    @contextmanager
    def alive(self) -> Iterator[None]:
        """ActorLostError, with the cause, if vLLM's engine process dies within it."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            yield
        except EngineDeadError as error:
            told = f"{self.output.last_words}; {self.output.whereabouts}"
            raise ActorLostError(f"its vLLM engine died ({told})") from error

    def stop(self) -> None:
        """End the engine's processes."""
        from vllm.platforms import current_platform

        # By itself vLLM gives the engine 5 s to tidy up, which it uses on CPUs, although there is nothing to give back.
        self.engine.shutdown(timeout=0.0 if current_platform.is_cpu() else None)
        # Its finalizer does it once more, and fails at the end of Python, when little of Python is left.
        self.engine.shutdown = lambda: None


def kept_versions(algorithm: AlgorithmSettings) -> int:
    """Versions that an engine holds in mode `adapter`: the newest, those of steps in flight, and one more."""
    return algorithm.max_staleness + 2


def start_engine(model_path: str, max_model_len: int, config: Config, template: str | None) -> StartedEngine:
    """Load the base model; RolloutError with the cause if vLLM fails.

    `template` as `chosen_template` gave it: completions end at the token that it writes after a message.
    """
    output = EngineOutput()
    try:
        with output.captured(), collector_off():
            return _started(model_path, max_model_len, config, template, output)
    except AdaGRPOError:
        raise
    except Exception as error:  # a model, a GPU or a setting makes vLLM fail in any way
        raise RolloutError(
            f"vLLM does not start with model.path={config.model.path!r}: {output.cause(error)}; {output.whereabouts}"
        ) from error


def _started(
    model_path: str, max_model_len: int, config: Config, template: str | None, output: EngineOutput
) -> StartedEngine:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    from vllm.v1.engine.async_llm import AsyncLLM

    load = EngineLoad()
    arguments = _arguments(model_path, max_model_len, config)
    engine = AsyncLLM.from_engine_args(arguments, stat_loggers=[load.logger()])
    tokenizer = engine.get_tokenizer()
    use_template(tokenizer, template)
    return StartedEngine(engine, tokenizer, load, output)


def _arguments(model_path: str, max_model_len: int, config: Config) -> Any:
    """vLLM's engine arguments, and the environment variables that it goes by."""
    from vllm import AsyncEngineArgs
    from vllm.platforms import current_platform

    r, on_cpu = config.rollout, current_platform.is_cpu()
    if on_cpu:
        # Two engines that each bind to all cores spin against one another.
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        if r.enforce_eager:  # vLLM compiles some of its sampler even then, which needs a C++ compiler
            os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    elif config.uses_phases:  # vLLM's second model runner does not take logits processors of this interface
        os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    adapter, kept = r.lora_mode == "adapter", kept_versions(config.algorithm)
    return AsyncEngineArgs(
        model=model_path,
        load_format="safetensors",  # by itself vLLM takes pickled weights if there are no others
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
        # By itself vLLM would put several workers into our own placement group, which has no room for them.
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
