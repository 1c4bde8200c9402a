"""Starts vLLM's async engine with the settings of a run, detects its death, and stops it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from adagrpo_ray.cluster.environment import collector_off, keep_compiled, vllm_defaults
from adagrpo_ray.cluster.gpu_host import check_flashinfer, check_gpu_host
from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.config.tree import Config
from adagrpo_ray.data.template_choice import use_template
from adagrpo_ray.errors import ActorLostError, AdaGRPOError, RolloutError
from adagrpo_ray.rollout.architectures import check_lora_type
from adagrpo_ray.rollout.engine_load import EngineLoad
from adagrpo_ray.rollout.engine_log import EngineLog, logging_to
from adagrpo_ray.rollout.output import EngineOutput

HOST_PHASES = "adagrpo_ray.rollout.phases:PhaseLogitsProcessor"
DEVICE_PHASES = "adagrpo_ray.rollout.device_phases:DevicePhaseProcessor"
"""The logits processors of the phases, for the first model runner of vLLM and for the second."""
# By default vLLM runs the model in a separate process on CPUs, and the engine spins on a whole core while it waits.
IN_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


@dataclass(eq=False)
class StartedEngine:
    """vLLM's AsyncLLM and its tokenizer, with its load and the output of its processes."""

    engine: Any
    tokenizer: Any
    load: EngineLoad
    output: EngineOutput
    log: EngineLog | None = None
    stopped: bool = False

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Raise ActorLostError with the cause if the engine was stopped, or ends within the block."""
        from vllm.v1.engine.exceptions import EngineDeadError

        self._check_running()
        try:
            yield
        except EngineDeadError as error:
            raise ActorLostError(f"its vLLM engine died ({self.output.exit_cause}; {self.output.location})") from error
        except Exception:
            self._check_running()  # a stopped engine may raise any error
            raise
        self._check_running()

    def stop(self) -> None:
        """End the engine's processes."""
        from vllm.platforms import current_platform

        self.stopped = True
        # By default vLLM gives the engine 5 s to clean up. It takes them on CPUs, too, with nothing to release there.
        self.engine.shutdown(timeout=0.0 if current_platform.is_cpu() else None)
        # Its finalizer calls this again at the exit of Python, when it fails since modules are gone.
        self.engine.shutdown = lambda: None

    def copy_log(self, *, last: bool = False) -> None:
        """Send the log to the run folder, if there is one, as `EngineLog.copy` does."""
        if self.log is not None:
            self.log.copy(last=last)

    def _check_running(self) -> None:
        """Raise ActorLostError after `stop`: a request may arrive late at an actor that another one has found lost."""
        if self.stopped:
            raise ActorLostError("its vLLM engine was stopped")


def kept_versions(algorithm: AlgorithmSettings) -> int:
    """Number of versions that an engine keeps in mode `adapter`: the newest, those of steps in flight, and one more."""
    return algorithm.max_staleness + 2


def start_engine(
    model_path: str, max_model_len: int, config: Config, template: str | None, log: EngineLog | None = None
) -> StartedEngine:
    """Start vLLM with the base model. Raises RolloutError with the cause if vLLM fails.

    `template` is the result of `chosen_template`: completions end at the token that it writes after a message. vLLM
    appends its messages of level INFO to `log`.
    """
    output = EngineOutput()
    try:
        with output.captured(), collector_off():
            return _started(model_path, max_model_len, config, template, output, log)
    except AdaGRPOError:
        raise
    except Exception as error:  # vLLM may raise any error for a model, a GPU or a setting
        raise RolloutError(
            f"vLLM does not start with model.path={config.model.path!r}: {output.cause(error)}; {output.location}"
        ) from error


def _started(
    model_path: str,
    max_model_len: int,
    config: Config,
    template: str | None,
    output: EngineOutput,
    log: EngineLog | None,
) -> StartedEngine:
    check_gpu_host()
    keep_compiled()
    vllm_defaults()
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    if config.model.dtype != "float32":  # FlashInfer has kernels for 16 bits only
        check_flashinfer(current_platform.get_device_capability())
    load = EngineLoad()
    with logging_to(None if log is None else log.file) as logging:
        arguments = engine_arguments(model_path, max_model_len, config, logging)
        engine = AsyncLLM.from_engine_args(arguments, stat_loggers=[load.logger()])
    tokenizer = engine.get_tokenizer()
    use_template(tokenizer, template)
    return StartedEngine(engine, tokenizer, load, output, log)


def uses_second_runner() -> bool:
    """Whether vLLM will use its second model runner for engines of `engine_arguments`: on GPUs, with Triton.

    vLLM decides it by the whole configuration (`VllmConfig.use_v2_model_runner`), which needs the logits processors of
    the runner. The other conditions there are about features that are not used here.
    """
    from vllm import envs
    from vllm.triton_utils import HAS_TRITON

    chosen: bool | None = envs.VLLM_USE_V2_MODEL_RUNNER
    return bool(HAS_TRITON) if chosen is None else chosen


def engine_arguments(model_path: str, max_model_len: int, config: Config, logging: Any = None) -> Any:
    """Return vLLM's engine arguments, and set the environment variables that it reads; `logging`: its LoggingConfig."""
    from vllm import AsyncEngineArgs
    from vllm.platforms import current_platform

    r, on_cpu = config.rollout, current_platform.is_cpu()
    if on_cpu:
        # Two engines that both bind to all cores would compete for them while they spin.
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        if r.enforce_eager:  # even then vLLM compiles a part of its sampler, which needs a C++ compiler
            os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    tokens = r.max_num_batched_tokens
    if on_cpu:  # a whole prompt, which is not divided there
        tokens = max(max_model_len, tokens or 8192)
    check_lora_type(config.model, r, gpu=not on_cpu)
    adapter, kept = r.lora_mode == "adapter", kept_versions(config.algorithm)
    phases = DEVICE_PHASES if uses_second_runner() else HOST_PHASES
    return AsyncEngineArgs(
        model=model_path,
        load_format="safetensors",  # by default vLLM loads pickled weights if there are no others
        dtype=config.model.dtype,
        trust_remote_code=config.model.trust_remote_code,
        seed=config.run.seed,
        max_model_len=max_model_len,
        max_num_seqs=r.max_num_seqs,
        # A request with a seed whose prefill is divided kills vLLM's CPU engine, so no prefill is divided there.
        enable_chunked_prefill=False if on_cpu else None,
        max_num_batched_tokens=tokens,
        # vLLM's default there, 128, is longer than many prompts: each completion of a group would compute its prompt.
        block_size=32 if on_cpu else None,
        tensor_parallel_size=r.tensor_parallel_size,
        enforce_eager=r.enforce_eager,
        # By default vLLM would put several workers into the run's placement group, which has no room for them.
        distributed_executor_backend="mp" if r.tensor_parallel_size > 1 else IN_PROCESS if on_cpu else None,
        kv_cache_memory_bytes=int(r.kv_cache_gib * 2**30) if r.kv_cache_gib is not None else None,
        gpu_memory_utilization=r.gpu_memory_utilization,
        enable_sleep_mode=bool(r.sleep),
        enable_lora=adapter,
        # On CPUs vLLM computes a request without an adapter with the last slot, so that slot stays empty.
        max_loras=kept + on_cpu if adapter else 1,
        max_cpu_loras=kept + 1 if adapter else None,
        max_lora_rank=config.model.lora.r if adapter else 16,
        # Log-probabilities of the distribution that tokens are drawn from, after temperature and filters.
        logprobs_mode="processed_logprobs",
        logits_processors=[phases] if config.uses_phases else None,
        worker_extension_cls="adagrpo_ray.rollout.worker_extension.AdapterWorker",
        disable_log_stats=True,
        logging_config=logging,
    )
