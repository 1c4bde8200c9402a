"""The rows of sample tables in trackers."""

from __future__ import annotations

from adagrpo_ray.tracking.sample_tables import COLUMNS, rows
from tests.support.histories import attempt, episode, group


def test_a_pilot_and_its_commit_have_the_number_of_one_attempt() -> None:
    parts = (attempt([0.0], part="pilot"), attempt([1.0], 0, part="pilot"), attempt([0.0], part="commit"))
    found = [dict(zip(COLUMNS, row, strict=True)) for row in rows([group(1, *parts)])]
    assert [(row["attempt"], row["part"]) for row in found] == [(0, "pilot"), (1, "pilot"), (1, "commit")]


def test_row_of_an_episode_has_all_turns() -> None:
    plain, acting = (dict(zip(COLUMNS, row, strict=True)) for row in rows([group(1, attempt([1.0]), episode())]))
    assert plain["completion"] == "12+7=19 #0"
    assert str(acting["completion"]).splitlines() == [
        *("[turn 1, calls add, reward 0.25]", "add(12, 7)", "[observed]", "the sum is 19", "[turn 2]", "12+7=19"),
    ]
