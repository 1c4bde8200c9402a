"""A user's own function: loading what the configuration names, and telling what it raised."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from adagrpo_ray.errors import ConfigError
from adagrpo_ray.extensions.given import NOTHING, Given


def load_function(spec: str, setting: str, built_in: Sequence[str], given: Given = NOTHING) -> Callable[..., Any]:
    """The function that `spec` names: one that was given, or one in a module; those in the current folder are found.

    Raises ConfigError that names `setting`, the value, what is wrong with it, and the nearest of the
    `built_in` names that could stand there too.
    """
    function = given.find(setting, spec)
    if function is not None:
        return function
    module_name, colon, name = spec.partition(":")
    if not (module_name and colon and name):
        raise ConfigError(
            f"{setting}: {spec!r} is not built in{_nearest(spec, built_in)}; use {_one_of(built_in)}"
            "your own as 'module:function'"
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


def check_kind(function: Callable[..., Any], what: str) -> None:
    """Raise ConfigError, which begins with `what`, for a class, a coroutine function and a generator function."""
    inner: Any = function
    while isinstance(inner, partial):
        inner = inner.func
    if isinstance(inner, type):
        raise ConfigError(f"{what} is a class; give a function, or an object of the class that can be called")
    code = inner if inspect.isroutine(inner) else type(inner).__call__
    if inspect.iscoroutinefunction(code) or inspect.isasyncgenfunction(code):
        raise ConfigError(f"{what} is a coroutine function, which nothing awaits; make it a plain `def`")
    if inspect.isgeneratorfunction(code):
        raise ConfigError(f"{what} is a generator function; `return` what it yields")


def signature(function: Callable[..., Any]) -> inspect.Signature | None:
    """Parameters of the function itself, not of one that it wraps, without types; None if Python does not know them."""
    try:
        known = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        return None
    parameters = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in known.parameters.values()]
    return known.replace(parameters=parameters, return_annotation=inspect.Signature.empty)


def check_call(function: Callable[..., Any], what: str, arguments: Sequence[str]) -> None:
    """Raise ConfigError, which begins with `what`, unless the function can be called with these positional arguments.

    What `check_kind` refuses is refused too.
    """
    check_kind(function, what)
    known = signature(function)
    if known is None:
        return
    try:
        known.bind(*arguments)
    except TypeError as error:
        raise ConfigError(
            f"{what} takes {known}, and is called with ({', '.join(arguments)}): {error}; change its parameters"
        ) from None


def told(error: BaseException) -> str:
    """What code of the user's raised, and where."""
    *_, frame = [None, *traceback.extract_tb(error.__traceback__)]
    where = "" if frame is None else f" ({frame.filename}, line {frame.lineno})"
    try:
        return f"{error!r:.300}{where}"
    except Exception:
        return f"a {type(error).__name__} that cannot be shown{where}"


def _one_of(built_in: Sequence[str]) -> str:
    return f"one of {', '.join(built_in)}, or " if built_in else ""


def _nearest(name: str, built_in: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, built_in, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
