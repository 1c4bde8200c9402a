"""Functions that the user gives as objects, not by name. They are sent by value to other processes and nodes."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import cloudpickle

from adagrpo_ray.errors import ConfigError

_INSTALLED = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))


@dataclass(frozen=True)
class Given:
    """Pickled functions and classes.

    `functions` has them by the setting that names them and their name there.
    `codes` has the fingerprint of each function's code, by setting and name in one line: "rewards.functions: short".
    """

    functions: Mapping[tuple[str, str], bytes] = field(default_factory=dict)
    codes: Mapping[str, str] = field(default_factory=dict)

    def find(self, setting: str, name: str) -> Callable[..., Any] | None:
        """Return a new copy of the function that `setting` calls `name`; None if it was not given.

        Raises ConfigError if it cannot be unpickled in this process.
        """
        pickled = self.functions.get((setting, name))
        if pickled is None:
            return None
        try:
            return cloudpickle.loads(pickled)  # type: ignore[no-any-return]
        except BaseException as error:  # unpickling runs code of the user
            raise ConfigError(
                f"{setting}: {name!r} cannot be loaded in another process, which raised {error!r:.300}; put its "
                "imports inside of it, and install those packages on every node"
            ) from error


NOTHING = Given()
"""For a run with all functions given by name."""


def give(functions: Mapping[tuple[str, str], Callable[..., Any]]) -> Given:
    """Pickle functions, which are given by setting and name. Raises ConfigError if one cannot be pickled."""
    return Given(
        {key: _pickled(function, *key) for key, function in functions.items()},
        {f"{setting}: {name}": fingerprint(function) for (setting, name), function in functions.items()},
    )


def name_of(function: Callable[..., Any], setting: str) -> str:
    """Return the name of a function for the configuration. Raises ConfigError if it has none."""
    inner = unwrapped(function)
    name = getattr(inner, "__name__", None) or type(inner).__name__
    if not callable(function) or not name.isidentifier():
        raise ConfigError(f"{setting}: {function!r:.300} has no name; give a function made with def")
    return str(name)


def fingerprint(function: Callable[..., Any]) -> str:
    """Return 16 hex digits that change with the code of a function or class, not with its place or comments."""
    digest = sha256()
    for code in _codes(function):
        digest.update(repr([*_parts(code)]).encode())
    return digest.hexdigest()[:16]


def _pickled(function: Callable[..., Any], setting: str, name: str) -> bytes:
    # cloudpickle pickles functions of __main__ by value. Modules next to the program are missing on other nodes too.
    module = sys.modules.get(getattr(unwrapped(function), "__module__", None) or "")
    by_value = module is not None and _is_of_user(module) and module not in cloudpickle.list_registry_pickle_by_value()
    try:
        if by_value:
            cloudpickle.register_pickle_by_value(module)
        return bytes(cloudpickle.dumps(function))
    except Exception as error:
        raise ConfigError(
            f"{setting}: {name!r} cannot be sent to other processes ({error!r:.300}); create the objects that it uses "
            "inside of it, or name it as 'module:function' in the configuration"
        ) from error
    finally:
        if by_value:
            cloudpickle.unregister_pickle_by_value(module)


def unwrapped(function: Any) -> Any:
    """Return the function without the partial objects around it."""
    return unwrapped(function.func) if isinstance(function, partial) else function


def _is_of_user(module: ModuleType) -> bool:
    """Return whether a module is the user's, not one of Python, of this library or of an installed package."""
    file = getattr(module, "__file__", None)
    ours = module.__name__.partition(".")[0] == __name__.partition(".")[0]
    if file is None or ours or module.__name__ == "__main__":
        return False
    return not any(Path(file).is_relative_to(folder) for folder in _INSTALLED)


def _codes(thing: Any) -> Iterator[CodeType]:
    """Yield the code objects of a function, of a class, or of the class of a callable object."""
    thing = unwrapped(thing)
    if hasattr(thing, "__code__"):
        yield thing.__code__
    else:
        kind = thing if isinstance(thing, type) else type(thing)
        yield from (value.__code__ for _, value in sorted(vars(kind).items()) if hasattr(value, "__code__"))


def _parts(code: CodeType) -> Iterator[object]:
    yield from (code.co_code, code.co_names, code.co_varnames)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _parts(constant)
        else:
            yield sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant
