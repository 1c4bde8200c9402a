"""Checks for secrets in a configuration, which is written to config.yaml, checkpoints, logs and dashboards."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import PydanticCustomError

SECRET = "secret"
"""Type of pydantic's error for a secret. The value must not be shown."""

_USER, _QUERY = re.compile(r"://[^/\s?#]*@"), re.compile(r"(://[^\s?&]*)[?&][^\s=]+=\S*")
_NAMES = r"[\w.-]*(?:token|secret|password|passwd|api[_-]?key|access[_-]?key|credentials?)"
_ASSIGNED = re.compile(rf"(?i)(\b{_NAMES}\s*[=:]\s*).*", re.DOTALL)
_OPTION = re.compile(rf"(?i)--?{_NAMES}")
_TOKEN = re.compile(r"\b(?:hf_|sk-|gh[pousr]_|github_pat_|glpat-|xox[abp]-|AKIA)[A-Za-z0-9_-]{8,}")
_KEYED = re.compile(rf"(?i)(['\"]?\b{_NAMES}(?:_env)?['\"]?\s*[=:]\s*)(?:'[^']*'|\"[^\"]*\"|[^\s,}}\]]+)")
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")


def holds_secret(text: str) -> bool:
    """Return whether a URL in `text` has a user, a password, or a query with values, as signed URLs have."""
    return any(pattern.search(text) for pattern in (_USER, _QUERY))


def without_secret(place: str) -> str:
    """Return `place`. Raises pydantic's error of the type SECRET if it holds a secret."""
    if holds_secret(place):
        raise PydanticCustomError(
            SECRET,
            "holds a user, a password or a query in its URL, which config.yaml and logs would show; leave them to the "
            "environment",
        )
    return place


def variable_name(name: str) -> str:
    """Return `name`. Raises pydantic's error of the type SECRET if it names no variable, since it may be the secret."""
    if not _VARIABLE.fullmatch(name) or _TOKEN.search(name):
        raise PydanticCustomError(
            SECRET,
            "is no name of an environment variable in capitals, such as JUDGE_API_KEY; give the variable's name here, "
            "and the key in the environment",
        )
    return name


def without_keys(fields: dict[str, Any]) -> dict[str, Any]:
    """Return `fields`, which may be nested. Raises pydantic's error of the type SECRET if one of them holds a key."""
    if (name := _secret_field(fields)) is not None:
        raise PydanticCustomError(
            SECRET,
            "has a key or token in the field {name}, which config.yaml and logs would show; leave it to api_key_env",
            {"name": repr(name)},
        )
    return fields


def _secret_field(fields: Mapping[str, Any] | Sequence[Any]) -> str | None:
    """Return the name of a field that holds a key; None if none does."""
    pairs = fields.items() if isinstance(fields, Mapping) else (("", value) for value in fields)
    for name, value in pairs:
        if isinstance(value, str):
            if names_secret(name) or name.lower() == "authorization" or _TOKEN.search(value):
                return name
        elif isinstance(value, Mapping | list | tuple) and (inner := _secret_field(value)) is not None:
            return inner or name
    return None


def names_secret(key: str) -> bool:
    """Return whether a key has the name of a secret, such as `api_key`."""
    return re.fullmatch(_NAMES, key, re.IGNORECASE) is not None


def hidden(text: str) -> str:
    """Return `text` with *** in place of tokens, and of values whose keys have the names of secrets."""
    return _TOKEN.sub("***", _KEYED.sub(r"\1***", text))


def shown_command(arguments: Sequence[str]) -> str:
    """Return a command line that may be shown and typed again: arguments that may be secrets are `***`."""
    shown, hide = [], False
    for argument in arguments:
        shown.append("***" if hide else _shown(argument))
        hide = _OPTION.fullmatch(argument) is not None
    return shlex.join(shown)


def _shown(argument: str) -> str:
    for pattern, kept in ((_ASSIGNED, r"\1***"), (_USER, "://***@"), (_QUERY, r"\1?***"), (_TOKEN, "***")):
        argument = pattern.sub(kept, argument)
    return argument
