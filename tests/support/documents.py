"""Extracts commands and files from the documentation, and the names of tests."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.places import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAM = re.compile(r"(?:\S*/)?python3? launch/(\w+)\.py(?: (.*))?$")


@dataclass(frozen=True)
class Command:
    """A command on a page, without its comment."""

    page: str
    text: str

    @property
    def program(self) -> tuple[str, str] | None:
        """The program of launch/ that it starts, perhaps through `ray job submit`, and its arguments; None if none."""
        found = PROGRAM.search(self.text)
        return None if found is None else (found[1], found[2] or "")


def blocks(page: Path, language: str) -> Iterator[str]:
    """The code blocks of a page in this language."""
    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
        if block[1] == language:
            yield block[2]


def commands() -> list[Command]:
    """All commands of all pages."""
    found = []
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                text = " ".join(re.sub(r"(?:^|\s)#\s.*", "", line).split())
                if text:
                    found.append(Command(str(page.relative_to(ROOT)), text))
    return found


def files() -> dict[str, str]:
    """The files shown on pages, by name: blocks whose first line is a comment with the name of the file."""
    found = {}
    for page in PAGES:
        for language in ("python", "yaml"):
            for block in blocks(page, language):
                if name := re.match(r"# ([\w-]+\.(?:py|yaml))\n", block):
                    found.setdefault(name[1], block)
    return found


def names(path: Path) -> set[str]:
    """The names of the functions and methods in a file of tests: `test_a`, and `TestB::test_c` of a class."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return found
