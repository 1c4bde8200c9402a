"""Loading a user's own function, named 'module:function' in the configuration."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adagrpo_ray.errors import ConfigError


def load_function(spec: str, setting: str) -> Callable[..., Any]:
    """The function that `spec` names; modules in the current folder are found.

    Raises ConfigError that names `setting`, the value, and what is wrong with it.
    """
    module_name, colon, name = spec.partition(":")
    if not colon or not module_name or not name:
        raise ConfigError(f"{setting}={spec!r} names no function; write it as 'module:function'")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module may fail in any way at import
        raise ConfigError(
            f"{setting}={spec!r}: cannot import {module_name}: {type(error).__name__}: {error}; "
            "mend the module, or run from the folder that holds it"
        ) from None
    function = getattr(module, name, None)
    if function is None:
        raise ConfigError(f"{setting}={spec!r}: module {module_name} has no {name!r}; name a function that it has")
    if not callable(function):
        raise ConfigError(f"{setting}={spec!r}: {name} is a {type(function).__name__}, not a function; name a function")
    return function  # type: ignore[no-any-return]
