"""Formats metrics and names for the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from adagrpo_ray.runs.names import TEXT, name_of
from adagrpo_ray.runs.records import EvaluationRecord, StepRecord

LARGE = 1e6
"""Numbers from here on are shown with an exponent: three decimals would be meaningless."""


MOST_DIFFICULTIES = 24
"""Difficulties that a terminal shows, one on each line; metrics.jsonl and report.html have all of them."""


def number(value: float | None, form: str = ".3f") -> str:
    """`value` with three decimals, or in the format `form`; '-' if it was not measured."""
    if value is None:
        return "-"
    return f"{value:{form.replace('f', 'e') if abs(value) >= LARGE else form}}"


def whole(value: float | None) -> str:
    """`value` without decimals, with commas; '-' if it was not measured."""
    return "-" if value is None else f"{value:,.0f}"


def change(before: float | None, after: float | None) -> str:
    """The signed difference, or '-' if one side was not measured."""
    return "-" if before is None or after is None else number(after - before, "+.3f")


def duration(seconds: float) -> str:
    """Minutes and seconds, with hours if there are any: '0:38', '1:02:03'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def rungs(counts: Iterable[int]) -> str:
    """Resamples by rung, the first rung first: '8+4'; '0' if there is no ladder."""
    return "+".join(str(count) for count in counts) or "0"


def printable(text: str) -> str:
    """`text` with '?' for control characters, which a path or an error may contain."""
    return "".join(c if c.isprintable() else "?" for c in text)


def shown(difficulty: str) -> str:
    """A text of users, such as the name of a difficulty, for people: short, without invisible characters."""
    return name_of(difficulty, TEXT, 80)


def difficulties(names: Iterable[str]) -> list[str]:
    """Each difficulty once, without the nameless one; numbers in names are sorted by their value."""

    def key(name: str) -> list[tuple[int, str, str]]:
        # By length and then by digits, because int() refuses numbers of thousands of digits.
        parts = ((part, part.lstrip("0") if part.isdecimal() else None) for part in re.split(r"(\d+)", name))
        return [(-1, "", part) if digits is None else (len(digits), digits, part) for part, digits in parts]

    return sorted({name for name in names if name}, key=key)


def few(names: Sequence[str]) -> tuple[Sequence[str], str]:
    """The first MOST_DIFFICULTIES names, and a note on the others: "" or "and 900 more classes"."""
    left = len(names) - MOST_DIFFICULTIES
    if left <= 0:
        return names, ""
    return names[:MOST_DIFFICULTIES], f"and {left:,} more class{'es' if left > 1 else ''}"


def step_metrics(record: StepRecord) -> list[str]:
    """The metrics of a step that the terminal shows, without its pace."""
    return [
        f"reward {number(record.reward)}",
        f"accuracy {number(record.accuracy)}",
        f"resamples {rungs(record.resamples)}",
        f"groups {record.groups_ready} ready {record.groups_waiting} waiting"
        + (f" {record.groups_failed} failed" if record.groups_failed else ""),
        *([f"updates skipped {record.skipped_updates}"] if record.skipped_updates else []),
    ]


def evaluation_lines(label: str, record: EvaluationRecord) -> Iterator[str]:
    """An evaluation: a line for the held-out prompts, if there are any, and one for each benchmark."""
    if record.accuracy is not None:
        yield _held_out(label, record)
    for name, accuracy in record.benchmark_accuracy.items():
        failed = f"{record.benchmark_failed[name]} problems failed, " if record.benchmark_failed[name] else ""
        yield "  ".join(
            [
                f"{name} accuracy {printable(label)}: {number(accuracy)}",
                f"solved at least once: {number(record.benchmark_pass_at_k[name])}",
                f"cut off: {number(record.benchmark_completions_clipped_ratio[name])}",
                f"({record.benchmark_samples[name]} samples, {failed}mean length "
                f"{record.benchmark_completions_mean_length[name]:.1f})",
            ]
        )


def _held_out(label: str, record: EvaluationRecord) -> str:
    named, others = few(difficulties(record.accuracy_by_difficulty))
    by_difficulty = [
        f"{shown(difficulty)}: {number(record.accuracy_by_difficulty[difficulty])}" for difficulty in named
    ]
    failed = f"{record.failed} prompts failed, " if record.failed else ""
    about = f"({record.samples} samples, {failed}{record.runtime:.1f} s)"
    details = [*by_difficulty, *([others] if others else []), about]
    return "  ".join([f"held-out accuracy {printable(label)}: {number(record.accuracy)}", *details])
