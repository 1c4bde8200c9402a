"""The check of a list of pinned packages finds what is missing, too old, or needed by an extra."""

from __future__ import annotations

from typing import Any

from tests.support.pins import conflicts


def report(**requires: list[str]) -> dict[str, Any]:
    """A report of pip on packages of version 2.0, with their requirements."""
    return {
        "install": [
            {"metadata": {"name": name, "version": "2.0", "requires_dist": list(texts)}}
            for name, texts in requires.items()
        ]
    }


def test_a_list_that_fits_has_no_conflicts() -> None:
    fits = report(
        Some_Name=["other>=1.5", "windows-only; sys_platform == 'win32'", "old-python; python_version < '3.12'"],
        other=["not-asked-for; extra == 'more'"],
    )
    assert conflicts(fits, ["some-name==2.0", "other"]) == []


def test_missing_and_wrong_packages_are_named() -> None:
    wrong = report(one=["other<2", "absent"], other=[])
    assert conflicts(wrong, ["one>2", "gone"]) == [
        "one 2.0 needs absent, and the list has none",
        "one 2.0 needs other<2, and the list has 2.0",
        "the project needs gone, and the list has none",
        "the project needs one>2, and the list has 2.0",
    ]


def test_extras_that_are_asked_for_count() -> None:
    extra = report(one=["other[more]"], other=["deep; extra == 'more'", "unused; extra == 'rest'"])
    assert conflicts(extra, ["one"]) == ['other 2.0 needs deep; extra == "more", and the list has none']
