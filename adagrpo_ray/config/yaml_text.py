"""Reading YAML by the core schema of YAML 1.2, in which `no` and `2024-01-01` are text and `1e-4` is a number.

PyYAML follows YAML 1.1, which reads `yes` as true, `010` as 8, `1:30` as 90 and `1e-4` as text. Here a value keeps its
text until the type of its setting is known (`adagrpo_ray.config.typed`): `run.name: 1e5` is the name "1e5".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from adagrpo_ray.errors import ConfigError, first_line

MOST_ALIASES = 20
"""Most aliases of a YAML text: a few dozen that refer to one another can expand to billions of values."""

_NULL, _BOOL = re.compile(r"~|null|Null|NULL|"), re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+")
_OLD_BOOL = re.compile(r"(?i:yes|no|on|off|y|n)")
_CORE = {
    "null": (_NULL, [*"~nN", ""]),
    "bool": (_BOOL, [*"tTfF"]),
    "int": (_INT, [*"-+0123456789"]),
    "float": (_FLOAT, [*"-+.0123456789"]),
}
_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class Plain:
    """The text of a value without quotes that some reader of YAML does not take for text.

    That is a number, true, false, null, or a word that is a boolean in YAML 1.1 only, such as `no`.
    """

    text: str

    def __repr__(self) -> str:
        return self.text or "null"

    @property
    def is_null(self) -> bool:
        """Whether it is null or empty."""
        return _NULL.fullmatch(self.text) is not None

    @property
    def leading_zero(self) -> bool:
        """Whether it is an integer with a leading zero: 010 is 8 in YAML 1.1 and 10 in YAML 1.2."""
        return _LEADING_ZERO.fullmatch(self.text) is not None

    @property
    def old_bool(self) -> bool:
        """Whether it is a boolean in YAML 1.1 and text in YAML 1.2."""
        return _OLD_BOOL.fullmatch(self.text) is not None

    @property
    def value(self) -> int | float | bool | str | None:
        """Its value by the core schema."""
        if self.is_null:
            return None
        if self.old_bool:
            return self.text
        if _BOOL.fullmatch(self.text):
            return self.text.lower() == "true"
        if _INT.fullmatch(self.text):
            return int(self.text, 10 if self.text[:2] not in ("0o", "0x") else 0)
        return float(self.text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def parse(text: str, name: str) -> Any:
    """Return the content of a YAML text: mappings by the text of their keys, lists, texts and `Plain`.

    Raises ConfigError, which calls the text `name` and has line and column, if the syntax is bad or a mapping has a
    key twice.
    """
    try:
        return yaml.load(text, _Loader)
    except Exception as error:  # YAMLError, and RecursionError for a thousand brackets
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise ConfigError(f"{name} is not valid YAML{line}: {problem}; correct that line") from None


def resolved(value: Any) -> Any:
    """Return a result of `parse` with all values read by the core schema, for readers that know no types."""
    if isinstance(value, Plain):
        return value.value
    if isinstance(value, dict):
        return {key: resolved(inner) for key, inner in value.items()}
    return [resolved(inner) for inner in value] if isinstance(value, list) else value


def dump(value: Any, **options: Any) -> str:
    """Return `value` as a text that YAML 1.1 and YAML 1.2 read as the same value."""
    return str(yaml.dump(value, Dumper=_Dumper, **options))


class _Dumper(yaml.SafeDumper):
    """yaml.SafeDumper that also quotes text that YAML 1.2 alone takes for a number."""


class _Loader(yaml.BaseLoader):
    """Composes nodes by the core schema, and constructs plain values only: a tag calls no code."""

    aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > MOST_ALIASES:
                mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
                raise ComposerError(None, None, f"more than {MOST_ALIASES} aliases", mark)
        return super().compose_node(parent, index)

    def get_single_data(self) -> Any:
        node = self.get_single_node()
        return Plain("") if node is None else _value(node, ())


_Loader.yaml_implicit_resolvers = {}
for _kind, (_pattern, _first) in _CORE.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(f"(?:{_pattern.pattern})$"), _first)


def _value(node: Node, inside: tuple[Node, ...]) -> Any:
    """Return the value of a node. Each alias gets a copy, so that a change of one place changes no other."""
    if node in inside:
        raise ConstructorError(None, None, "this value holds itself", node.start_mark)
    if isinstance(node, ScalarNode):
        return _scalar(node)
    if isinstance(node, SequenceNode) and node.tag == f"{_TAG}seq":
        return [_value(each, (*inside, node)) for each in node.value]
    if isinstance(node, MappingNode) and node.tag == f"{_TAG}map":
        return _mapping(node, (*inside, node))
    raise ConstructorError(None, None, f"a setting has no tag {node.tag!r}; remove the tag", node.start_mark)


def _scalar(node: ScalarNode) -> str | Plain:
    text = str(node.value)
    if node.tag == f"{_TAG}str":
        return Plain(text) if node.style is None and _OLD_BOOL.fullmatch(text) else text
    kind = node.tag.removeprefix(_TAG)
    if kind in _CORE:
        if _CORE[kind][0].fullmatch(text):
            return Plain(text)
        raise ConstructorError(None, None, f"{text!r} is no {kind}", node.start_mark)
    raise ConstructorError(None, None, f"a setting has no tag {node.tag!r}; remove the tag", node.start_mark)


def _mapping(node: MappingNode, inside: tuple[Node, ...]) -> dict[str, Any]:
    """Return the entries by the text of their keys, after those that `<<` merges in.

    Raises ConstructorError if a key is given twice.
    """
    merged: dict[str, Any] = {}
    own: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key, value in node.value:
        if not isinstance(key, ScalarNode):
            raise ConstructorError(None, None, "a key must be a word or a number", key.start_mark)
        name = str(key.value)
        if name in lines:
            problem = f"the key {name!r} is given twice, first at line {lines[name]}"
            raise ConstructorError(None, None, problem, key.start_mark)
        lines[name] = key.start_mark.line + 1
        if name == "<<" and key.style is None:
            for source in value.value if isinstance(value, SequenceNode) else [value]:
                if not isinstance(source, MappingNode):
                    raise ConstructorError(None, None, "'<<' takes a mapping, or a list of them", source.start_mark)
                merged = {**_value(source, inside), **merged}
        else:
            own[name] = _value(value, inside)
    return {**merged, **own}
