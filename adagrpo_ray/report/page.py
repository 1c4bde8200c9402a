"""The page of a report: one HTML file that asks nobody for anything."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from adagrpo_ray.observe.figures import number
from adagrpo_ray.observe.samples import AttemptSample, CompletionSample, GroupSample
from adagrpo_ray.report import palette, tables
from adagrpo_ray.report.source import Run
from adagrpo_ray.types import SamplingParams

MOST_CHARACTERS = 2000
"""Of one text; what is longer loses its middle."""

OUTCOMES = {
    "trained": "trained on",
    "exhausted": "its ladder used up, not trained on",
    "waiting": "waiting for the next one",
    "dropped": "given up",
}


@dataclass(frozen=True)
class Drawing:
    """A figure as it stands on the page; `svg` is an element, and trusted."""

    name: str
    title: str
    caption: str
    svg: str


def page(runs: Sequence[Run], drawings: Sequence[Drawing]) -> str:
    """The whole page. Texts of runs, from names to completions, are escaped."""
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    labels = [run.label for run in runs]
    return environment.get_template("page.html").render(
        title=f"{'Runs' if len(runs) > 1 else 'Run'} {', '.join(labels)}",
        made=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        homes=[run.home for run in runs],
        light=palette.LIGHT,
        dark=palette.DARK,
        style=Markup((here / "page.css").read_text(encoding="utf-8")),
        labels=labels,
        summary=tables.summary(runs),
        levels=tables.by_level(runs),
        drawings=[{**asdict(drawing), "svg": Markup(drawing.svg)} for drawing in drawings],
        differences=tables.differences(runs) if len(runs) > 1 else None,
        settings=[(run.label, tables.settings(run)) for run in runs],
        examples=[(run.label, [_group(run, group) for group in run.examples]) for run in runs if run.examples],
    )


def _group(run: Run, group: GroupSample) -> dict[str, object]:
    return {
        "step": group.step,
        "level": group.level,
        "prompt": _cut(group.prompt),
        "answer": _cut(group.answer),
        "outcome": OUTCOMES.get(group.outcome, group.outcome),
        "attempts": [
            _attempt(
                attempt,
                tables.setting(run.history.config, "algorithm", "criterion", "kind"),
                attempt is group.attempts[-1],
            )
            for attempt in group.attempts
        ],
    }


def _attempt(attempt: AttemptSample, criterion: str, last: bool) -> dict[str, object]:
    """An attempt, and why there was another one after it."""
    right = sum(completion.correct for completion in attempt.completions)
    said = f"{right} of {len(attempt.completions)} right"
    return {
        "sampling": f"{'no rung' if attempt.rung < 0 else f'rung {attempt.rung}'} ({_sampling(attempt.sampling)})",
        "said": said if last else f"{said}, which does not meet the criterion {criterion}: sampled again",
        "completions": [_completion(completion) for completion in attempt.completions],
    }


def _completion(completion: CompletionSample) -> dict[str, object]:
    return {
        "text": _cut(completion.text),
        "right": "yes" if completion.correct else "no",
        "reward": number(completion.reward),
        "rewards": ", ".join(f"{name} {number(value)}" for name, value in completion.rewards.items()),
        "advantage": number(completion.advantage),
        "tokens": f"{completion.tokens:,}",
        "finish_reason": completion.finish_reason,
        "weights": completion.weight_version,
    }


def _sampling(sampling: SamplingParams) -> str:
    """The temperature, and what else is not as usual."""
    usual = SamplingParams()
    named = [
        f"{field.name} {getattr(sampling, field.name):g}"
        for field in fields(SamplingParams)
        if field.name != "answer"
        and (field.name == "temperature" or getattr(sampling, field.name) != getattr(usual, field.name))
    ]
    answer = [] if sampling.answer is None else [f"answer: {_sampling(sampling.answer)}"]
    return "; ".join([", ".join(named), *answer])


def _cut(text: str) -> str:
    left_out = len(text) - MOST_CHARACTERS
    if left_out <= 0:
        return text
    half = MOST_CHARACTERS // 2
    return f"{text[:half]}\n[... {left_out:,} characters ...]\n{text[-half:]}"
