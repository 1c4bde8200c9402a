"""The curves of runs, their plots, and the comparison of runs."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from adagrpo_ray.runs.reader import RunHistory
from adagrpo_ray.runs.summary import summarize
from adagrpo_ray.viewer import plot
from adagrpo_ray.viewer import side_by_side as comparison
from adagrpo_ray.viewer.run_curves import MOST_POINTS, Axis, Curve, Plot, plots, thin
from tests.support.histories import ON_BENCHMARKS, evaluation, step


def run(name: str = "a", steps: int = 3, config: dict[str, Any] | None = None, **changes: Any) -> RunHistory:
    records = tuple(step(number, **changes) for number in range(1, steps + 1))
    held_out = (evaluation(0, 0.25), evaluation(steps, 0.5))
    return RunHistory(name, Path(name), config or {}, records, held_out, None, ())


def curves(runs: list[RunHistory], axis: Axis = "step") -> dict[tuple[str, str], Curve]:
    return {(each.run, each.line): each for drawn in plots(runs, axis) for each in drawn.curves}


def test_each_metric_of_a_plot_has_a_curve() -> None:
    found = curves([run(accuracy=0.375, reward=-0.5, step_time=0.5)])
    per_step = {
        "reward": -0.5,
        "reward_std": 0.5,
        "accuracy": 0.375,
        "frac_reward_zero_std": 0.5,
        "adaptive/frac_reward_zero_std_after": 0.125,
        "adaptive/resamples/rung_0": 3,
        "adaptive/resamples/rung_1": 1,
        "adaptive/group_size": 6.5,
        "adaptive/tokens_per_second": 8000,
        "adaptive/staleness": 0.75,
    }
    for line, value in per_step.items():
        assert found["a", line].points == ((1, value), (2, value), (3, value)), line
    assert found["a", "eval/accuracy"].points == ((0, 0.25), (3, 0.5))
    (accuracy,) = (each for each in plots([run(accuracy=0.375)], "step") if each.title == "Accuracy")
    assert [(each.line, each.number, each.points[0][1]) for each in accuracy.curves] == [
        ("accuracy", 0, 0.375),
        ("eval/accuracy", 1, 0.25),
    ]


def test_benchmarks_have_a_plot_only_if_a_run_has_them() -> None:
    title = "Accuracy on benchmarks"
    without = run()
    assert title not in [each.title for each in plots([without], "step")]
    evaluated = replace(without, evaluations=(ON_BENCHMARKS, replace(ON_BENCHMARKS, step=3)))
    (drawn,) = (each for each in plots([without, evaluated], "step") if each.title == title)
    assert {each.line: each.points for each in drawn.curves} == {
        "eval/gsm8k/accuracy": ((0, 0.375), (3, 0.375)),
        "eval/aime24/accuracy": ((0, 0.0), (3, 0.0)),
    }
    assert (drawn.low, drawn.high) == (0.0, 1.0)


def test_points_over_tokens_are_at_the_end_of_their_step() -> None:
    found = curves([run(generated_tokens=1000)], "generated tokens")
    assert [x for x, _ in found["a", "reward"].points] == [1000, 2000, 3000]
    assert [x for x, _ in found["a", "eval/accuracy"].points] == [0, 3000]


def test_added_rung_has_zero_resamples_in_earlier_steps() -> None:
    short, long = step(1, resamples=(2,)), step(2, resamples=(1, 4))
    found = curves([RunHistory("a", Path("a"), {}, (short, long), (), None, ())])
    assert found["a", "adaptive/resamples/rung_1"].points == ((1, 0), (2, 4))


def test_unmeasured_metric_has_no_point() -> None:
    records = (step(1, reward=None), step(2, reward=0.5))
    found = curves([RunHistory("a", Path("a"), {}, records, (), None, ())])
    assert found["a", "reward"].points == ((1, None), (2, 0.5))
    assert ("a", "eval/accuracy") not in found


@pytest.mark.parametrize("count", [1, MOST_POINTS, MOST_POINTS + 1, 10 * MOST_POINTS + 3])
def test_long_curve_is_reduced_to_means_of_neighbours(count: int) -> None:
    points = [(float(x), float(x % 7)) for x in range(count)]
    thinned = thin(points)
    assert len(thinned) <= MOST_POINTS
    assert len(thinned) == count or len(thinned) > MOST_POINTS // 2
    width = math.ceil(count / len(thinned))
    assert thinned[0] == pytest.approx((sum(range(width)) / width, sum(x % 7 for x in range(width)) / width))


def test_growing_curve_keeps_its_points() -> None:
    points = [(float(x), math.sin(x)) for x in range(2 * MOST_POINTS)]
    before, after = thin(points[:-10]), thin(points)
    assert after[: len(before)] == before


def test_each_run_has_its_colour_in_shared_plots() -> None:
    runs = [run("one"), run("two", 5)]
    page = plot.page(["one", "two"], plots(runs, "step"), "step")
    for color in plot.COLORS[:2]:
        assert f"background:{color}" in page
        assert page.count(f'stroke="{color}"') == len(curves(runs)) // 2
    assert plot.COLORS[2] not in page


def test_drawn_curve_lies_within_its_plot_and_follows_its_values() -> None:
    drawn = Plot("p", (Curve("a", "reward", 0, ((1, -3.0), (2, 0.0), (10, 5.0))),), None, None)
    svg = svgs(plot.page(["a"], [drawn], "step"))[0]
    places = [tuple(map(float, place.split(","))) for place in svg.find(".//polyline").get("points").split()]  # type: ignore[union-attr]
    xs, ys = zip(*places, strict=True)
    assert list(xs) == sorted(xs)
    assert list(ys) == sorted(ys, reverse=True)
    assert plot.LEFT <= min(xs) <= max(xs) <= plot.RIGHT
    assert plot.TOP <= min(ys) <= max(ys) <= plot.BOTTOM


@pytest.mark.parametrize(
    "points", [(), ((1.0, 0.0),), ((0.0, 0.0),), ((1.0, 2.0), (2.0, 2.0)), ((5.0, -1e-9),), ((1e9, 1e12),)]
)
def test_degenerate_curves_are_drawn(points: tuple[tuple[float, float], ...]) -> None:
    for low, high in ((0.0, None), (None, None), (0.0, 1.0)):
        page = plot.page(["a"], [Plot("p", (Curve("a", "l", 0, points),), low, high)], "step")
        assert ("nothing measured yet" in page) == (not points)
        assert not re.search(r"\b(nan|inf)\b", page)


@pytest.mark.parametrize(
    ("last", "expected"), [(1, ["0", "1"]), (3, ["0", "1", "2", "3"]), (15, ["0", "5", "10", "15"])]
)
def test_ticks_of_steps_are_whole_numbers(last: int, expected: list[str]) -> None:
    drawn = Plot("p", (Curve("a", "reward", 0, ((float(last), 0.3),)),))
    texts = svgs(plot.page(["a"], [drawn], "step"))[0].iter("text")
    assert [text.text for text in texts if text.get("y") == str(plot.BOTTOM + 14)] == expected


def test_tooltips_have_the_values_of_all_curves() -> None:
    drawn = Plot("p", (Curve("one", "rung 0", 0, ((1, 3.0), (100, 7.0))), Curve("two", "rung 0", 0, ((50, 4.0),))))
    titles = [title.text for title in svgs(plot.page(["one", "two"], [drawn], "step"))[0].iter("title")]
    assert titles[0] is not None
    assert "one, rung 0: 3 at 1" in titles[0]
    assert "two" not in titles[0]
    assert titles[-1] is not None
    assert "one, rung 0: 7 at 100\ntwo, rung 0: 4 at 50" in titles[-1]


def test_names_of_runs_are_escaped() -> None:
    name = '"><script>alert(1)</script>'
    page = plot.page([name], plots([run(name)], "step"), "step")
    assert "<script" not in page
    assert '"><' not in re.sub(r'"[^"<>]*"', "", page)


def test_page_of_five_long_runs_has_moderate_size() -> None:
    long = run(steps=2 * MOST_POINTS)  # has the most points after it is thinned
    runs = [replace(long, name=str(number)) for number in range(5)]
    assert len(plot.page([each.name for each in runs], plots(runs, "step"), "step")) < 500_000


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0, 60, [0, 20, 40, 60]), (-3, 5, [-2, 0, 2, 4]), (1, 1, [1])],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert plot.ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (-1.5, "-1.5"), (1200, "1,200"), (12_345, "12.3 k"), (3.4e6, "3.4 M"), (5e9, "5 G")],
)
def test_short_formats_numbers(value: float, text: str) -> None:
    assert plot.short(value) == text


def test_differences_has_only_settings_that_differ() -> None:
    one = {"run": {"name": "a", "steps": 5}, "algorithm": {"name": "grpo", "triggers": []}, "learner": {"ranks": 1}}
    two = {"run": {"name": "b", "steps": 5}, "algorithm": {"name": "adagrpo", "triggers": [{"from_step": 1}]}}
    assert comparison.differences([run("a", config=one), run("b", config=two)]) == [
        ("algorithm.name", "grpo", "adagrpo"),
        ("algorithm.triggers", "[]", '[{"from_step": 1}]'),
        ("learner.ranks", "1", "-"),
    ]
    assert comparison.differences([run("a", config=one)]) == []


def test_results_compares_runs() -> None:
    ended = run("b", 2, {"run": {"steps": 2}}, generated_tokens=500, step_time=2.0, reward=0.125)
    summary = summarize(ended.steps, *ended.evaluations, name="b", folder="b", adapter="b/adapter")
    ended = RunHistory("b", Path("b"), ended.config, ended.steps, ended.evaluations, summary, ())
    running = RunHistory("a", Path("a"), {"run": {"steps": 9}}, (step(1),), (), None, ())
    rows = {name: values for name, *values in comparison.results([running, ended])}
    assert rows["steps"] == ["1 of 9", "2 of 2"]
    assert rows["state"] == ["not ended", "ended"]
    assert rows["held-out accuracy before"] == ["-", "0.250"]
    assert rows["held-out accuracy, last"] == ["-", "0.500"]
    assert rows["change"] == ["-", "+0.250"]
    assert rows["mean reward, last 10 steps"][1] == "0.125"
    assert rows["generated tokens"][1] == "1,000"
    assert rows["generated tokens per second"][1] == "250"
    assert rows["resamples"][1] == "8"
    assert rows["resamples that met the criterion, by rung"][1] == "4+0"
    assert comparison.results([RunHistory("c", Path("c"), {"run": None}, (), (), None, ())])[0] == ("steps", "0")


def svgs(page: str) -> list[ElementTree.Element]:
    """The plots of a page, without the SVG elements of their legends."""
    return [svg for svg in ElementTree.fromstring(f"<div>{page}</div>").iter("svg") if svg.get("role") == "img"]
