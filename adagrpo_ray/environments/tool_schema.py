"""From a typed function with a docstring to the JSON schema of a tool, in the form that chat templates take.

The form is that of `transformers.utils.get_json_schema`, which would load torch into the processes of environments.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from adagrpo_ray.errors import ConfigError

BASIC: Mapping[Any, str] = {
    **{int: "integer", float: "number", str: "string", bool: "boolean"},
    **{list: "array", tuple: "array", dict: "object", type(None): "null"},
}
"""JSON's names of Python types."""
ARGUMENTS, HEADINGS = ("args:", "arguments:", "parameters:"), ("returns:", "return:", "raises:", "yields:", "examples:")
"""First lines of the sections of a docstring in Google's style."""


def schema_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the schema of a tool: its name, the text of its docstring, and the types and texts of its parameters.

    Parameters are described in a section "Args:" of the docstring, as in "x: the first number". Raises ConfigError if
    the docstring, a type or a description is missing, or if JSON has no such type.
    """
    name = tool_name(function)
    about, described = _docstring(inspect.getdoc(function) or "")
    if not about:
        raise ConfigError(f"environment.tools: {name!r} has no docstring; write one for the policy to read")
    try:
        known, hints = inspect.signature(function), get_type_hints(function)
    except (TypeError, ValueError, NameError) as error:
        raise ConfigError(f"environment.tools: the parameters of {name!r} cannot be read ({error})") from None
    properties: dict[str, Any] = {}
    for parameter in known.parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigError(f"environment.tools: {name!r} takes {parameter}; give its parameters by their names")
        if parameter.name not in hints or parameter.name not in described:
            lacks = "type, as in x: int" if parameter.name not in hints else "description in a section Args:"
            raise ConfigError(f"environment.tools: the parameter {parameter.name!r} of {name!r} has no {lacks}")
        properties[parameter.name] = {
            **_type(hints[parameter.name], f"{parameter.name!r} of {name!r}"),
            "description": described[parameter.name],
        }
    required = [p.name for p in known.parameters.values() if p.default is p.empty]
    parameters = {"type": "object", "properties": properties, **({"required": required} if required else {})}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": parameters}}


def tool_name(function: Callable[..., Any]) -> str:
    """Return the name by which the policy calls a tool. Raises ConfigError if it has none."""
    name = getattr(function, "__name__", "")
    if not str(name).isidentifier():
        raise ConfigError(f"environment.tools: {function!r:.200} has no name; give a function made with def")
    return str(name)


def misfit(schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> str:
    """Return the reason why a call does not fit the schema of its tool; "" if it does. For the policy to read."""
    parameters = schema["function"]["parameters"]
    properties: Mapping[str, Any] = parameters.get("properties", {})
    missing = [name for name in parameters.get("required", ()) if name not in arguments]
    if missing:
        return f"the argument {missing[0]} is missing"
    for name, value in arguments.items():
        if name not in properties:
            return f"there is no argument {name}; use {', '.join(properties) or 'none'}"
        if not _fits(properties[name], value):
            return f"the argument {name} must be of type {_shown(properties[name])}"
    return ""


def _type(hint: Any, place: str) -> dict[str, Any]:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return {}
    if hint in BASIC:
        return {"type": BASIC[hint]}
    if origin is Literal and all(type(value) in BASIC for value in inner):
        kinds = list(dict.fromkeys(BASIC[type(value)] for value in inner))
        return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": list(inner)}
    if origin in (Union, types.UnionType):
        choices = [_type(each, place) for each in inner if each is not type(None)]
        found: dict[str, Any] = choices[0] if len(choices) == 1 else {"anyOf": choices}
        return {**found, "nullable": True} if type(None) in inner else found
    if origin in (list, Sequence) and inner:
        return {"type": "array", "items": _type(inner[0], place)}
    if origin in (dict, Mapping) and inner and inner[0] is str:
        return {"type": "object", "additionalProperties": _type(inner[1], place)}
    raise ConfigError(
        f"environment.tools: the parameter {place} has the type {hint}; use str, int, float, bool, a list or a dict of "
        "them, or a Literal"
    )


def _fits(schema: Mapping[str, Any], value: Any) -> bool:
    """Return whether a JSON value has the type of a part of a schema, of which lists and objects are not entered."""
    if value is None:
        return bool(schema.get("nullable")) or schema.get("type") in (None, "null")
    if "anyOf" in schema:
        return any(_fits(each, value) for each in schema["anyOf"])
    if "enum" in schema:
        return bool(value in schema["enum"])
    kind = schema.get("type")
    if kind is None:
        return True
    if isinstance(value, bool):
        return bool(kind == "boolean")
    if kind == "number":
        return isinstance(value, int | float)
    return bool(BASIC.get(type(value)) == kind)


def _shown(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        return " or ".join(_shown(each) for each in schema["anyOf"])
    return str(schema.get("type", "any"))


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """Return the text of a docstring before its sections, and the descriptions in its section of arguments by name."""
    about, described = list[str](), dict[str, str]()
    section, current, indent = "", "", 0
    for line in text.splitlines():
        word = line.strip().lower()
        if word in (*ARGUMENTS, *HEADINGS) and line == line.lstrip():
            section, current = ("args" if word in ARGUMENTS else "other"), ""
        elif not section:
            about.append(line.strip())
        elif section == "args" and word:
            entry = re.match(r"\s+\**(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)", line)
            if entry is not None and (not current or _indent(line) <= indent):
                current, indent = entry[1], _indent(line)
                described[current] = entry[2].strip()
            elif current:
                described[current] = f"{described[current]} {line.strip()}".strip()
    return " ".join(" ".join(about).split()), described


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
