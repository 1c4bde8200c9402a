"""Renders the page of a report: one HTML file that loads no other file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from adagrpo_ray.reports import palette, tables
from adagrpo_ray.reports.run_data import Run
from adagrpo_ray.runs.samples import CompletionSample, GroupSample
from adagrpo_ray.runs.turn_text import heading
from adagrpo_ray.runs.why import rung, trained_on, why
from adagrpo_ray.runs.wording import number, shown

MOST_CHARACTERS = 2000
"""Largest number of characters of one text; a longer one loses its middle."""


@dataclass(frozen=True)
class Drawing:
    """A figure on the page; `svg` is an SVG element, which is not escaped."""

    name: str
    title: str
    caption: str
    svg: str


def page(runs: Sequence[Run], drawings: Sequence[Drawing]) -> str:
    """The page as HTML. All texts of runs, such as names and completions, are escaped."""
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    labels = [run.label for run in runs]
    return environment.get_template("page.html").render(
        title=f"{'Runs' if len(runs) > 1 else 'Run'} {', '.join(labels)}",
        created=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        homes=[run.home for run in runs],
        light=palette.LIGHT,
        dark=palette.DARK,
        style=Markup((here / "page.css").read_text(encoding="utf-8")),
        labels=labels,
        summary=tables.summary(runs),
        difficulties=tables.by_difficulty(runs),
        drawings=[{**asdict(drawing), "svg": Markup(drawing.svg)} for drawing in drawings],
        differences=tables.differences(runs) if len(runs) > 1 else None,
        settings=[(run.label, tables.settings(run)) for run in runs],
        examples=[(run.label, [_group(run, group) for group in run.examples]) for run in runs if run.examples],
    )


def _group(run: Run, group: GroupSample) -> dict[str, object]:
    return {
        "step": group.step,
        "difficulty": shown(group.difficulty),
        "prompt": _cut(group.prompt),
        "answer": _cut(group.answer),
        "functions": any(len(c.rewards) > 1 for attempt in group.attempts for c in attempt.completions),
        "number": group.count(),
        "trained_on": trained_on(group, run.history),
        "attempts": [
            {
                "title": group.title(number).capitalize(),
                "sampling": rung(attempt),
                "why": why(group, number, run.history),
                "completions": [_completion(completion) for completion in attempt.completions],
            }
            for number, attempt in enumerate(group.attempts)
        ],
    }


def _completion(completion: CompletionSample) -> dict[str, object]:
    return {
        "text": _cut(completion.text),
        "correct": "yes" if completion.correct else "no",
        "reward": number(completion.reward),
        "rewards": ", ".join(f"{shown(name)} {number(value)}" for name, value in completion.rewards.items()),
        "advantage": number(completion.advantage),
        "tokens": f"{completion.tokens:,}",
        "finish_reason": completion.finish_reason,
        "version": completion.weight_version,
        "turns": [
            {
                "heading": heading(number, turn),
                "text": _cut(turn.text),
                "observation": _cut(turn.observation),
                "error": _cut(turn.error),
            }
            for number, turn in enumerate(completion.turns, 1)
        ],
    }


def _cut(text: str) -> str:
    left_out = len(text) - MOST_CHARACTERS
    if left_out <= 0:
        return text
    half = MOST_CHARACTERS // 2
    return f"{text[:half]}\n[... {left_out:,} characters ...]\n{text[-half:]}"
