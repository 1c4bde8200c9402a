"""Loading and checking functions of the user that the configuration names, and describing the errors they raise."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from adagrpo_ray.errors import ConfigError
from adagrpo_ray.extensions.given import NOTHING, Given, unwrapped


def load_function(spec: str, setting: str, built_in: Sequence[str], given: Given = NOTHING) -> Callable[..., Any]:
    """Return the function that `spec` names: a given one, or 'module:function', also of the current folder.

    Raises ConfigError, which names `setting`, the value and the nearest of the `built_in` names, if there is no such
    function or its module cannot be imported.
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
                f"path){_nearest(name, built_in)}; start in the folder of its file, or put that folder on PYTHONPATH"
            ) from error
        raise ConfigError(
            f"{setting}: importing the module of {spec!r} raised {error!r:.300}; "
            f"fix it until `python -c 'import {module_name}'` works"
        ) from error
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, vars(module), n=1)
        raise ConfigError(
            f"{setting}: {module_name} ({getattr(module, '__file__', None)}) has no {name!r}, which {spec!r} names"
            + (f"; did you mean '{module_name}:{near[0]}'?" if near else _nearest(name, built_in))
        )
    function = getattr(module, name)
    if not callable(function):
        raise ConfigError(f"{setting}: {spec!r} is {function!r:.300}, which cannot be called; name a function")
    return function  # type: ignore[no-any-return]


def check_kind(function: Callable[..., Any], called: str, *, awaited: bool = False) -> None:
    """Check that the function is no class and no generator function, and no coroutine function unless it is `awaited`.

    Raises ConfigError, which begins with `called`, if it is one of them.
    """
    if isinstance(unwrapped(function), type):
        raise ConfigError(f"{called} is a class; give a function, or a callable object of the class")
    code = _code(function)
    if inspect.iscoroutinefunction(code) and not awaited:
        raise ConfigError(f"{called} is a coroutine function, which nothing awaits; make it a plain `def`")
    if inspect.isgeneratorfunction(code) or inspect.isasyncgenfunction(code):
        raise ConfigError(f"{called} is a generator function; return a list of the values that it yields")


def is_coroutine_function(function: Callable[..., Any]) -> bool:
    """Return whether the function, or the call of a callable object, is written with `async def`."""
    return inspect.iscoroutinefunction(_code(function))


def signature(function: Callable[..., Any]) -> inspect.Signature | None:
    """Return the parameters of the function, not of one that it wraps, without types; None if they are unknown."""
    try:
        known = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        return None
    parameters = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in known.parameters.values()]
    return known.replace(parameters=parameters, return_annotation=inspect.Signature.empty)


def check_call(function: Callable[..., Any], called: str, arguments: Sequence[str]) -> None:
    """Check that the function passes `check_kind` and takes these positional arguments.

    Raises ConfigError, which begins with `called`, if it does not.
    """
    check_kind(function, called)
    known = signature(function)
    if known is None:
        return
    try:
        known.bind(*arguments)
    except TypeError as error:
        raise ConfigError(
            f"{called} takes {known}, and is called with ({', '.join(arguments)}): {error}; change its parameters"
        ) from None


def describe_error(error: BaseException) -> str:
    """Return a description of an error that code of the user raised, with its file and line."""
    *_, frame = [None, *traceback.extract_tb(error.__traceback__)]
    place = "" if frame is None else f" ({frame.filename}, line {frame.lineno})"
    try:
        return f"{error!r:.300}{place}"
    except Exception:
        return f"a {type(error).__name__} that cannot be shown{place}"


def _code(function: Any) -> Any:
    """Return the function that a call runs: the function itself, or the method of a callable object."""
    inner = unwrapped(function)
    return inner if inspect.isroutine(inner) or isinstance(inner, type) else type(inner).__call__


def _one_of(built_in: Sequence[str]) -> str:
    return f"one of {', '.join(built_in)}, or " if built_in else ""


def _nearest(name: str, built_in: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, built_in, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
