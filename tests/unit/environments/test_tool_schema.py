"""From a typed function to the schema of a tool, and the check of a call against it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest

from adagrpo_ray.environments.tool_schema import misfit, schema_of
from adagrpo_ray.errors import ConfigError


def search(
    query: str, most: int = 3, exact: bool = False, kind: Literal["web", "news"] = "web", tags: list[str] | None = None
) -> list[str]:
    """Search for pages.

    Reads the index of today.

    Args:
        query: the words to look for,
            in any order
        most: the number of results
        exact (bool): whether all words must occur
        kind: the source
        tags: labels of the pages

    Returns:
        The titles.
    """
    return []


def test_schema_has_types_descriptions_and_required_parameters() -> None:
    schema = schema_of(search)
    assert schema["type"] == "function"
    function = schema["function"]
    assert (function["name"], function["description"]) == ("search", "Search for pages. Reads the index of today.")
    assert function["parameters"] == {
        "type": "object",
        "required": ["query"],
        "properties": {
            "query": {"type": "string", "description": "the words to look for, in any order"},
            "most": {"type": "integer", "description": "the number of results"},
            "exact": {"type": "boolean", "description": "whether all words must occur"},
            "kind": {"type": "string", "enum": ["web", "news"], "description": "the source"},
            "tags": {
                "type": "array",
                "items": {"type": "string"},
                "nullable": True,
                "description": "labels of the pages",
            },
        },
    }


def test_parameters_are_those_of_transformers() -> None:
    """Users of TRL know the schemas of `get_json_schema`."""
    from transformers.utils import get_json_schema

    def plain(x: int, y: float, on: bool, names: list[str]) -> str:
        """Do something.

        Args:
            x: a number
            y: another one
            on: a switch
            names: some names
        """
        return ""

    theirs = get_json_schema(plain)["function"]
    ours = schema_of(plain)["function"]
    assert ours["parameters"] == theirs["parameters"]
    assert (ours["name"], ours["description"]) == (theirs["name"], theirs["description"])


def test_method_is_a_tool_without_its_object() -> None:
    class Shop:
        def price(self, item: str) -> float:
            """Return a price.

            Args:
                item: its name
            """
            return 1.0

    assert list(schema_of(Shop().price)["function"]["parameters"]["properties"]) == ["item"]


def no_docstring(x: int) -> int:
    return x


def no_type(x) -> int:  # type: ignore[no-untyped-def]
    """Do it.

    Args:
        x: a number
    """
    return 0


def no_description(x: int) -> int:
    """Do it."""
    return x


def any_number(*x: int) -> int:
    """Do it.

    Args:
        x: numbers
    """
    return 0


def strange(x: complex) -> int:
    """Do it.

    Args:
        x: a number
    """
    return 0


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (no_docstring, "'no_docstring' has no docstring; write one"),
        (no_type, "the parameter 'x' of 'no_type' has no type, as in x: int"),
        (no_description, "the parameter 'x' of 'no_description' has no description in a section Args:"),
        (any_number, r"'any_number' takes \*x: 'int'; give its parameters by their names"),
        (strange, "the parameter 'x' of 'strange' has the type <class 'complex'>; use str, int"),
        (3, "3 has no name; give a function made with def"),
    ],
)
def test_functions_that_cannot_be_tools_are_refused(function: Callable[..., Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=rf"^environment\.tools: {expected}"):
        schema_of(function)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"query": "a"}, ""),
        ({"query": "a", "most": 2, "exact": True, "kind": "news", "tags": ["x"]}, ""),
        ({"query": "a", "tags": None}, ""),
        ({}, "the argument query is missing"),
        ({"query": "a", "page": 2}, "there is no argument page; use query, most, exact, kind, tags"),
        ({"query": 3}, "the argument query must be of type string"),
        ({"query": "a", "most": "3"}, "the argument most must be of type integer"),
        ({"query": "a", "most": True}, "the argument most must be of type integer"),
        ({"query": "a", "exact": 1}, "the argument exact must be of type boolean"),
        ({"query": "a", "kind": "tv"}, "the argument kind must be of type web or news"),
        ({"query": None}, "the argument query must be of type string"),
    ],
)
def test_call_is_compared_with_the_schema(arguments: dict[str, Any], expected: str) -> None:
    assert misfit(schema_of(search), arguments) == expected


def test_whole_number_is_a_number() -> None:
    def half(x: float) -> float:
        """Halve.

        Args:
            x: a number
        """
        return x / 2

    assert misfit(schema_of(half), {"x": 3}) == ""
