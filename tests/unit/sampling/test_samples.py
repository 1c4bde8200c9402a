"""The samples of a step, for people to read: from a collection made by hand, and from the folder of a run."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.config.sampling import PhaseParams
from adagrpo_ray.runs import GroupSample, RunWriter
from adagrpo_ray.runs.group_codec import plain_group
from adagrpo_ray.runs.sample_text import SHOWN, group_text
from adagrpo_ray.sampling.batch import training_samples
from adagrpo_ray.sampling.collection import Failure
from adagrpo_ray.sampling.sample_table import group_samples
from adagrpo_ray.tracking.sample_tables import COLUMNS, rows
from adagrpo_ray.types import Attempt, SamplingParams
from tests.support.builders import NOTHING, make_attempt, make_completion, make_group, make_prompt

FUNCTIONS = ["format", "answer"]
HOT = SamplingParams(temperature=2.0, min_p=0.1, answer=SamplingParams(temperature=0.5))


def attempt(*scores: tuple[float, float], rung: int = -1, sampling: SamplingParams = HOT) -> Attempt:
    """An attempt from the scores of its completions, whose sums are the rewards."""
    rewards = [sum(score for score in each if not math.isnan(score)) for each in scores]
    correct = [answer > 0 for _, answer in scores]
    return make_attempt(rewards, rung=rung, by_function=scores, correct=correct, sampling=sampling)


FIRST = attempt((1, 0), (0, math.nan), sampling=SamplingParams())
SECOND = attempt((1, 1), (0, 0), rung=0)
SOLVED = make_group(SECOND, prompt=make_prompt("solved"))
FAILED = make_group(FIRST, prompt=make_prompt("failed", "5 digits"))
RESCUED = make_group(FIRST, SECOND, prompt=make_prompt("rescued"))
STUCK = make_group(FIRST, FIRST, FIRST, prompt=make_prompt("stuck"))


def shown(
    count: int = 99, *, exhausted_dropped: bool = False, train_on: str = "last", **parts: Any
) -> list[GroupSample]:
    """The samples of a step whose collection has these parts."""
    settings = AlgorithmSettings.model_validate({"train_on": train_on})
    collection = replace(NOTHING, **parts)
    return [*group_samples(7, collection, FUNCTIONS, settings, count, exhausted_dropped=exhausted_dropped)]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def test_a_sample_has_sampling_parameters_and_scores() -> None:
    (group,) = shown(ready=(RESCUED,), attempts=(RESCUED,))
    assert (group.step, group.prompt_id, group.prompt, group.answer) == (7, "rescued", "rescued", "42")
    assert [(a.rung, a.sampling) for a in group.attempts] == [(-1, SamplingParams()), (0, HOT)]
    correct, wrong = group.attempts[1].completions
    assert (correct.reward, correct.rewards, correct.correct) == (2.0, {"format": 1.0, "answer": 1.0}, True)
    assert (wrong.reward, wrong.correct, wrong.tokens, wrong.finish_reason) == (0.0, False, 2, "stop")
    assert group.attempts[0].completions[1].rewards["answer"] is None


@pytest.mark.parametrize("train_on", ["last", "all", "balanced"])
def test_advantages_are_those_of_the_training_batch(train_on: str) -> None:
    settings = AlgorithmSettings.model_validate({"train_on": train_on})
    groups = shown(train_on=train_on, ready=(RESCUED, SOLVED), waiting=(FAILED,), attempts=(RESCUED, SOLVED, FAILED))
    advantages = [c.advantage for g in groups for a in g.attempts for c in a.completions]
    batch = training_samples([RESCUED, SOLVED], settings, max_new_tokens=10)
    assert sorted(a for a in advantages if a is not None) == sorted(sample.advantage for sample in batch)
    trained = {"last": 4, "all": 6, "balanced": 4}[train_on]
    assert [a is None for a in advantages].count(False) == trained
    assert groups[0].attempts[1].completions[0].advantage is not None  # its one success
    assert all(c.advantage is None for c in groups[-1].attempts[0].completions)


@pytest.mark.parametrize("dropped", [False, True])
def test_exhausted_groups_have_advantages_if_they_are_trained_on(dropped: bool) -> None:
    (group,) = shown(exhausted=(STUCK,), attempts=(STUCK,), exhausted_dropped=dropped)
    assert group.outcome == "exhausted"
    assert [c.advantage is None for c in group.attempts[-1].completions] == [dropped] * 2


def test_samples_have_the_outcome_and_resampled_groups_come_first() -> None:
    aged = make_group(FIRST, FIRST, prompt=make_prompt("aged"))
    broken = make_group(FIRST, prompt=make_prompt("broken"))
    parts = {
        "ready": (SOLVED, RESCUED),
        "exhausted": (STUCK,),
        "waiting": (FAILED,),
        "aged": (aged,),
        "failed": (Failure(broken, 5, dropped=True, error="no"),),
        "attempts": (SOLVED, FAILED, RESCUED, STUCK),
    }
    everything = [(g.prompt_id, g.outcome) for g in shown(**parts)]
    assert everything == [
        ("rescued", "trained"),
        ("stuck", "exhausted"),
        ("aged", "dropped"),
        ("solved", "trained"),
        ("failed", "waiting"),
        ("broken", "dropped"),
    ]
    assert [(g.prompt_id, g.outcome) for g in shown(2, **parts)] == everything[:2]
    assert shown(0, **parts) == []


def test_groups_without_an_attempt_in_the_step_are_left_out() -> None:
    never = make_group(prompt=make_prompt("never"))
    earlier = replace(FAILED, epoch=3)  # waits since another epoch
    kept = Failure(SOLVED, 5, dropped=False, error="no")  # went on with other scores
    groups = shown(
        ready=(SOLVED,), waiting=(never, earlier, FAILED), aged=(never,), failed=(kept,), attempts=(SOLVED, FAILED)
    )
    assert [g.prompt_id for g in groups] == ["solved", "failed"]


def test_a_sample_has_the_reason_for_its_size() -> None:
    (group,) = shown(ready=(replace(SOLVED, size=12, chance=0.125),), attempts=(SOLVED,))
    assert (group.size, group.chance) == (12, 0.125)
    values = group.to_dict()
    del values["size"], values["chance"]  # as earlier versions wrote it
    assert GroupSample.from_dict(values) == replace(group, size=None, chance=None)


def test_advantages_scaled_by_the_batch_are_those_of_the_whole_batch() -> None:
    settings = AlgorithmSettings.model_validate({"advantage_scale": "batch"})
    collection = replace(NOTHING, ready=(RESCUED, SOLVED), attempts=(RESCUED, SOLVED))
    (group,) = group_samples(7, collection, FUNCTIONS, settings, 1, exhausted_dropped=False)
    batch = training_samples([RESCUED, SOLVED], settings, max_new_tokens=10)
    assert [c.advantage for c in group.attempts[1].completions] == [sample.advantage for sample in batch[:2]]


def test_samples_of_earlier_versions_can_be_read() -> None:
    """They have a null `answer` in the parameters of the answer."""
    (group,) = shown(ready=(RESCUED,), attempts=(RESCUED,))
    values = json.loads(json.dumps(group.to_dict()))
    answer = values["attempts"][1]["sampling"]["answer"]
    assert answer == PhaseParams(temperature=0.5).model_dump()
    answer["answer"] = None
    assert GroupSample.from_dict(values) == group


def test_samples_without_parts_have_whole_attempts() -> None:
    (group,) = shown(ready=(RESCUED,), attempts=(RESCUED,))
    values = json.loads(json.dumps(group.to_dict()))
    for each in values["attempts"]:
        assert each.pop("part") == "whole"
    assert GroupSample.from_dict(values) == group


def test_a_commit_is_shown_as_a_part_and_is_no_resample() -> None:
    pilot, commit = replace(SECOND, part="pilot"), replace(attempt((0, 0), (1, 1)), part="commit")
    committed = make_group(pilot, commit, prompt=make_prompt("committed"))
    groups = shown(ready=(committed, RESCUED), attempts=(committed, RESCUED))
    assert [(g.prompt_id, g.resampled, g.count()) for g in groups] == [("rescued", True, 2), ("committed", False, 1)]
    assert [(a.part, a.completions[0].advantage is not None) for a in groups[1].attempts] == [
        ("pilot", True),
        ("commit", True),
    ]
    assert [groups[1].title(number) for number in (0, 1)] == ["attempt 1, pilot", "attempt 1, commit"]
    assert "attempt 1, commit, base, temperature 2: reward" in group_text(groups[1])
    assert {row[COLUMNS.index("part")] for row in rows(groups)} == {"whole", "pilot", "commit"}


def test_samples_and_checkpoints_have_the_same_attempts() -> None:
    (group,) = shown(ready=(RESCUED,), attempts=(RESCUED,))
    for kept, sample in zip(plain_group(RESCUED)["attempts"], group.to_dict()["attempts"], strict=True):  # type: ignore[call-overload]
        assert (sample["rung"], sample["sampling"]) == (kept["rung"], kept["sampling"])
        for completion, values in zip(sample["completions"], kept["completions"], strict=True):
            assert completion.items() >= values.items()


HOSTILE = [
    "\ud800 half of a pair",
    "both halves \ud83d\ude00",
    "nul \x00 bell \x07 escape \x1b[2J",
    'line\nbreaks\r\n of \u2028 all \x85 kinds "quoted" \\',
    "<script>alert(1)</script> </code> ```",
    "long " * 10_000,
]


def test_any_text_is_written_whole_and_read_back(tmp_path: Path) -> None:
    completions = tuple(make_completion(text=text) for text in HOSTILE)
    hostile = replace(attempt(*[(1.0, 1.0)] * len(HOSTILE), rung=0), completions=completions)
    prompt = replace(make_prompt(HOSTILE[0], HOSTILE[2]), answer=HOSTILE[3])
    first, second = (make_group(FIRST, hostile, prompt=prompt), SOLVED)
    groups = shown(ready=(first, second), attempts=(first, second))
    with RunWriter(tmp_path / "run", "") as writer:
        writer.samples(groups)
        writer.samples([])
        writer.samples(groups[1:])
    file = tmp_path / "run" / "samples.jsonl"
    assert len(file.read_text("ascii").splitlines()) == 3
    read = [GroupSample.from_dict(values) for values in lines(file)]
    assert read == [*groups, groups[1]]
    texts = [c.text for c in read[0].attempts[1].completions]
    assert texts == ["\ufffd half of a pair", "both halves \U0001f600", *HOSTILE[2:]]
    assert "NaN" not in file.read_text()


def test_tensorboard_shows_the_best_of_each_attempt_of_a_resampled_group(tmp_path: Path) -> None:
    best, other = make_completion(text="x\n# 5\r# 6" + "z" * SHOWN), make_completion(text="no")
    group = make_group(FIRST, replace(SECOND, completions=(best, other)), prompt=make_prompt("2+3"))
    with RunWriter(tmp_path / "run", "") as writer:
        writer.samples(shown(ready=(group, SOLVED), attempts=(group, SOLVED)))
        writer.samples(shown(ready=(SOLVED,), attempts=(SOLVED,)))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    (event,) = events.Tensors("samples/resampled")
    assert events.PluginTagToContent("text").keys() == {"samples/resampled"}
    assert event.step == 7
    text = event.tensor_proto.string_val[0].decode()
    assert text == group_text(shown(ready=(group,))[0])
    assert "attempt 2, rung 0, temperature 2: reward 2.000, advantage +1" in text
    assert "\n    x\n    # 5\r    # 6zz" in text
    assert "no" not in [line.strip() for line in text.splitlines()]
    assert len(text) < SHOWN + 500
