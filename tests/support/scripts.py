"""The programs in launch/ as modules, to call their `main` without a process of its own."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType


def script(name: str) -> ModuleType:
    """launch/NAME.py, loaded."""
    spec = importlib.util.spec_from_file_location(f"launch_{name}", f"launch/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module
