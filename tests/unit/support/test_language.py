"""The check of the language: the turns of phrase that it finds, and their lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.language import PATTERNS, findings, main, page_texts, python_texts, read

DIALECT = {
    "Returns None where there is no run.": ["where for if or when"],
    "RewardError where it breaks.": ["where for if or when"],
    "A file is copied where the last copy failed.": ["where for if or when"],
    "It ends. Where both fail, it waits.": ["where for if or when"],
    "Where is the run?": [],
    "the folder where runs are kept": [],
    "What a step's sampling brought in.": ["what instead of a noun"],
    "What is a rung?": [],
    "names the key and what to do": [],
    "it tells the learner, which says so": ["tell or say for log or report"] * 2,
    "the run goes on after a restart": ["go on for continue"],
    "mend the function": ["mend for fix"],
    "read anew": ["anew for again"],
    "a file beside the adapter": ["beside"],
    "besides, it is fast": [],
    "another try is in vain": ["in vain"],
    "for want of its messages": ["for want of"],
    "of no account here": ["of no account"],
    "what becomes of a group": ["becomes of", "what instead of a noun"],
    "this comes to the same": ["comes to"],
    "whoever reads it, and nobody else": ["a person for a thing"] * 2,
    "The same outside of the event loop.": ["a docstring that refers to another"],
    "Returns the mean of an empty list as None if there is no reward.": [],
}


@pytest.mark.parametrize("text", DIALECT)
def test_turns_of_phrase_are_found(text: str) -> None:
    assert [finding.pattern for finding in findings("page.md", text)] == sorted(DIALECT[text])


def test_each_pattern_has_an_example() -> None:
    named = [name for names in DIALECT.values() for name in names]
    assert set(named) == {*PATTERNS}


SOURCE = '''"""Sums things.

The rest goes on here.
"""

told = "beside"  # one word is no text

# A comment that mends
# the code anew.
def add(a: int) -> str:
    """None where it is odd."""
    return f"run {a} goes on; {told} is in vain"
'''


def test_python_texts_are_read_with_their_lines() -> None:
    assert [(finding.line, finding.pattern) for finding in findings("module.py", SOURCE)] == [
        (3, "go on for continue"),
        (8, "mend for fix"),
        (9, "anew for again"),
        (11, "where for if or when"),
        (12, "go on for continue"),
        (12, "in vain"),
    ]


def test_formatted_text_is_read_once() -> None:
    texts = [text.text for text in python_texts('error = f"{name} goes" f" on"\n')]
    assert texts == ["... goes on"]


PAGE = """# What it is

A run goes
on, and `what it says` is code.

```bash
make train  # goes on
```

| a cell | beside |
| --- | --- |
- whoever
"""


def test_page_is_read_without_code_and_across_lines() -> None:
    assert [(finding.line, finding.pattern) for finding in findings("page.md", PAGE)] == [
        (1, "what instead of a noun"),
        (3, "go on for continue"),
        (10, "beside"),
        (12, "a person for a thing"),
    ]
    assert all("make train" not in text.text for text in page_texts(PAGE))


FILES = {"README.md": "a run goes on\n", "docs/a.md": "fine\n", "launch/b.py": '"""It goes on."""\n'}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_files_without_a_finding_are_not_counted(repository: Path) -> None:
    assert {path: len(found) for path, found in read(repository).items()} == {"README.md": 1, "launch/b.py": 1}


def test_every_finding_is_printed_and_fails(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(repository) == 1
    assert capsys.readouterr().out.splitlines() == [
        "README.md:1: go on for continue: ... a run goes on ...",
        "launch/b.py:1: go on for continue: ... It goes on. ...",
    ]
    for name in ("README.md", "launch/b.py"):
        (repository / name).write_text("")
    assert (main(repository), capsys.readouterr().out) == (0, "")
