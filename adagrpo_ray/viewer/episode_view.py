"""Renders an episode as HTML, turn by turn; observations stand apart from the text that the policy wrote."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from adagrpo_ray.runs.turn_text import OBSERVED, heading
from adagrpo_ray.types import Turn
from adagrpo_ray.viewer.folding import folded, summary


def episode(turns: Sequence[Turn], observed_tokens: int) -> str:
    """The turns, folded below one line. All texts are escaped."""
    calls = sum(bool(turn.tool) for turn in turns)
    facts = [f"{len(turns)} turn{'s' if len(turns) > 1 else ''}"]
    facts += [f"{calls} tool call{'s' if calls > 1 else ''}"] if calls else []
    facts += [f"{observed_tokens:,} observed tokens"] if observed_tokens else []
    items = "".join(f"<li>{_turn(number, turn)}</li>" for number, turn in enumerate(turns, 1))
    return (
        f"<details><summary>{', '.join(facts)}: {summary(turns[-1].text)}</summary>"
        f'<ol class="turns">{items}</ol></details>'
    )


def _turn(number: int, turn: Turn) -> str:
    parts = [f'<div class="note">{escape(heading(number, turn))}</div><div>{folded(turn.text)}</div>']
    if turn.error:
        parts.append(f'<div><span class="wrong">error</span> {folded(turn.error)}</div>')
    if turn.observation:
        parts.append(f'<div class="observed"><span class="note">{OBSERVED}</span> {folded(turn.observation)}</div>')
    return "".join(parts)
