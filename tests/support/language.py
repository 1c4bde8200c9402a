"""Finds turns of phrase that plain English avoids: python -m tests.support.language

Read are docstrings, comments and texts of programs, and the documentation without its code.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.places import ROOT

SOURCES = (
    *("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/**/*.md", "docs/**/*.py"),
    *("adagrpo_ray/**/*.py", "launch/**/*.py"),
)

_THING = r"(?:it|they|there|that|this|these|those|none|no|nothing|one|both|some|several|each|all|any|either|neither)"
_VERB = (
    r"(?:is|are|was|were|has|have|had|does|do|did|can|cannot|could|may|might|must|shall|should|will|would|"
    r"fails?|failed|holds?|needs?|takes?|gives?|raises?|differs?|lies|stands?|comes?|runs?|names?|ends?)"
)

_WHERE = "|".join(
    (
        r"(?:None|False|True|NaN|null|empty|zero|\w*error|\d+)\W{0,3} where\b",  # "None where ..."
        rf"\bwhere {_THING}\b",  # "where there is no run"
        rf"\bwhere (?:an?|the|its|their|several|two) (?:[\w'`.-]+ ){{1,4}}{_VERB}\b",  # "where a group fails"
        r"(?:(?<=[.;:]\s)|\A)Where (?![^.?!]*\?)",  # the first word, but for a question
    )
)
"""Clauses with "where" for "if" or "when"; a place, as in "the folder where runs are", is allowed."""

PATTERNS: Mapping[str, re.Pattern[str]] = {
    name: re.compile(pattern.replace(" ", r"\s+"), re.IGNORECASE)
    for name, pattern in {
        "where for if or when": _WHERE,
        "what instead of a noun": r"\bwhat\b(?! to\b)(?![^.?!]*\?)",
        "tell or say for log or report": r"\b(?:tells?|told|telling|says?|said|saying)\b",
        "go on for continue": r"\b(?:go|goes|going|went|gone) on\b",
        "mend for fix": r"\bmend(?:s|ed|ing)?\b",
        "anew for again": r"\banew\b",
        "beside": r"\bbeside\b",
        "in vain": r"\bin vain\b",
        "for want of": r"\bfor want of\b",
        "of no account": r"\bof no account\b",
        "becomes of": r"\b(?:becomes?|became|becoming) of\b",
        "comes to": r"\b(?:comes?|came|coming) to\b",
        "a person for a thing": r"\b(?:whoever|whomever|nobody|who gets how much)\b",
        "a docstring that refers to another": r"\bthe same outside of\b",
    }.items()
}


@dataclass(frozen=True)
class Finding:
    """A turn of phrase.

    line: counted from 1.
    pattern: the name of its pattern.
    words: the words around it.
    """

    line: int
    pattern: str
    words: str


@dataclass(frozen=True)
class Text:
    """A text, and the line at which it begins."""

    line: int
    text: str


def python_texts(source: str) -> Iterator[Text]:
    """Yield docstrings, other texts of two words or more, and comments; consecutive comment lines are one text."""
    formatted: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            formatted |= {id(part) for part in node.values}
            parts = (str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
            yield Text(node.lineno, "".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in formatted:
            yield from [Text(node.lineno, node.value)] if " " in node.value.strip() else []
    block: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        if block and (token.start[0] != block[-1].start[0] + 1 or token.start[1] != block[-1].start[1]):
            yield _comment(block)
            block = []
        block.append(token)
    if block:
        yield _comment(block)


def _comment(block: Sequence[tokenize.TokenInfo]) -> Text:
    return Text(block[0].start[0], "\n".join(token.string.lstrip("#").strip() for token in block))


def page_texts(source: str) -> Iterator[Text]:
    """Yield the paragraphs and rows of a Markdown page, without blocks of code and without `code` in a line."""
    inside, begun, lines = False, 0, list[str]()
    for number, line in enumerate([*source.splitlines(), ""], start=1):
        fence = line.lstrip().startswith("```")
        ends = inside or fence or not line.strip() or re.match(r"\s*(?:\||#|[-*>] |\d+\. )", line)
        if ends and lines:
            yield Text(begun, re.sub(r"(`+).*?\1", "`", "\n".join(lines), flags=re.DOTALL))
            lines = []
        if fence:
            inside = not inside
        elif not inside and line.strip():
            if not lines:
                begun = number
            lines.append(re.sub(r"^[\s|#>*-]+", "", line))


def findings(path: str, source: str) -> list[Finding]:
    """All turns of phrase in a file, sorted by line; it is read as Python or Markdown, by the end of `path`."""
    found = []
    for text in python_texts(source) if path.endswith(".py") else page_texts(source):
        for name, pattern in PATTERNS.items():
            for hit in pattern.finditer(text.text):
                line = text.line + text.text.count("\n", 0, hit.start())
                words = " ".join(text.text[max(0, hit.start() - 20) : hit.end() + 30].split())
                found.append(Finding(line, name, words))
    return sorted(found, key=lambda finding: (finding.line, finding.pattern))


def read(root: Path) -> dict[str, list[Finding]]:
    """The turns of phrase in the files below `root`, by relative path; files without any are left out."""
    files = sorted({file for pattern in SOURCES for file in root.glob(pattern)})
    found = {
        path: findings(path, file.read_text(encoding="utf-8"))
        for file in files
        for path in [file.relative_to(root).as_posix()]
    }
    return {path: hits for path, hits in found.items() if hits}


def main(root: Path = ROOT) -> int:
    """Print every finding; returns 1 if there is one."""
    found = read(root)
    for path, hits in found.items():
        print("\n".join(f"{path}:{hit.line}: {hit.pattern}: ... {hit.words} ..." for hit in hits))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
