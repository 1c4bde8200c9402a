"""The models that vLLM serves, and whether it serves them with LoRA, read from the files of the installed vLLM.

Importing vLLM to use its registry takes 9 s, and a query for one class 15 s more (two cores, vLLM 0.32). Reading the
file of the registry takes 0.1 s. A model is refused only if these files show that vLLM does not serve it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from adagrpo_ray.config.model import ModelSettings
from adagrpo_ray.config.rollout import RolloutSettings
from adagrpo_ray.errors import ConfigError, ModelError

MODELS = "vllm.model_executor.models"
LORA = "SupportsLoRA"
"""The base class of the models of vLLM that serve LoRA adapters."""


def check_served(model: ModelSettings, rollout: RolloutSettings, model_config: Any) -> None:
    """Raise ModelError if vLLM does not serve the base model, or serves it without LoRA and `rollout.lora_mode` needs
    it.

    `model_config` is Transformers' configuration of the base model.
    """
    architecture = next(iter(getattr(model_config, "architectures", None) or ()), None)
    known = registered()
    if architecture is None or not known or getattr(model_config, "auto_map", None) or _plugins():
        return
    name = f"model.path={model.path!r} is a {architecture}"
    if architecture not in known:
        if not _by_transformers(architecture):
            raise ModelError(f"{name}, which the installed vLLM does not serve; use another model or another vLLM")
    elif rollout.lora_mode == "adapter" and takes_lora(*known[architecture]) is False:
        raise ModelError(f"{name}, which vLLM serves without LoRA adapters; set rollout.lora_mode=merged")


def check_lora_type(model: ModelSettings, rollout: RolloutSettings, *, gpu: bool) -> None:
    """Raise ConfigError if vLLM's LoRA kernels do not take the type of the model: those for a `gpu` take 16 bits only.

    They assert it at the first request with an adapter (vLLM 0.32, `lora/ops/triton_ops/lora_shrink_op.py`).
    """
    if gpu and rollout.lora_mode == "adapter" and model.dtype == "float32":
        raise ConfigError(
            "model.dtype=float32 with rollout.lora_mode=adapter: vLLM's LoRA kernels for GPUs take 16-bit numbers; "
            "set model.dtype=bfloat16 or rollout.lora_mode=merged"
        )


@cache
def registered() -> dict[str, tuple[str, str]]:
    """The module and the class of each architecture of vLLM; {} if vLLM is missing or keeps them elsewhere."""
    found: dict[str, tuple[str, str]] = {}
    for node in ast.walk(_parsed(f"{MODELS}.registry")):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if key is not None and (entry := _literal(key, value)) is not None:
                    found.setdefault(*entry)
    return found


def takes_lora(module: str, name: str) -> bool | None:
    """Whether the class `name` in a module of vLLM serves LoRA adapters; None if that is not known."""
    module = module if module.startswith("vllm.") else f"{MODELS}.{module}"
    return True if name == LORA else _inherits(module, name, 0)


def _inherits(module: str, name: str, depth: int) -> bool | None:
    """Whether the class is derived from LORA, read from the files of its module and those of its bases."""
    tree = _parsed(module)
    own = next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), None)
    if own is None or depth > 8:
        return None
    known: bool | None = False
    for base in own.bases:
        named = base.id if isinstance(base, ast.Name) else None
        place = dict(_names(tree, module)).get(named or "")
        if named == LORA:
            return True
        if named is None or place is None or not place.startswith("vllm."):  # such as torch.nn.Module
            continue
        above = _inherits(place, named, depth + 1)
        if above:
            return True
        known = None if above is None else known
    return known


def _names(tree: ast.Module, module: str) -> Iterator[tuple[str, str]]:
    """The names of the module's classes and imports, each with the module that defines it."""
    package = module.rpartition(".")[0]
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield node.name, module
        elif isinstance(node, ast.ImportFrom):
            up = package.rsplit(".", node.level - 1)[0] if node.level else ""
            place = ".".join(part for part in (up, node.module or "") if part)
            yield from ((alias.asname or alias.name, place) for alias in node.names)


@cache
def _parsed(module: str) -> ast.Module:
    """Parse a module of vLLM; returns an empty module if there is none."""
    found = find_spec("vllm")  # does not run the package
    for folder in (found.submodule_search_locations or ()) if found is not None else ():
        file = Path(folder, *module.split(".")[1:])
        for path in (file.with_suffix(".py"), file / "__init__.py"):
            try:
                return ast.parse(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, SyntaxError):
                continue
    return ast.Module([], [])


def _literal(key: ast.expr, value: ast.expr) -> tuple[str, tuple[str, str]] | None:
    """An entry "Architecture": ("module", "Class") of a dictionary; None for any other entry."""
    try:
        name, entry = ast.literal_eval(key), ast.literal_eval(value)
    except ValueError:
        return None
    pair = isinstance(entry, tuple) and len(entry) == 2 and all(isinstance(part, str) for part in entry)
    return (name, entry) if isinstance(name, str) and pair else None


def _by_transformers(architecture: str) -> bool:
    """Whether vLLM can run Transformers' own class of that name."""
    import transformers

    own = getattr(transformers, architecture, None)
    return own is not None and bool(own.is_backend_compatible() or own._can_set_attn_implementation())


def _plugins() -> list[EntryPoint]:
    """The plugins of other packages, which may add models to vLLM."""
    return [entry for entry in entry_points(group="vllm.general_plugins") if not entry.value.startswith("vllm.")]
