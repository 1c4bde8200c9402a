"""Functions that are given as they are, and not by name: they travel by value to other processes and nodes."""

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
    """Pickled functions and classes, by the setting that names them and by their name there.

    `codes` are fingerprints of what they do, by the same two in one line: "rewards.functions: short".
    """

    functions: Mapping[tuple[str, str], bytes] = field(default_factory=dict)
    codes: Mapping[str, str] = field(default_factory=dict)

    def find(self, setting: str, name: str) -> Callable[..., Any] | None:
        """The function that `setting` calls `name`, a copy of its own; None where none was given.

        Raises ConfigError where it cannot be brought to life in this process.
        """
        pickled = self.functions.get((setting, name))
        if pickled is None:
            return None
        try:
            return cloudpickle.loads(pickled)  # type: ignore[no-any-return]
        except BaseException as error:  # unpickling runs code of the user's
            raise ConfigError(
                f"{setting}: {name!r} cannot be loaded in another process, which raised {error!r:.300}; have it import "
                "what it needs inside of it, and install that on every node"
            ) from error


NOTHING = Given()
"""For a run whose functions are all named."""


def give(functions: Mapping[tuple[str, str], Callable[..., Any]]) -> Given:
    """Pickle these, by setting and name; ConfigError for one that cannot be pickled."""
    return Given(
        {key: _pickled(function, *key) for key, function in functions.items()},
        {f"{setting}: {name}": fingerprint(function) for (setting, name), function in functions.items()},
    )


def name_of(function: Callable[..., Any], setting: str) -> str:
    """What the configuration is to call a function: its own name; ConfigError where it has none."""
    inner = _inner(function)
    name = getattr(inner, "__name__", None) or type(inner).__name__
    if not callable(function) or not name.isidentifier():
        raise ConfigError(f"{setting}: {function!r:.300} has no name to go by; give a function made with def")
    return str(name)


def fingerprint(function: Callable[..., Any]) -> str:
    """Changes with the code of a function or class, and not with where it stands or what its comments say."""
    digest = sha256()
    for code in _codes(function):
        digest.update(repr([*_parts(code)]).encode())
    return digest.hexdigest()[:16]


def _pickled(function: Callable[..., Any], setting: str, name: str) -> bytes:
    # cloudpickle takes by value what is in __main__; a module beside the program is on no other node either.
    module = sys.modules.get(getattr(_inner(function), "__module__", None) or "")
    by_value = (
        module is not None and _is_the_users(module) and module not in cloudpickle.list_registry_pickle_by_value()
    )
    try:
        if by_value:
            cloudpickle.register_pickle_by_value(module)
        return bytes(cloudpickle.dumps(function))
    except Exception as error:
        raise ConfigError(
            f"{setting}: {name!r} cannot be sent to other processes ({error!r:.300}); have it make what it needs "
            "inside of it, or name it as 'module:function' in the configuration"
        ) from error
    finally:
        if by_value:
            cloudpickle.unregister_pickle_by_value(module)


def _inner(function: Any) -> Any:
    return _inner(function.func) if isinstance(function, partial) else function


def _is_the_users(module: ModuleType) -> bool:
    """Whether a module is the user's own, rather than Python's, this library's or an installed one."""
    file = getattr(module, "__file__", None)
    ours = module.__name__ == __package__ or module.__name__.startswith(f"{__package__}.")
    if file is None or ours or module.__name__ == "__main__":
        return False
    return not any(Path(file).is_relative_to(folder) for folder in _INSTALLED)


def _codes(thing: Any) -> Iterator[CodeType]:
    """The code of a function, of a class and of an object that can be called."""
    thing = _inner(thing)
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
