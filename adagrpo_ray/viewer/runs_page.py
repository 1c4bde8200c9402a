"""The page of runs: live curves, a comparison, and sampled groups with the reasons for resampling."""

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
from adagrpo_ray.viewer.browse import Query
from adagrpo_ray.viewer.open_runs import OpenRuns
from adagrpo_ray.viewer.run_curves import AXES, Axis, plots

EVERY_S = 3.0
"""Seconds between two updates of runs that are followed."""
MOST_RUNS = len(plot.COLORS)
MOST_GROUPS = 200
ANY = ""
OUTCOMES = [("any", ANY), *((outcome, outcome) for outcome in get_args(Outcome))]

# The only script of the page, whose HTML has none: it sends the offset of the group whose row was clicked.
CHOOSE = """
element.addEventListener('click', (event) => {
  const row = event.target.closest('tr[data-at]');
  if (row) trigger('select', {at: Number(row.dataset.at)});
});
"""
HIDDEN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


def build(folder: str, tab: gr.Tab, other: gr.Tab | None) -> None:
    """Lay out the page of the runs in `folder` in its `tab`. Runs are not followed while the `other` tab is shown."""
    runs = OpenRuns(folder)
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
            # The browser shows an empty field as 0, and sends 0.
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
        """Show the current runs; select the selected ones that still exist, or the newest run."""
        names, _ = _names(runs)
        selected = [name for name in now or [] if name in names]
        return gr.Dropdown(names, value=selected or names[:1])

    def draw(names: list[str] | None, over: Axis, before: Hashable) -> tuple[Any, ...]:
        """Draw the plots and tables, unless they are unchanged."""
        found, problems = runs.histories(names) if names else ([], _names(runs)[1])
        stamp = (*map(_stamp, found), over, *problems)
        if stamp == before:
            return (gr.skip(),) * 4
        shown = plot.page([each.name for each in found], plots(found, over), over) if found else ""
        return stamp, _notice(problems), shown, _compared(found)

    def select_run(names: list[str] | None, now: str | None, current: str) -> tuple[Any, ...]:
        """Select the run of the list of groups. If it changes, update its difficulties and close the open group."""
        names = names or []
        name = now if now in names else next(iter(names), None)
        rest = (gr.skip(), gr.skip()) if name == now else (None, "")
        return gr.Dropdown(names, value=name), show_difficulties(name, current), *rest

    def show_difficulties(name: str | None, now: str) -> Any:
        """Show the difficulties of the run's groups."""
        found = _difficulties(runs, name)
        return gr.Dropdown([("any", ANY), *((each, each) for each in found)], value=now if now in found else ANY)

    def search(before: Hashable, place: int | None, name: str | None, *fields: Any) -> tuple[Any, Any]:
        """List the groups that match, unless nothing has changed: a search for a text reads all texts."""
        try:
            stamp = (name, runs.newest(name) if name else None, place, *fields)
            if stamp == before:
                return gr.skip(), gr.skip()
            entries, more = runs.groups(name, _query(*fields), MOST_GROUPS) if name else ([], False)
            return stamp, group_view.listing(entries, more=more, chosen=place)
        except (HistoryError, ConfigError) as error:
            return None, _notice([str(error)])

    def choose(event: gr.EventData, name: str | None) -> tuple[int | None, str]:
        """Open the group whose row was clicked."""
        place = getattr(event, "at", None)
        if not name or not isinstance(place, int):
            return None, ""
        try:
            return place, group_view.group_page(runs.group(name, place), runs.history(name))
        except (HistoryError, ConfigError) as error:
            return None, _notice([str(error)])

    drawing: dict[str, Any] = {
        "fn": draw,
        "inputs": [chosen, axis, drawn],
        "outputs": [drawn, notice, curves, compared],
        **HIDDEN,
    }
    searching: dict[str, Any] = {
        "fn": search,
        "inputs": [listed, opened_at, *filters],
        "outputs": [listed, groups],
        **HIDDEN,
    }
    selecting: dict[str, Any] = {
        "fn": select_run,
        "inputs": [chosen, run, difficulty],
        "outputs": [run, difficulty, opened_at, opened],
        **HIDDEN,
    }
    switching: dict[str, Any] = {
        "fn": lambda name, current: (show_difficulties(name, current), None, ""),
        "inputs": [run, difficulty],
        "outputs": [difficulty, opened_at, opened],
        **HIDDEN,
    }
    # `input` events come only from the user. `change` events would also come from these functions, and repeatedly
    # from a Dropdown of several values.
    page_opened = gr.on(None, lambda: find(None), [], chosen, **HIDDEN)
    refreshed = refresh.click(find, chosen, chosen, **HIDDEN)
    for begun in (page_opened.then, refreshed.then, chosen.input):
        begun(**drawing).then(**selecting).then(**searching)
    axis.input(**drawing)
    run.input(**switching).then(**searching)
    gr.on([each.input for each in filters[1:]], trigger_mode="always_last", **searching)
    groups.select(choose, [run], [opened_at, opened], **HIDDEN).then(**searching)
    timer.tick(**drawing)
    timer.tick(**searching)
    follow.input(lambda on: gr.Timer(active=on), follow, timer, **HIDDEN)
    if other is not None:
        # Updates would not be visible there, and the end of their stream could drop an event of the other page.
        at_once: dict[str, Any] = {"queue": False, "trigger_mode": "multiple", **HIDDEN}
        other.select(lambda: gr.Timer(active=False), None, timer, **at_once)
        tab.select(lambda on: gr.Timer(active=on), follow, timer, **at_once)


def _html(name: str, style: str, js: str | None = None) -> gr.HTML:
    """A component for HTML that Gradio does not change."""
    return gr.HTML("", elem_id=name, css_template=style, js_on_load=js, apply_default_css=False)


def _names(runs: OpenRuns) -> tuple[list[str], list[str]]:
    """The names of all runs, and messages about problems."""
    try:
        names = runs.names()
    except HistoryError as error:
        return [], [str(error)]
    return names, [] if names else [f"There is no run in {runs.root} yet. Start one, then Refresh."]


def _difficulties(runs: OpenRuns, name: str | None) -> list[str]:
    try:
        return runs.difficulties(name) if name else []
    except (HistoryError, ConfigError):  # the list of groups shows this error
        return []


def _stamp(run: RunHistory) -> tuple[Hashable, ...]:
    """A stamp of the run, which changes when there is something new to show."""
    seconds = run.steps[-1].step_time if run.steps else 0.0
    return run.name, len(run.steps), seconds, len(run.evaluations), run.summary is not None


def _notice(problems: Sequence[str]) -> str:
    return "".join(f'<p class="why">{escape(problem)}</p>' for problem in problems)


def _compared(runs: Sequence[RunHistory]) -> str:
    """The table of results, and if there are several runs, the table of the settings that differ."""
    if not runs:
        return ""
    names = [run.name for run in runs]
    parts = [group_view.grid(("result", *names), comparison.results(runs))]
    if len(runs) > 1:
        rows = comparison.differences(runs)
        parts.append("<h4>Settings that differ</h4>")
        parts.append(group_view.grid(("setting", *names), rows) if rows else '<p class="note">None.</p>')
    return "".join(parts)


def _query(
    first: float | None,
    last: float | None,
    outcome: str | None,
    difficulty: str | None,
    resampled: bool,
    text: str | None,
) -> Query:
    """The query given by the fields of the page."""
    return Query(
        first_step=int(first or 0) or None,
        last_step=int(last or 0) or None,
        outcome=outcome or ANY,
        difficulty=difficulty or ANY,
        resampled=resampled,
        text=(text or "").strip(),
    )
