"""The page of runs: their curves, live; how they compare; and the groups that they sampled, with the reasons."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from html import escape
from typing import Any, get_args

import gradio as gr

from adagrpo_ray.errors import ConfigError, HistoryError
from adagrpo_ray.runs.reader import RunHistory
from adagrpo_ray.runs.samples import Outcome
from adagrpo_ray.viewer import group_view, plot
from adagrpo_ray.viewer import side_by_side as comparison
from adagrpo_ray.viewer.browse import Wanted
from adagrpo_ray.viewer.run_curves import AXES, Axis, plots
from adagrpo_ray.viewer.shelf import Shelf

EVERY_S = 3.0
"""Between two looks at runs that are followed."""
MOST_RUNS = len(plot.COLORS)
MOST_GROUPS = 200
ANY = ""
OUTCOMES = [("any", ANY), *((outcome, outcome) for outcome in get_args(Outcome))]

# A page's HTML is inert: what runs is this alone, which says where a group begins whose row was chosen.
CHOOSE = """
element.addEventListener('click', (event) => {
  const row = event.target.closest('tr[data-at]');
  if (row) trigger('select', {at: Number(row.dataset.at)});
});
"""
HIDDEN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


def build(folder: str, tab: gr.Tab, other: gr.Tab | None) -> None:
    """Lay out the page of the runs in `folder` inside its `tab`; it follows none while the `other` tab is shown."""
    shelf = Shelf(folder)
    with gr.Row():
        chosen = gr.Dropdown(
            [], multiselect=True, max_choices=MOST_RUNS, label="Runs, newest first", elem_id="runs-chosen", scale=4
        )
        axis = gr.Radio(list(AXES), value=AXES[0], label="Over", elem_id="runs-axis", scale=2, min_width=320)
        with gr.Column(scale=1, min_width=180):
            follow = gr.Checkbox(True, label="Follow", elem_id="runs-follow")
            refresh = gr.Button("Refresh", elem_id="runs-refresh", size="sm")
    notice = _html("runs-notice", group_view.STYLE)
    curves = _html("runs-curves", plot.STYLE)
    with gr.Accordion("Results and settings", open=True):
        compared = _html("runs-compared", group_view.STYLE)
    with gr.Accordion("Sampled groups", open=True):
        with gr.Row():
            run = gr.Dropdown([], label="Of the run", elem_id="groups-run", scale=3)
            # An empty field shows 0 in the browser, and sends it.
            first = gr.Number(0, label="From step", precision=0, elem_id="groups-first", min_width=90)
            last = gr.Number(0, label="To step (0: all)", precision=0, elem_id="groups-last", min_width=90)
            outcome = gr.Dropdown(OUTCOMES, value=ANY, label="Outcome", elem_id="groups-outcome", min_width=120)
            difficulty = gr.Dropdown(
                [("any", ANY)], value=ANY, label="Difficulty", elem_id="groups-difficulty", min_width=120
            )
        with gr.Row(equal_height=True):
            text = gr.Textbox(label="Text in problem, answer or completions", elem_id="groups-text", scale=4)
            resampled = gr.Checkbox(False, label="Resampled only", elem_id="groups-resampled", scale=1)
        groups = _html("groups-list", group_view.STYLE, js=CHOOSE)
        opened = _html("groups-open", group_view.STYLE)
    drawn, listed, opened_at = gr.State(None), gr.State(None), gr.State(None)
    timer = gr.Timer(EVERY_S)
    filters: list[Any] = [run, first, last, outcome, difficulty, resampled, text]

    def find(now: list[str] | None) -> Any:
        """The runs that there are now; of those that were chosen the ones that still are, or the newest."""
        names, _ = _names(shelf)
        kept = [name for name in now or [] if name in names]
        return gr.Dropdown(names, value=kept or names[:1])

    def draw(names: list[str] | None, over: Axis, before: Hashable) -> tuple[Any, ...]:
        """The plots and tables, unless they are as they were."""
        found, problems = shelf.histories(names) if names else ([], _names(shelf)[1])
        stamp = (*map(_stamp, found), over, *problems)
        if stamp == before:
            return (gr.skip(),) * 4
        shown = plot.page([each.name for each in found], plots(found, over), over) if found else ""
        return stamp, _notice(problems), shown, _compared(found)

    def settle(names: list[str] | None, now: str | None, grade: str) -> tuple[Any, ...]:
        """Lists the groups of a run that is shown. Another run has other difficulties, and no open group."""
        names = names or []
        name = now if now in names else next(iter(names), None)
        rest = (gr.skip(), gr.skip()) if name == now else (None, "")
        return gr.Dropdown(names, value=name), classify(name, grade), *rest

    def classify(name: str | None, now: str) -> Any:
        """The difficulties that the groups of the run have."""
        found = _difficulties(shelf, name)
        return gr.Dropdown([("any", ANY), *((each, each) for each in found)], value=now if now in found else ANY)

    def look(before: Hashable, place: int | None, name: str | None, *asked: Any) -> tuple[Any, Any]:
        """The list of groups, unless it is as it was: a search reads all texts."""
        try:
            stamp = (name, shelf.newest(name) if name else None, place, *asked)
            if stamp == before:
                return gr.skip(), gr.skip()
            entries, more = shelf.groups(name, _wanted(*asked), MOST_GROUPS) if name else ([], False)
            return stamp, group_view.listing(entries, more=more, chosen=place)
        except (HistoryError, ConfigError) as error:
            return None, _notice([str(error)])

    def choose(event: gr.EventData, name: str | None) -> tuple[int | None, str]:
        """The group whose row was chosen."""
        place = getattr(event, "at", None)
        if not name or not isinstance(place, int):
            return None, ""
        try:
            return place, group_view.group_page(shelf.group(name, place), shelf.history(name))
        except (HistoryError, ConfigError) as error:
            return None, _notice([str(error)])

    drawing: dict[str, Any] = {
        "fn": draw,
        "inputs": [chosen, axis, drawn],
        "outputs": [drawn, notice, curves, compared],
        **HIDDEN,
    }
    looking: dict[str, Any] = {
        "fn": look,
        "inputs": [listed, opened_at, *filters],
        "outputs": [listed, groups],
        **HIDDEN,
    }
    settling: dict[str, Any] = {
        "fn": settle,
        "inputs": [chosen, run, difficulty],
        "outputs": [run, difficulty, opened_at, opened],
        **HIDDEN,
    }
    switching: dict[str, Any] = {
        "fn": lambda name, grade: (classify(name, grade), None, ""),
        "inputs": [run, difficulty],
        "outputs": [difficulty, opened_at, opened],
        **HIDDEN,
    }
    # What hands changed is an `input`. `change` would follow what these functions set as well, and a Dropdown of
    # several values says it again and again.
    page_opened = gr.on(None, lambda: find(None), [], chosen, **HIDDEN)
    refreshed = refresh.click(find, chosen, chosen, **HIDDEN)
    for begun in (page_opened.then, refreshed.then, chosen.input):
        begun(**drawing).then(**settling).then(**looking)
    axis.input(**drawing)
    run.input(**switching).then(**looking)
    gr.on([each.input for each in filters[1:]], trigger_mode="always_last", **looking)
    groups.select(choose, [run], [opened_at, opened], **HIDDEN).then(**looking)
    timer.tick(**drawing)
    timer.tick(**looking)
    follow.input(lambda on: gr.Timer(active=on), follow, timer, **HIDDEN)
    if other is not None:
        # Nobody sees what a tick finds then, and its stream might close over what a hand has just asked for there.
        at_once: dict[str, Any] = {"queue": False, "trigger_mode": "multiple", **HIDDEN}
        other.select(lambda: gr.Timer(active=False), None, timer, **at_once)
        tab.select(lambda on: gr.Timer(active=on), follow, timer, **at_once)


def _html(name: str, style: str, js: str | None = None) -> gr.HTML:
    """A place for HTML of our own, which Gradio leaves as it is."""
    return gr.HTML("", elem_id=name, css_template=style, js_on_load=js, apply_default_css=False)


def _names(shelf: Shelf) -> tuple[list[str], list[str]]:
    """All runs, and what is wrong."""
    try:
        names = shelf.names()
    except HistoryError as error:
        return [], [str(error)]
    return names, [] if names else [f"There is no run in {shelf.root} yet. Start one, then Refresh."]


def _difficulties(shelf: Shelf, name: str | None) -> list[str]:
    try:
        return shelf.difficulties(name) if name else []
    except (HistoryError, ConfigError):  # which the list of groups says
        return []


def _stamp(run: RunHistory) -> tuple[Hashable, ...]:
    """What is another one whenever the run has something new to show."""
    seconds = run.steps[-1].step_time if run.steps else 0.0
    return run.name, len(run.steps), seconds, len(run.evaluations), run.summary is not None


def _notice(problems: Sequence[str]) -> str:
    return "".join(f'<p class="why">{escape(problem)}</p>' for problem in problems)


def _compared(runs: Sequence[RunHistory]) -> str:
    """The table of results, and where there are several runs that of the settings in which they differ."""
    if not runs:
        return ""
    names = [run.name for run in runs]
    parts = [group_view.grid(("result", *names), comparison.results(runs))]
    if len(runs) > 1:
        rows = comparison.differences(runs)
        parts.append("<h4>Settings that differ</h4>")
        parts.append(group_view.grid(("setting", *names), rows) if rows else '<p class="note">None.</p>')
    return "".join(parts)


def _wanted(
    first: float | None,
    last: float | None,
    outcome: str | None,
    difficulty: str | None,
    resampled: bool,
    text: str | None,
) -> Wanted:
    """The filters as the page has them."""
    return Wanted(
        first_step=int(first or 0) or None,
        last_step=int(last or 0) or None,
        outcome=outcome or ANY,
        difficulty=difficulty or ANY,
        resampled=resampled,
        text=(text or "").strip(),
    )
