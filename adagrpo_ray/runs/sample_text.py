"""Formats a sampled group as a text for TensorBoard."""

from __future__ import annotations

from textwrap import indent

from adagrpo_ray.runs.samples import AttemptSample, GroupSample
from adagrpo_ray.runs.turn_text import whole_text

SHOWN = 2000
"""Characters shown of each text; `samples.jsonl` has all of them."""


def group_text(group: GroupSample) -> str:
    """The problem and the best completion of each attempt in Markdown, with no markup of their own."""
    parts = [
        f"step {group.step}, {group.outcome} after {group.count()} attempts; the best completion of each:",
        _quoted(group.prompt),
    ]
    for number, attempt in enumerate(group.attempts):
        best = max(attempt.completions, key=lambda completion: completion.reward)
        advantage = "not trained on" if best.advantage is None else f"advantage {best.advantage:+.3f}"
        parts.append(f"{group.title(number)}, {_rung(attempt)}: reward {best.reward:.3f}, {advantage}")
        parts.append(_quoted(whole_text(best)))
    return "\n\n".join(parts) + "\n"


def _rung(attempt: AttemptSample) -> str:
    name = "base" if attempt.rung < 0 else f"rung {attempt.rung}"
    return f"{name}, temperature {attempt.sampling.temperature:g}"


def _quoted(text: str) -> str:
    """`text` as a block of code, by four spaces before each line."""
    return indent(text if len(text) <= SHOWN else f"{text[:SHOWN]} ...", "    ")
