"""Renders the list of sampled groups, and one group, as HTML. All texts of runs are escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from adagrpo_ray.runs.reader import RunHistory
from adagrpo_ray.runs.samples import AttemptSample, CompletionSample, GroupSample
from adagrpo_ray.runs.why import basis, rung, sized, statistics, trained_on, why
from adagrpo_ray.viewer.browse import Entry
from adagrpo_ray.viewer.episode_view import episode
from adagrpo_ray.viewer.folding import folded

STYLE = """
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; padding: 4px 10px; vertical-align: top; border: 0;
  border-bottom: 1px solid var(--border-color-primary); }
th { font-weight: 600; white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.text { width: 60%; min-width: 240px; overflow-wrap: anywhere; }
.scroll { overflow: auto; max-height: 420px; border: 1px solid var(--border-color-primary); border-radius: 6px; }
.scroll thead th { position: sticky; top: 0; background: var(--background-fill-primary); }
.scroll td:not(.text) { white-space: nowrap; max-width: 180px; overflow: hidden; text-overflow: ellipsis; }
.wide { overflow-x: auto; }
tr[data-at] { cursor: pointer; }
tr[data-at]:hover, tr[aria-current] { background: var(--background-fill-secondary); }
tr[aria-current] { box-shadow: inset 3px 0 0 var(--color-accent); }
button { all: unset; cursor: pointer; overflow-wrap: anywhere; }
button:focus-visible { outline: 2px solid var(--color-accent); }
h4 { margin: 18px 0 4px; font-size: 15px; overflow-wrap: anywhere; }
p { margin: 4px 0; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 420px; overflow: auto; margin: 6px 0;
  padding: 8px 10px; font-size: 13px; background: var(--background-fill-secondary); border-radius: 6px; }
summary { cursor: pointer; }
.why { border-left: 3px solid var(--color-accent); padding: 2px 10px; margin: 6px 0; }
.correct { color: #10b981; font-weight: 600; }
.wrong { color: #e11d48; font-weight: 600; }
.note { opacity: .75; font-size: 13px; }
ol.turns { list-style: none; margin: 6px 0; padding: 0; }
ol.turns > li { margin: 0 0 8px; }
.observed { border-left: 3px dashed var(--border-color-primary); margin: 4px 0 4px 18px; padding: 2px 10px;
  background: var(--background-fill-secondary); }
"""

Row = tuple[str, ...]


def grid(head: Sequence[str], rows: Iterable[Row]) -> str:
    """A table of texts; the first column has the names of the rows."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def listing(entries: Sequence[Entry], *, more: bool, chosen: int | None) -> str:
    """The list of groups, from which one can be chosen.

    more: whether further groups match.
    chosen: the offset of the open group.
    """
    if not entries:
        return '<p class="note">No group of this run matches.</p>'
    head = ("step", "outcome", "difficulty", "attempts", "best reward", "correct", "problem")
    numbers = {"step", "attempts", "best reward", "correct"}
    top = "".join(f'<th class="number">{name}</th>' if name in numbers else f"<th>{name}</th>" for name in head)
    body = "".join(_entry(entry, entry.at == chosen) for entry in entries)
    note = f"The newest {len(entries)}; there are more." if more else f"{len(entries)} groups, the newest first."
    return (
        f'<p class="note">{note}</p><div class="scroll"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def group_page(group: GroupSample, run: RunHistory) -> str:
    """One group: the problem, and each attempt with its parameters, completions, rewards and explanation."""
    facts = f"{group.outcome} in step {group.step} · prompt {group.prompt_id}" + (
        f" · difficulty {group.difficulty}" if group.difficulty else ""
    )
    parts = [
        f"<h4>{escape(facts)}</h4>",
        f"<div>Problem: {folded(group.prompt)}</div>",
        f"<div>Answer: {folded(group.answer)}</div>",
    ]
    if reason := sized(group, run):
        parts.append(f'<p class="why">{escape(reason)}</p>')
    if not group.attempts:
        parts.append('<p class="why">It has no attempt yet: the step ended before the first one.</p>')
    parts += (_attempt(group, number, run) for number in range(len(group.attempts)))
    if text := trained_on(group, run):
        parts.append(f'<p class="why">{escape(text)}</p>')
    return "".join(parts)


def _entry(entry: Entry, chosen: bool) -> str:
    best = _number(entry.first_best)
    if entry.attempts > 1:
        best += f" → {_number(entry.last_best)}"
    current = ' aria-current="true"' if chosen else ""
    return (
        f'<tr data-at="{entry.at}"{current}><td class="number">{escape(str(entry.step))}</td>'
        f"<td>{escape(entry.outcome)}</td><td>{escape(entry.difficulty)}</td>"
        f'<td class="number">{entry.attempts}</td><td class="number">{best}</td>'
        f'<td class="number">{entry.last_correct} of {entry.last_size}</td>'
        f'<td class="text"><button type="button">{escape(entry.prompt)}</button></td></tr>'
    )


def _attempt(group: GroupSample, number: int, run: RunHistory) -> str:
    attempt, stats = group.attempts[number], statistics(group, number)
    functions = list(dict.fromkeys(name for c in attempt.completions for name in c.rewards))
    head = ["", "reward", *functions, "advantage", "tokens", "end", "weights"]
    top = "".join(f'<th class="number">{escape(name)}</th>' for name in head) + "<th>completion</th>"
    rows = "".join(_completion(completion, functions) for completion in attempt.completions)
    count = group.count(number + 1)
    merged = "this attempt" if count == 1 else f"all {count} attempts"
    return (
        f"<h4>{escape(group.title(number).capitalize())}: {escape(rung(attempt))}</h4>"
        f'<p class="why">{escape(why(group, number, run))}{_start(attempt, number)}</p>'
        f'<p class="note">{stats.count} rewards of {merged}: mean {stats.mean:.3g}, standard deviation '
        f"{stats.std:.3g}. Advantages are computed from the rewards of {basis(run)}.</p>"
        f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _start(attempt: AttemptSample, number: int) -> str:
    if number or attempt.rung < 0:
        return ""
    return f" It began on rung {attempt.rung}, since the prompt is hard by earlier results (algorithm.allocation)."


def _completion(completion: CompletionSample, functions: Sequence[str]) -> str:
    mark = '<span class="correct">correct</span>' if completion.correct else '<span class="wrong">wrong</span>'
    scores = (completion.rewards.get(name) for name in functions)
    numbers = [
        _number(completion.reward),
        *map(_number, scores),
        _signed(completion.advantage),
        f"{completion.tokens:,}",
    ]
    numbers += [escape(completion.finish_reason), escape(str(completion.weight_version))]
    cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
    turns = completion.turns
    text = episode(turns, completion.observed_tokens) if turns else folded(completion.text)
    return f'<tr><td>{mark}</td>{cells}<td class="text">{text}</td></tr>'


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"
