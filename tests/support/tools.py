"""A tool, and a call as a policy writes it."""

from __future__ import annotations


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first number
        b: the second number
    """
    return a + b


def hermes_call(name: str, arguments: str) -> str:
    """A turn that calls a tool, with the arguments as JSON."""
    return f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'
