"""The turns of an episode as text, for reports, the viewer and trackers."""

from __future__ import annotations

from adagrpo_ray.runs.samples import CompletionSample
from adagrpo_ray.runs.wording import shown
from adagrpo_ray.types import Turn

OBSERVED = "observed"
"""The word before a text that the environment wrote."""


def heading(number: int, turn: Turn) -> str:
    """The heading of a turn, counted from 1: "turn 2, calls search, reward 0.5"."""
    parts = [f"turn {number}"]
    if turn.tool:
        parts.append(f"calls {shown(turn.tool)}")
    if turn.reward is not None:
        parts.append(f"reward {turn.reward:.3g}")
    return ", ".join(parts)


def whole_text(completion: CompletionSample) -> str:
    """The text of a completion; of an episode, all turns with their headings, errors and observations."""
    if not completion.turns:
        return completion.text
    lines = []
    for number, turn in enumerate(completion.turns, 1):
        lines += [f"[{heading(number, turn)}]", turn.text]
        lines += [f"[error: {turn.error}]"] if turn.error else []
        lines += [f"[{OBSERVED}]", turn.observation] if turn.observation else []
    return "\n".join(lines)
