"""vLLM's CUDA platform without a device, and its configuration for our engine arguments on several GPUs.

    python -m tests.support.cuda_platform MODEL '[[OVERRIDE, ...], ...]'

prints one JSON object by compute capability for each list of overrides. It runs in a process of its own: vLLM binds the
platform on import.
"""

from __future__ import annotations

import json
import sys
from types import ModuleType
from typing import Any

CAPABILITIES = {"8.9": (8, 9), "9.0": (9, 0), "10.0": (10, 0), "12.0": (12, 0)}
"""RTX 4090 and L40S, H100, B200, RTX 5090."""


def patched() -> Any:
    """Make vLLM take its CUDA platform, with a capability to set and 80 GiB; returns the class."""
    # The kernels of a GPU build. Its other modules are those of this CPU build.
    sys.modules["vllm._C_stable_libtorch"] = ModuleType("vllm._C_stable_libtorch")
    import vllm.platforms
    from vllm.platforms.cuda import CudaPlatformBase
    from vllm.platforms.interface import DeviceCapability

    class Platform(CudaPlatformBase):
        capability = DeviceCapability(9, 0)

        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:
            return cls.capability

        @classmethod
        def get_device_name(cls, device_id: int = 0) -> str:
            return "a GPU that is not there"

        @classmethod
        def get_device_total_memory(cls, device_id: int = 0) -> int:
            return 80 * 2**30

        @classmethod
        def device_count(cls) -> int:
            return 8

        @classmethod
        def is_fully_connected(cls, device_ids: list[int]) -> bool:
            return True

        def is_cumem_allocator_available(self) -> bool:
            return True

    vllm.platforms._current_platform = Platform()
    import vllm.config.vllm
    import vllm.triton_utils
    from vllm.model_executor.models import registry

    # To write its cache vLLM imports the kernels of a GPU build; it does so for a model that it never looked at before.
    registry._LazyRegisteredModel._save_modelinfo_to_cache = lambda *arguments: None

    # Triton is there on GPUs. Modules that are loaded already do without it.
    vllm.config.vllm.HAS_TRITON = vllm.triton_utils.HAS_TRITON = True
    return Platform


def resolved(platform: Any, capability: tuple[int, int], model: str, overrides: list[str]) -> dict[str, Any]:
    """vLLM's decisions for our engine arguments on a GPU of this capability.

    Of attention backends it has only the order of preference, which depends on the capability. The choice needs the
    packages of a GPU build, and looks at the type and the heads of the model.
    """
    from vllm.platforms.cuda import _get_backend_priorities
    from vllm.platforms.interface import DeviceCapability
    from vllm.usage.usage_lib import UsageContext

    from adagrpo_ray.config import Config
    from adagrpo_ray.rollout.engine_start import engine_arguments

    platform.capability = DeviceCapability(*capability)
    config = Config.load("launch/configs/cluster.yaml", overrides)
    made = engine_arguments(model, 256, config).create_engine_config(UsageContext.ENGINE_CONTEXT)
    lora, compilation = made.lora_config, made.compilation_config
    return {
        "device": made.device_config.device_type,
        "second_runner": made.use_v2_model_runner,
        "processors": made.model_config.logits_processors,
        "attention": [backend.name for backend in _get_backend_priorities(False, platform.capability)],
        "cudagraph_mode": compilation.cudagraph_mode.name,
        "capture_sizes": compilation.cudagraph_capture_sizes,
        "lora_dtype": None if lora is None else str(lora.lora_dtype),
        "max_loras": None if lora is None else lora.max_loras,
        "max_num_batched_tokens": made.scheduler_config.max_num_batched_tokens,
        "max_num_seqs": made.scheduler_config.max_num_seqs,
        "chunked_prefill": made.scheduler_config.enable_chunked_prefill,
        "async_scheduling": made.scheduler_config.async_scheduling,
        "worker": made.parallel_config.worker_cls,
        "executor": str(made.parallel_config.distributed_executor_backend),
    }


def main(model: str, cases: str) -> None:
    platform = patched()
    by_case = [
        {name: resolved(platform, capability, model, overrides) for name, capability in CAPABILITIES.items()}
        for overrides in json.loads(cases)
    ]
    print(json.dumps(by_case))


if __name__ == "__main__":
    main(*sys.argv[1:])
