"""Extraction and scoring of benchmarks, on typical and on hostile completions."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from adagrpo_ray.config import Config
from adagrpo_ray.config.data import FormatSettings
from adagrpo_ray.rewards import load_reward
from adagrpo_ray.rewards.benchmark_answers import FUNCTION, correct, extracted, scoring
from adagrpo_ray.rewards.registry import score_group

FORMAT = FormatSettings()


def score(text: str, answer: str, answers: str = "formula") -> float:
    (value,) = correct([text], answer, format=FORMAT, columns={"answers": answers})
    return value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"So it is $\boxed{12}$.", "12"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"First \boxed{1}, no: \boxed{2}", "2"),
        (r"\boxed{1}</think>It is \boxed{2}.", "2"),
        (r"\boxed{1}</think>It is one.", None),
        (r"<think>I have \boxed{1}", "1"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\fbox{3}", "3"),
        (r"\boxed{12", None),
        (r"\boxed{}", None),
        (r"boxed{12}", None),
        ("The answer is 12.", None),
        ("", None),
    ],
)
def test_last_box_after_the_thought_is_extracted(text: str, expected: str | None) -> None:
    assert extracted(text, "formula", FORMAT) == extracted(text, "number", FORMAT) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Answer: C", "C"),
        ("**Answer:** C", "C"),
        ("**Answer: (C)**", "C"),
        ("ANSWER : C", "C"),
        ("Answer: $C$", "C"),
        ("Answer: C) the neutron", "C"),
        ("Answer:\n\nC", "C"),
        (r"Answer: \(\boxed{\textbf{(C)}}\)", "C"),
        (r"The answer is $\text{C}$.", "C"),
        ("The correct answer is (D).", "D"),
        ("Answer: A\nNo, wait.\nAnswer: B", "B"),
        ("<think>Answer: A</think>Answer: C", "C"),
        ("Answer: A</think>It is A.", None),
        (r"So \boxed{C}", "C"),
        (r"So \boxed{\text{(C)}}.", "C"),
        (r"So \boxed{\textbf{C}}", "C"),
        (r"So \boxed{C) the neutron}", None),
        (r"So \boxed{5}", None),
        ("'Answer: C'", "C"),
        ("Answer: 'C'.", "C"),
        ("Answer: I'm not sure.", None),
        ("Answer: Carbon", None),
        ("Answer: $LETTER", None),
        ("Answer: c", None),
        ("It is C.", None),
        ("", None),
    ],
)
def test_chosen_letter_is_extracted(text: str, expected: str | None) -> None:
    assert extracted(text, "letter", FORMAT) == expected


def test_end_of_thought_follows_settings() -> None:
    format = FormatSettings(think_end="#")
    assert extracted(r"\boxed{1}#\boxed{2}</think>", "formula", format) == "2"


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        (r"\boxed{12}", "12", 1.0),
        (r"\boxed{12.0}", "12", 1.0),
        (r"\boxed{\$1,200}", "1200", 1.0),
        (r"\boxed{33}", "033", 1.0),
        (r"\boxed{27}", "27.0", 1.0),
        (r"\boxed{12 \text{ pears}}", "12", 1.0),
        (r"\boxed{0.5}", r"\frac{1}{2}", 1.0),
        (r"\boxed{x = 5}", "5", 1.0),
        (r"\boxed{(3, \pi/2)}", r"\left( 3, \frac{\pi}{2} \right)", 1.0),
        (r"\boxed{-2, 2}", "$2,-2$", 1.0),
        (r"\boxed{3 \times 10^{10}}", "3e10", 1.0),
        (r"\boxed{3 \times 10^{10} \text{ cm/s}}", "3e10", 1.0),
        (r"\boxed{3e10 \text{ cm/s}}", r"3 \times 10^{10}", 1.0),
        (r"\boxed{81.548}", "3e10", 0.0),
        (r"\boxed{32348}", r"\$32,\!348", 1.0),
        (r"\boxed{\$12 \text{ per hour}}", "12", 1.0),
        (r"\boxed{6.63 \times 10^{-34} \text{ J s}}", "6.63e-34", 1.0),
        (r"\boxed{1.05 \times 10^{-34} \text{ J s}}", "6.63e-34", 0.0),
        (r"\boxed{1.05 \times 10^{-34}}", r"6.63 \times 10^{-34}", 0.0),
        (r"\boxed{0}", r"6.63 \times 10^{-34} \text{ J s}", 0.0),
        (r"\boxed{0.333333}", r"\frac{1}{3}", 1.0),
        (r"\boxed{\sqrt{8}-2\sqrt{2}}", "0", 1.0),
        (r"\boxed{\infty}", r"\infty", 1.0),
        (r"\boxed{10\% \text{ of it}}", "10", 1.0),
        (r"\boxed{Evelyn}", r"\text{Evelyn}", 1.0),
        (r"\boxed{13}", "12", 0.0),
        (r"\boxed{1, 12}", "12", 0.0),
        (r"12, or \boxed{13}", "12", 0.0),
        ("The answer is 12.", "12", 0.0),
        (r"\boxed{9^{9^{9^{9}}}}", "12", 0.0),
        (r"\boxed{" + "1" * 5000 + "}", "12", 0.0),
    ],
)
def test_box_is_compared_as_number_formula_or_text(text: str, answer: str, expected: float) -> None:
    assert score(text, answer) == expected


def test_letter_is_compared_with_the_ground_truth() -> None:
    assert [score(f"Answer: {letter}", "C", "letter") for letter in "ABCD"] == [0.0, 0.0, 1.0, 0.0]
    assert score("A or B or C or D", "C", "letter") == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 20_000,
        "\\boxed{" + "}" * 50_000,
        "answer is " * 20_000,
        "answer:" + "*" * 50_000,
        "Answer: (" * 20_000,
        "answer" + " " * 50_000,
        "\\boxed{\x00\ud800}",
    ],
)
def test_hostile_texts_take_linear_time(text: str) -> None:
    began = time.perf_counter()
    for answers in ("number", "formula", "letter"):
        extracted(text, answers, FORMAT)
        assert score(text, "C" if answers == "letter" else "12", answers) == 0.0
    assert time.perf_counter() - began < 5


def test_function_is_one_of_a_scorer() -> None:
    """As the scoring processes load it, and call it."""
    settings = scoring(Config.load(None, ["rewards.correct_above=0.9", "rewards.timeout_s=7"]).rewards)
    assert (settings.names, settings.correct_by, settings.correct_above) == ([FUNCTION], None, 0.0)
    assert settings.timeout_s == 7
    scores = score_group(
        [(load_reward(FUNCTION), 1.0)],
        completions=[r"\boxed{12}", "12"],
        answer="12",
        prompt="?",
        format=FORMAT,
        columns={"answers": "number"},
    )
    assert scores.by_function.tolist() == [[1.0], [0.0]]
    assert Path(load_reward(FUNCTION).__code__.co_filename).name == "benchmark_answers.py"  # type: ignore[attr-defined]
