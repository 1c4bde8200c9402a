"""Loading a user's own function, named 'module:function' in the configuration."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from adagrpo_ray.errors import ConfigError


def load_function(spec: str, setting: str, built_in: Sequence[str]) -> Callable[..., Any]:
    """The function that `spec` names; modules in the current folder are found.

    Raises ConfigError that names `setting`, the value, what is wrong with it, and the nearest of the
    `built_in` names that could stand there too.
    """
    module_name, colon, name = spec.partition(":")
    if not (module_name and colon and name):
        raise ConfigError(
            f"{setting}: {spec!r} is not built in{_nearest(spec, built_in)}; use one of {', '.join(built_in)}, "
            "or your own as 'module:function'"
        )
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a user's module may fail in any way at import
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"{setting}: the module of {spec!r} is not there (no {error.name!r} in {os.getcwd()} or on the Python "
                f"path){_nearest(name, built_in)}; run where its file lies, or put its folder on PYTHONPATH"
            ) from error
        raise ConfigError(
            f"{setting}: importing the module of {spec!r} raised {error!r:.300}; "
            f"mend it until `python -c 'import {module_name}'` works"
        ) from error
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, vars(module), n=1)
        raise ConfigError(
            f"{setting}: {module_name} ({getattr(module, '__file__', None)}) has no {name!r}, which {spec!r} asks for"
            + (f"; did you mean '{module_name}:{near[0]}'?" if near else _nearest(name, built_in))
        )
    function = getattr(module, name)
    if not callable(function):
        raise ConfigError(f"{setting}: {spec!r} is {function!r:.300}, which cannot be called; name a function")
    return function  # type: ignore[no-any-return]


def _nearest(name: str, built_in: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, built_in, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
