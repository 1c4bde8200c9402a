"""Merges adapters into a model that vLLM has loaded, without an engine: python -m tests.support.merging FOLDER

FOLDER has the model, and gets the file `merged.pt`: for each adapter of ADAPTERS the digest, the names of the tensors
that vLLM loaded, and the output of each linear layer on `probe_inputs`. The last two merge "all" as if vLLM did not
declare how it packs the layer UNDECLARED: "whole", and "broken" with the error if vLLM loads another layer wrongly.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from adagrpo_ray.lora.payload import PEFT_PREFIX, pack

R, ALPHA, LAYERS = 4, 8.0, 2
SMALL = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
"""A Qwen2, whose projections of query, key and value have a bias."""
KV, HIDDEN, INNER = 32, SMALL["hidden_size"], SMALL["intermediate_size"]
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, KV),
    "self_attn.v_proj": (HIDDEN, KV),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (HIDDEN, INNER),
    "mlp.up_proj": (HIDDEN, INNER),
    "mlp.down_proj": (INNER, HIDDEN),
}
"""Inputs and outputs of the linear layers."""
FIRST = "model.layers.0.self_attn.q_proj"
UNDECLARED, BROKEN = "model.layers.0.self_attn.qkv_proj", "model.layers.1.mlp.down_proj"
ADAPTERS = {
    "one": (FIRST,),
    "all": tuple(f"model.layers.{layer}.{name}" for layer in range(LAYERS) for name in SHAPES),
    "other": ("model.layers.1.mlp.down_proj",),
}
"""Modules of the adapters, in the order in which they are merged."""


def write_model(folder: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**SMALL))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)


def adapter(modules: Iterable[str]) -> dict[str, torch.Tensor]:
    """A random adapter of these modules; the tensors of a module are the same in each."""
    tensors = {}
    for module in modules:
        inputs, outputs = SHAPES[module.split(".", 3)[3]]
        generator = torch.Generator().manual_seed(len(module) + 100 * int(module.split(".")[2]))
        tensors[f"{PEFT_PREFIX}{module}.lora_A.weight"] = torch.randn(R, inputs, generator=generator) / inputs**0.5
        tensors[f"{PEFT_PREFIX}{module}.lora_B.weight"] = torch.randn(outputs, R, generator=generator) / 10
    return tensors


def probe_inputs(inputs: int) -> torch.Tensor:
    return torch.randn(3, inputs, generator=torch.Generator().manual_seed(1))


def load(folder: str) -> tuple[Any, Any]:
    """vLLM's settings for the model, and the model, in this process."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    from vllm import AsyncEngineArgs
    from vllm.config import set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.model_executor.model_loader import get_model

    arguments = AsyncEngineArgs(
        model=folder,
        skip_tokenizer_init=True,
        load_format="safetensors",
        dtype="float32",
        max_model_len=32,
        enforce_eager=True,
        enable_chunked_prefill=False,
    )
    settings = arguments.create_engine_config()
    torch.accelerator.empty_cache = lambda: None  # vLLM's worker for CPUs does the same
    with set_current_vllm_config(settings):
        store = f"file://{folder}/store"
        init_distributed_environment(1, 0, distributed_init_method=store, local_rank=0, backend="gloo")
        initialize_model_parallel(1, 1)
        return settings, get_model(vllm_config=settings)


def outputs(model: Any) -> dict[str, torch.Tensor]:
    """The output of each linear layer of the decoder, without its bias."""
    named = [(name, module) for name, module in model.named_modules() if name.endswith("_proj")]
    return {
        name: module.quant_method.apply(module, probe_inputs(module.input_size), None).clone() for name, module in named
    }


def main(folder: str) -> None:
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.reload.inplace import reload_weights

    from adagrpo_ray.rollout.worker_extension import AdapterWorker

    settings, model = load(folder)
    loaded: list[str] = []
    broken: set[str] = set()
    load_weights = model.load_weights

    def recorded(weights: Iterable[tuple[str, torch.Tensor]]) -> Any:
        return load_weights((loaded.append(name), (name, tensor))[1] for name, tensor in weights)

    def whole(weights_iterator: Iterable[tuple[str, torch.Tensor]]) -> None:
        read = ((name, 0 * tensor if name in broken else tensor) for name, tensor in weights_iterator)
        with set_current_vllm_config(settings):
            reload_weights(settings, model, read, None, True)

    model.load_weights = recorded
    worker = AdapterWorker()
    worker.model_runner, worker.vllm_config = SimpleNamespace(get_model=lambda: model), settings
    worker.reload_weights = whole
    found: dict[str, Any] = {}

    def merge(name: str, modules: Iterable[str]) -> None:
        loaded.clear()
        sent = pack(1, adapter(modules), R, ALPHA, torch.float32)
        digest = worker.merge_adapter(sent.data.tobytes(), R, ALPHA)
        found[name] = {"arrived": digest == sent.digest, "loaded": list(loaded), "outputs": outputs(model)}

    with torch.inference_mode(False), torch.no_grad():
        found["base"] = {"outputs": outputs(model)}
        for name, modules in ADAPTERS.items():
            merge(name, modules)
        worker._packed = {name: layer for name, layer in worker._packed.items() if layer.name != UNDECLARED}
        merge("whole", ADAPTERS["all"])
        broken.add(f"{BROKEN}.weight")
        try:
            merge("broken", ADAPTERS["all"])
        except RuntimeError as error:
            found["broken"] = {"error": str(error)}
    torch.save(found, Path(folder, "merged.pt"))


if __name__ == "__main__":
    main(sys.argv[1])
