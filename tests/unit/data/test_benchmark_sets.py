"""The registry of benchmarks: the prompt and the ground truth of each, on rows written for the tests."""

from __future__ import annotations

import re
from typing import Any, get_args

import pytest

from adagrpo_ray.config.benchmarks import BenchmarkName
from adagrpo_ray.data.benchmark_sets import BENCHMARKS, Question
from adagrpo_ray.errors import DataError
from tests.support.benchmark_rows import ASKED, ROWS

NAMES = get_args(BenchmarkName)


def read(name: str, **changes: Any) -> Question:
    return BENCHMARKS[name].read({**ROWS[name], **changes})  # type: ignore[index]


def test_registry_has_each_name_of_the_settings() -> None:
    assert set(BENCHMARKS) == set(NAMES) == set(ROWS) == set(ASKED)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "gpqa_diamond"])
def test_question_has_the_published_prompt_and_ground_truth(name: str) -> None:
    assert read(name) == Question(*ASKED[name])


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_the_tests_have_the_columns_of_the_registry(name: Any) -> None:
    benchmark = BENCHMARKS[name]
    assert set(benchmark.columns) <= set(ROWS[name])
    assert set(benchmark.optional) <= set(ROWS[name])
    needed = {column: ROWS[name][column] for column in benchmark.columns}
    assert benchmark.read(needed).difficulty == "", "the others are optional"


def test_choices_of_gpqa_are_shuffled_by_their_words() -> None:
    asked = read("gpqa_diamond")
    lines = re.findall(r"^([A-D])\) (.+)$", asked.text, re.MULTILINE)
    choices = dict(lines)
    assert sorted(choices.values()) == ["the electron", "the muon", "the neutron", "the proton"]
    assert choices[asked.answer] == "the neutron"
    assert asked.text == ASKED["gpqa_diamond"][0].format(*choices.values())
    swapped = {"Incorrect Answer 1": "the muon", "Incorrect Answer 3": "the proton"}
    assert read("gpqa_diamond", **swapped) == asked, "the order in the row does not matter"
    letters = {read("gpqa_diamond", Question=f"Question {number}?").answer for number in range(40)}
    assert letters == set("ABCD")


def test_context_of_olympiadbench_is_before_the_question() -> None:
    asked = read("olympiadbench", context="Let $n=2$.", final_answer=["1", " 2 "])
    assert asked.text.startswith("Let $n=2$.\nFind all real")
    assert asked.answer == "1, 2"


def test_numbers_in_columns_become_text() -> None:
    assert read("aime25", answer=70).answer == "70"
    assert read("amc23", answer=27.0).answer == "27"
    assert read("math500", level="5").difficulty == "level 5"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gsm8k", {"answer": "12"}, "it must end with #### and the number"),
        ("gsm8k", {"question": None}, "'question' is None; it must be a text or a number"),
        ("aime24", {"answer": ["1"]}, "'answer' is ['1']; it must be a text or a number"),
        ("olympiadbench", {"final_answer": []}, "'final_answer' is []; it must be a list of texts"),
        ("olympiadbench", {"final_answer": [None]}, "it must be a list of texts"),
        ("mmlu_pro", {"answer": "F"}, "'answer' is 'F', and there are 5 options"),
        ("mmlu_pro", {"answer": "CD"}, "'answer' is 'CD', and there are 5 options"),
        ("mmlu_pro", {"options": "4, 6"}, "'options' is '4, 6'; it must be a list of choices"),
        ("gpqa_diamond", {"Incorrect Answer 2": ""}, "'Incorrect Answer 2' is ''"),
    ],
)
def test_row_of_another_layout_is_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        read(name, **changes)


def test_every_benchmark_names_its_source_and_licence() -> None:
    for benchmark in BENCHMARKS.values():
        assert re.fullmatch(r"[\w-]+/[\w.-]+", benchmark.repository)
        assert benchmark.source.startswith("https://")
        assert benchmark.licence
        assert benchmark.samples >= 1
