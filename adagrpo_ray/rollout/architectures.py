"""Which models vLLM serves, and which of them with LoRA, read from the files of the installed vLLM.

Importing vLLM to ask its registry takes 9 s, and asking it about one class 15 s more (two cores, vLLM 0.32). Reading
the registry's file takes 0.1 s. What these files do not say is not known, and refuses nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from adagrpo_ray.config.tree import Config
from adagrpo_ray.errors import ModelError

MODELS = "vllm.model_executor.models"
LORA = "SupportsLoRA"
"""The base class of vLLM's models that serve LoRA adapters."""


def check_served(config: Config, found: Any) -> None:
    """ModelError if vLLM has no model for the architecture of `found`, Transformers' configuration of the base model,
    or one without LoRA and `rollout.lora_mode` asks for it."""
    architecture = next(iter(getattr(found, "architectures", None) or ()), None)
    known = registered()
    if architecture is None or not known or getattr(found, "auto_map", None) or _plugins():
        return
    name = f"model.path={config.model.path!r} is a {architecture}"
    if architecture not in known:
        if not _by_transformers(architecture):
            raise ModelError(f"{name}, which the installed vLLM does not serve; use another model or another vLLM")
    elif config.rollout.lora_mode == "adapter" and takes_lora(*known[architecture]) is False:
        raise ModelError(f"{name}, which vLLM serves without LoRA adapters; set rollout.lora_mode=merged")


@cache
def registered() -> dict[str, tuple[str, str]]:
    """vLLM's architectures: the module and the class of each; {} if there is no vLLM or it keeps them elsewhere."""
    found: dict[str, tuple[str, str]] = {}
    for node in ast.walk(_parsed(f"{MODELS}.registry")):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if key is not None and (entry := _literal(key, value)) is not None:
                    found.setdefault(*entry)
    return found


def takes_lora(module: str, name: str) -> bool | None:
    """Whether the class `name` of a module of vLLM's is one with LoRA adapters; None if that is not known."""
    module = module if module.startswith("vllm.") else f"{MODELS}.{module}"
    return True if name == LORA else _inherits(module, name, 0)


def _inherits(module: str, name: str, depth: int) -> bool | None:
    """Whether the class is derived from LORA, by the files of the modules that it and its bases are in."""
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
        if named is None or place is None or not place.startswith("vllm."):  # torch.nn.Module, and its like
            continue
        above = _inherits(place, named, depth + 1)
        if above:
            return True
        known = None if above is None else known
    return known


def _names(tree: ast.Module, module: str) -> Iterator[tuple[str, str]]:
    """What the module's classes and imports are called, and the module that each is in."""
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
    """The module of vLLM, parsed; an empty one if there is none."""
    found = find_spec("vllm")  # of a package it is found without running it
    for folder in (found.submodule_search_locations or ()) if found is not None else ():
        file = Path(folder, *module.split(".")[1:])
        for path in (file.with_suffix(".py"), file / "__init__.py"):
            try:
                return ast.parse(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, SyntaxError):
                continue
    return ast.Module([], [])


def _literal(key: ast.expr, value: ast.expr) -> tuple[str, tuple[str, str]] | None:
    """An entry "Architecture": ("module", "Class") of a dictionary; None if it is none."""
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
    """Plugins of other packages, which may add models to vLLM."""
    return [entry for entry in entry_points(group="vllm.general_plugins") if not entry.value.startswith("vllm.")]
