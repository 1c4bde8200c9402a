"""Loads the programs in launch/ as modules, so that tests call `main` without a new process."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType


def script(name: str) -> ModuleType:
    """Load launch/NAME.py."""
    spec = importlib.util.spec_from_file_location(f"launch_{name}", f"launch/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up there
    spec.loader.exec_module(module)
    return module
