"""Sampled groups: the search, the page of a group, and the reasons for resampling."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from adagrpo_ray.errors import HistoryError
from adagrpo_ray.runs import RunWriter
from adagrpo_ray.runs.reader import RunHistory
from adagrpo_ray.runs.samples import GroupSample, TurnSample
from adagrpo_ray.runs.why import parameters, rung, sized, trained_on, why
from adagrpo_ray.types import SamplingParams
from adagrpo_ray.viewer.browse import Query, SampleFile
from adagrpo_ray.viewer.folding import LONG
from adagrpo_ray.viewer.group_view import group_page, listing
from adagrpo_ray.viewer.open_runs import OpenRuns
from tests.support.histories import attempt, episode, group, step

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>${alert(3)}{{constructor}}\"'`</pre></details>"
FAILED, RESCUE = attempt([0.0, 0.0], trained=False), attempt([1.0, 0.0], 0)
STUCK = attempt([0.0, 0.0], 1)


def write(folder: Path, *groups: GroupSample) -> SampleFile:
    lines = (json.dumps(each.to_dict()) + "\n" for each in groups)
    (folder / "samples.jsonl").write_text("".join(lines), encoding="utf-8")
    return SampleFile(folder)


def settings(**algorithm: Any) -> RunHistory:
    config = {"algorithm": {"name": "adagrpo", "criterion": {"kind": "any_correct"}, "max_group_age": 8, **algorithm}}
    return RunHistory("a", Path("a"), config, (), (), None, ())


GROUPS = (
    group(1, FAILED, outcome="waiting", prompt="one plus one"),
    group(2, RESCUE, difficulty="5 digits"),
    group(3),
    group(4, FAILED, STUCK, outcome="exhausted", answer="Straße"),
)


@pytest.mark.parametrize(
    ("query", "steps"),
    [
        (Query(), [4, 3, 2, 1]),
        (Query(first_step=2, last_step=3), [3, 2]),
        (Query(outcome="trained"), [3, 2]),
        (Query(difficulty="5 digits"), [2]),
        (Query(resampled=True), [4, 3]),
        (Query(text="ONE PLUS"), [1]),
        (Query(text="strasse"), [4]),
        (Query(text="19 #1"), [4, 3, 2, 1]),  # in completions
        (Query(text="p3"), [3]),
        (Query(text="nowhere"), []),
        (Query(outcome="trained", resampled=True, first_step=1, text="19"), [3]),
    ],
)
def test_find_returns_matching_groups_newest_first(tmp_path: Path, query: Query, steps: list[int]) -> None:
    found, more = write(tmp_path, *GROUPS).find(query, 10)
    assert [entry.step for entry in found] == steps
    assert not more


def test_find_limits_the_number_of_groups(tmp_path: Path) -> None:
    found, more = write(tmp_path, *GROUPS).find(Query(), 3)
    assert [entry.step for entry in found] == [4, 3, 2]
    assert more


def test_group_is_read_by_its_offset(tmp_path: Path) -> None:
    samples = write(tmp_path, *GROUPS)
    assert [samples.group(entry.at) for entry in samples.entries()] == list(GROUPS)


def test_offset_without_a_group_is_refused(tmp_path: Path) -> None:
    samples = write(tmp_path, *GROUPS)
    last = samples.entries()[-1].at
    os.truncate(tmp_path / "samples.jsonl", last)
    for at in (last, 1, -1):
        with pytest.raises(HistoryError, match="no longer in"):
            samples.group(at)


def test_list_shows_rewards_and_correct_completions(tmp_path: Path) -> None:
    entry = write(tmp_path, group(3)).entries()[0]
    assert (entry.attempts, entry.resampled, entry.first_best, entry.last_best) == (2, True, 0.0, 1.0)
    assert (entry.last_correct, entry.last_size) == (1, 2)
    page = text_of(listing([entry], more=False, chosen=None))
    assert "0 → 1" in page
    assert "1 of 2" in page


def test_why_explains_resamples_for_each_criterion() -> None:
    sample = group(3)
    ending = " So it was sampled again, with rung 0 (temperature 2, min_p 0.1)."
    assert why(sample, 0, settings()) == (
        "No completion met the criterion any_correct: none of 2 is correct; best reward 0." + ending
    )
    above = {"kind": "any_above", "reward": "exact", "threshold": 0.5}
    assert why(sample, 0, settings(criterion=above)) == (
        "No completion met the criterion any_above: best score by exact 0, not above 0.5." + ending
    )
    assert why(sample, 0, settings(criterion={**above, "reward": None})) == (
        "No completion met the criterion any_above: best reward 0, not above 0.5." + ending
    )
    assert why(sample, 0, settings(criterion={"kind": "spread", "threshold": 0.0})) == (
        "The group did not meet the criterion spread: its rewards so far have a standard deviation of 0, not above 0; "
        "best reward 0." + ending
    )
    assert why(sample, 0, settings(criterion={"kind": "mine:enough"})) == (
        "The group did not meet the criterion mine:enough: 0 of 2 correct, best reward 0." + ending
    )


def test_why_explains_the_outcome_at_the_last_attempt() -> None:
    assert why(group(3), 1, settings()) == "It met the criterion any_correct: 1 of 2 correct, best reward 1."
    one = group(1, FAILED, outcome="waiting")
    assert why(one, 0, settings()).endswith("It waits for its next attempt in a later step.")
    reasons = "max_group_age=8 steps, a reward function failed on its next attempt, or its prompt was given up"
    assert reasons in why(replace(one, outcome="dropped"), 0, settings())
    stuck = group(4, FAILED, STUCK, outcome="exhausted")
    assert why(stuck, 1, settings()).endswith("trained on nevertheless (algorithm.on_exhausted=train).")
    dropped = group(4, FAILED, attempt([0.0, 0.0], 1, trained=False), outcome="exhausted")
    assert why(dropped, 1, settings()).endswith(
        "No rung was left, and it was not trained on (algorithm.on_exhausted=drop)."
    )
    judged = settings(allocation={"enabled": True, "judge_rungs": True})
    assert "No rung was left, or the next one did not pay for its class (algorithm.allocation.judge_rungs), and" in why(
        dropped, 1, judged
    )


PILOT, COMMIT = attempt([1.0, 0.0], part="pilot"), attempt([0.0, 0.0, 1.0], part="commit")
UNTRAINED = attempt([1.0, 0.0], trained=False, part="pilot")


def test_why_explains_pilots_and_commits() -> None:
    both = group(1, PILOT, COMMIT)
    assert why(both, 0, settings()) == (
        "Pilot: 1 of 2 correct, best reward 1. It met the criterion any_correct, so 3 more completions at the base "
        "parameters were requested at once."
    )
    assert why(both, 1, settings()) == (
        "Commit: 1 of 3 correct, best reward 1. After its commit a group is ready, whatever the commit gave."
    )
    solved = group(1, attempt([1.0, 1.0], part="pilot"))
    assert why(solved, 0, settings()) == (
        "Pilot: 2 of 2 correct, best reward 1. So the prompt is solved, and there is no commit."
    )
    failed = group(1, attempt([0.0, 0.0], trained=False, part="pilot"), PILOT, COMMIT)
    assert "none of 2 is correct; best reward 0. So it was sampled again" in why(failed, 0, settings())


def test_why_explains_a_pilot_whose_step_ended() -> None:
    cut = group(1, UNTRAINED, outcome="waiting")
    start = "Pilot: 1 of 2 correct, best reward 1. It waits for its "
    assert why(cut, 0, settings()) == f"{start}commit in a later step."
    assert why(cut, 0, settings(criterion={"kind": "mine:enough"})) == f"{start}commit or next attempt in a later step."
    assert "a reward function failed on its commit, or" in why(replace(cut, outcome="dropped"), 0, settings())


def test_why_explains_a_group_that_is_not_balanced() -> None:
    sample = group(1, attempt([1.0, 0.0, 0.0], trained=False), attempt([0.0, 0.0, 0.0], 0, trained=False), STUCK)
    assert why(sample, 1, settings(criterion={"kind": "balanced"})).startswith(
        "The group did not meet the criterion balanced: 1 correct and 5 wrong completions so far, and 2 of each are "
        "needed. So it was sampled again"
    )


@pytest.mark.parametrize(
    ("name", "default"), [("adagrpo", "max_variance"), ("grpo", "last"), ("dapo", "last"), ("adagrpo", None)]
)
def test_completions_in_the_loss_name_the_selection_of_the_method(name: str, default: str | None) -> None:
    """If the setting of the run is null; else the setting."""
    chosen = settings(name=name, train_on=None if default else "all")
    assert f"(algorithm.train_on={default or 'all'})" in trained_on(group(1, FAILED, PILOT, COMMIT), chosen)


def test_page_shows_which_completions_are_in_the_loss() -> None:
    page = text_of(group_page(group(1, FAILED, PILOT, COMMIT), settings(train_on="last")))
    for part in ("Attempt 1: the base parameters", "Attempt 2, pilot: the base", "Attempt 2, commit: the base"):
        assert part in page
    assert "7 rewards of all 2 attempts" in page
    assert "In the loss are 5 of 7 completions (algorithm.train_on=last), those with an advantage." in page
    assert "no policy gradient" not in page
    assert trained_on(group(1, FAILED, outcome="waiting"), settings()) == ""
    solved = trained_on(group(1, attempt([1.0, 1.0], part="pilot")), settings())
    assert solved.endswith("All advantages are 0, so they have no policy gradient.")


def test_list_shows_a_pilot_and_its_commit_as_one_attempt(tmp_path: Path) -> None:
    entry = write(tmp_path, group(1, PILOT, COMMIT)).entries()[0]
    assert (entry.attempts, entry.resampled, entry.last_correct, entry.last_size) == (1, False, 2, 5)
    assert (entry.first_best, entry.last_best) == (1.0, 1.0)
    entry = write(tmp_path, group(1, FAILED, PILOT, COMMIT)).entries()[0]
    assert (entry.attempts, entry.resampled, entry.first_best, entry.last_size) == (2, True, 0.0, 5)


def test_why_explains_methods_without_a_ladder() -> None:
    assert why(group(1, STUCK), 0, settings(name="grpo")).startswith("GRPO trains on every group as it is: 0 of 2")
    zero_std = group(1, FAILED, outcome="exhausted")
    text = why(zero_std, 0, settings(name="dapo"))
    assert "criterion spread" in text
    assert text.endswith("DAPO drops such a group and samples another prompt.")


def test_missing_rewards_are_called_unknown() -> None:
    unknown = replace(FAILED, completions=())
    sample = group(1, unknown, RESCUE)
    assert "best reward unknown" in why(sample, 0, settings())
    above = {"kind": "any_above", "reward": "exact", "threshold": 0.5}
    assert "best score by exact unknown" in why(sample, 0, settings(criterion=above))
    assert "0 rewards of this attempt" in text_of(group_page(sample, settings()))


def test_rung_is_described_by_its_parameters() -> None:
    assert rung(FAILED) == "the base parameters (temperature 1)"
    phases = SamplingParams(temperature=1.3, top_k=20, answer=SamplingParams(temperature=0.7, top_p=0.9))
    assert parameters(phases) == "temperature 1.3, top_k 20, then for the answer temperature 0.7, top_p 0.9"


def test_group_page_shows_attempts_with_rewards_and_advantages() -> None:
    page = text_of(group_page(group(3), settings()))
    for part in (
        "Attempt 1: the base parameters",
        "Attempt 2: rung 0",
        "3+7=",
        "12+7=19 #0",
        "+0.500",
        "difficulty 2 digits",
    ):
        assert part in page
    assert "4 rewards of all 2 attempts: mean 0.25, standard deviation 0.5" in page
    assert "It began on rung 0" in text_of(group_page(group(1, RESCUE), settings()))
    assert "no attempt yet" in group_page(replace(group(1), attempts=()), settings())


def test_size_is_explained_by_earlier_results() -> None:
    sized_group, run = group(3, size=12, chance=0.1234), settings(allocation={"rule": "value"})
    text = (
        "By earlier results its success rate was expected to be 0.12, so it got 12 completions "
        "(algorithm.allocation.rule=value)."
    )
    assert sized(sized_group, run) == text
    assert text in text_of(group_page(sized_group, run))
    assert sized(group(3, size=12), run) == ""  # no earlier results
    assert sized(group(3), run) == ""  # of an earlier version


def test_page_names_the_rewards_that_advantages_come_from() -> None:
    for statistics, words in (("all", "all attempts"), ("last", "the last attempt"), (None, "all attempts")):
        page = text_of(group_page(group(3), settings(advantage_statistics=statistics)))
        assert f"Advantages are computed from the rewards of {words}." in page
    assert "of the completions trained on." in text_of(group_page(group(3), settings(advantage_statistics="trained")))


def test_hostile_texts_are_escaped(tmp_path: Path) -> None:
    words: dict[str, Any] = dict.fromkeys(("text", "finish_reason", "weight_version"), HOSTILE)
    hostile = replace(RESCUE.completions[0], rewards={HOSTILE: 1.0}, **words)
    words = dict.fromkeys(("step", "prompt", "prompt_id", "answer", "difficulty", "outcome"), HOSTILE)
    sample = group(3, replace(RESCUE, completions=(hostile,)), **words)
    entry = write(tmp_path, sample).entries()[0]
    for page in (group_page(sample, settings()), listing([entry], more=False, chosen=entry.at)):
        assert not {"script", "img", "a", "iframe", "style"} & tags(page)
        assert "onerror" not in "".join(re.findall(r"<[^>]*>", page))
        assert text_of(page).count("alert(2)") >= 2


def test_episode_is_shown_turn_by_turn() -> None:
    page = group_page(group(3, episode()), settings())
    assert "2 turns, 1 tool call, 5 observed tokens: 12+7=19</summary>" in page
    words = ["turn 1, calls add, reward 0.25", "add(12, 7)", "observed", "the sum is 19", "turn 2", "12+7=19"]
    shown = text_of(page[page.index("<ol") : page.index("</ol>")])
    assert shown.split() == " ".join(words).split()
    assert page.count('<div class="observed">') == 1


def test_texts_of_turns_are_escaped_and_folded() -> None:
    turn = TurnSample(0, 1, HOSTILE, f"{HOSTILE}\n{HOSTILE}", tool=HOSTILE, error=HOSTILE)
    page = group_page(group(3, episode(turn)), settings())
    assert not {"script", "img", "a", "iframe", "style"} & tags(page)
    assert "onerror" not in "".join(re.findall(r"<[^>]*>", page))
    assert text_of(page).count("alert(2)") >= 5


def test_observations_are_searched(tmp_path: Path) -> None:
    file = write(tmp_path, group(1), group(2, episode()))
    for text in ("THE SUM IS", "add(12"):
        found, _ = file.find(Query(text=text), 9)
        assert [entry.step for entry in found] == [2]


def test_long_texts_are_folded_and_very_long_ones_shortened() -> None:
    long = replace(RESCUE.completions[0], text="begin " + "x" * (3 * LONG) + " end")
    page = group_page(group(3, replace(RESCUE, completions=(long,) * 2)), settings())
    assert page.count("<details>") == 2
    assert len(page) < 3 * LONG
    assert "begin" in page
    assert " end</pre>" in page
    assert f"{2 * LONG + 10:,} characters left out" in page


def test_only_runs_in_the_folder_can_be_opened(tmp_path: Path) -> None:
    for name in ("runs/a", "elsewhere"):
        with RunWriter(tmp_path / name, "run: {steps: 2}\n") as writer:
            writer.step(step(1))
            writer.samples([group(1)])
    runs = OpenRuns(tmp_path / "runs")
    assert runs.names() == ["a"]
    assert [s.step for s in runs.history("a").steps] == [1]
    for name in ("../elsewhere", "elsewhere", str(tmp_path / "elsewhere"), "", ".."):
        found, problems = runs.histories([name])
        assert not found
        assert "there is no run" in problems[0]
    (entry,), _ = runs.groups("a", Query(), 5)
    assert (runs.group("a", entry.at), runs.difficulties("a"), runs.newest("a")) == (group(1), ["2 digits"], entry)
    (tmp_path / "runs" / "b").symlink_to("a")
    assert runs.names() == ["a"]


def test_groups_are_read_again_after_a_run_was_cut(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "a", "run: {steps: 2}\n"):
        pass
    runs = OpenRuns(tmp_path)
    assert runs.newest("a") is None
    for prompt in ("one plus one", "two plus two"):
        write(tmp_path / "a", group(1), group(2, prompt=prompt))
        newest = runs.newest("a")
        assert newest is not None
        assert newest.prompt == prompt


def test_broken_run_is_reported_and_hides_no_other(tmp_path: Path) -> None:
    for name in ("good", "broken", "odd"):
        with RunWriter(tmp_path / name, "run: {steps: 2}\n") as writer:
            writer.step(step(1))
    with (tmp_path / "broken" / "metrics.jsonl").open("a") as file:
        file.write("{}\n")
    (tmp_path / "odd" / "config.yaml").write_text("[")
    found, problems = OpenRuns(tmp_path).histories(["broken", "good", "odd"])
    assert [run.name for run in found] == ["good"]
    assert "metrics.jsonl, line 2" in problems[0]
    assert "config.yaml" in problems[1]


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    return reader


def tags(page: str) -> set[str]:
    return read(page).names


def text_of(page: str) -> str:
    return " ".join(read(page).texts)
