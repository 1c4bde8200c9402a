"""The share of the slower half that a run with rollouts ahead reaches: what is timed, and what is compared."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import bench
import pytest
from halves import WINDOW_S, Passes, window

HALVES = {
    "rollout_alone_seconds_per_step": 0.5,
    "learner_alone_seconds_per_step": 1.5,
    "rollout_together_seconds_per_step": 0.75,
    "learner_together_seconds_per_step": 2.0,
    "tokens_per_step": 100.0,
}
RUN = {"tokens_per_s": 40.0, "wall_seconds_per_step": 2.5, "tokens_per_step": 100.0}


def measured(times: Iterable[float], steps: int, lead: int) -> list[float]:
    """Seconds per step that are known after each of the steps, which end at these times."""
    times = list(times)
    passes = Passes(steps, lead, iter(times).__next__)
    found = []
    for _ in times:
        passes.end()
        found.append(passes.seconds_per_step)
    return found


def test_the_share_is_the_time_of_the_slower_half_over_that_of_the_run() -> None:
    found = bench.ratios({"ahead": RUN, "limits": HALVES})
    assert found == {
        "pipeline_share": pytest.approx(2.0 / 2.5),
        "pipeline_share_of_halves_alone": pytest.approx(1.5 / 2.5),
        "pipeline_work": 1.0,
    }


@pytest.mark.parametrize("sections", [{"limits": HALVES}, {"ahead": RUN}, {"ahead": {"error": "x"}, "limits": HALVES}])
def test_there_is_no_share_without_both_measurements(sections: dict[str, Any]) -> None:
    assert bench.ratios(sections) == {}
    assert bench.ratios({"ahead": RUN, "limits": {"error": "x"}}) == {}


def test_runs_that_are_compared_with_trl_have_no_share() -> None:
    assert "pipeline_share" not in bench.ratios({"programs": {"max_staleness 1": RUN}, "limits": HALVES})


def test_only_whole_passes_count() -> None:
    """Steps of 1 s and 3 s in turn: a part of a pass would have another mean."""
    times = [4.0 * (number // 2) + (number % 2) for number in range(20)]
    assert set(measured(times, steps=2, lead=1)) == {0.0, 2.0}
    first = measured(times, steps=2, lead=1).index(2.0)
    assert times[first] - times[0] >= WINDOW_S
    assert first % 2 == 0


def test_first_steps_do_not_count() -> None:
    times = [100.0, 200.0, *(200.0 + number for number in range(1, 20))]
    assert {seconds for seconds in measured(times, steps=3, lead=2) if seconds} == {1.0}


@pytest.mark.parametrize(("steps", "expected"), [(40, range(11, 41)), (7, range(2, 8)), (2, range(2, 3))])
def test_first_quarter_of_the_steps_is_left_out(steps: int, expected: range) -> None:
    assert window(steps) == expected
