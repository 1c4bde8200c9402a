"""Counts turns of phrase that plain English avoids: python -m tests.support.language [--update]

It reads docstrings, comments and texts of programs, and the documentation without its code. The baseline
`language.json` has the number allowed in each file. A file with more fails, and its lines are listed. A file with fewer
fails too, so that the numbers only decrease: `--update` writes the new counts, and refuses to raise their sum.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import sys
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.places import ROOT

BASELINE = Path(__file__).with_suffix(".json")
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

Counts = dict[str, int]


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


def complaints(found: Mapping[str, Sequence[Finding]], allowed: Counts) -> list[str]:
    """One line for each change that is necessary, in the files or in the baseline."""
    lines = []
    for path in sorted({*found, *allowed}):
        hits, most = found.get(path, []), allowed.get(path, 0)
        if len(hits) > most:
            lines.append(f"{path}: {len(hits)} turns of phrase to avoid, {most} allowed")
            lines += [f"{path}:{hit.line}: {hit.pattern}: ... {hit.words} ..." for hit in hits]
        elif len(hits) < most:
            lines.append(
                f"{path}: {len(hits)} turns of phrase, {most} allowed: run python -m tests.support.language --update"
            )
    return lines


def updated(found: Mapping[str, Sequence[Finding]], allowed: Counts | None) -> Counts:
    """The current counts. Raises ValueError if there is a baseline and their sum is above that of the baseline."""
    now = {path: len(hits) for path, hits in sorted(found.items())}
    if allowed is not None and sum(now.values()) > sum(allowed.values()):
        raise ValueError(f"{sum(now.values())} turns of phrase, {sum(allowed.values())} allowed: write plainer first")
    return now


def main(arguments: Sequence[str] | None = None, root: Path = ROOT, baseline: Path = BASELINE) -> int:
    """Check the files, or update the baseline. Returns 1 if a file and the baseline differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--update", action="store_true", help="write the current counts to the baseline")
    parser.add_argument("--show", metavar="FILE", nargs="+", help="list the findings of these files")
    options = parser.parse_args(arguments)
    found = read(root)
    allowed: Counts | None = json.loads(baseline.read_text(encoding="utf-8")) if baseline.exists() else None
    if options.show:
        for path in options.show:
            print("\n".join(f"{path}:{hit.line}: {hit.pattern}: ... {hit.words} ..." for hit in found.get(path, [])))
        return 0
    if options.update:
        try:
            counts = updated(found, allowed)
        except ValueError as error:
            print(f"error: {error}")
            return 1
        baseline.write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
        print(f"{sum(counts.values())} turns of phrase in {len(counts)} files")
        return 0
    lines = complaints(found, allowed or {})
    print("\n".join(lines) if lines else "plain English: the counts are those of the baseline")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
