"""A sampled group as a text for TensorBoard."""

from __future__ import annotations

from textwrap import indent

from adagrpo_ray.runs.samples import AttemptSample, GroupSample

SHOWN = 2000
"""Characters of a text that are shown; `samples.jsonl` has all of them."""


def group_text(group: GroupSample) -> str:
    """The problem and the best completion of each attempt, in Markdown that takes nothing of them for its own."""
    parts = [
        f"step {group.step}, {group.outcome} after {len(group.attempts)} attempts; the best completion of each:",
        _quoted(group.prompt),
    ]
    for number, attempt in enumerate(group.attempts, 1):
        best = max(attempt.completions, key=lambda completion: completion.reward)
        advantage = "not trained on" if best.advantage is None else f"advantage {best.advantage:+.3f}"
        parts += [f"attempt {number}, {_rung(attempt)}: reward {best.reward:.3f}, {advantage}", _quoted(best.text)]
    return "\n\n".join(parts) + "\n"


def _rung(attempt: AttemptSample) -> str:
    where = "base" if attempt.rung < 0 else f"rung {attempt.rung}"
    return f"{where}, temperature {attempt.sampling.temperature:g}"


def _quoted(text: str) -> str:
    """A block of code, which four spaces make of any line."""
    return indent(text if len(text) <= SHOWN else f"{text[:SHOWN]} ...", "    ")
