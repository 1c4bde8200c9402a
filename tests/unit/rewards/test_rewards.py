"""The built-in reward functions row by row, their registry, and the contract of a reward function."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adagrpo_ray.config.data import FormatSettings
from adagrpo_ray.errors import RewardError
from adagrpo_ray.rewards import Scores, load_reward
from adagrpo_ray.rewards.extract import final_answer, holds_answer, marked_answer, same_answer
from adagrpo_ray.rewards.numbers import parse_number
from adagrpo_ray.rewards.registry import BUILTIN, score_group

FORMAT = FormatSettings()
T, S, E = FORMAT.think_end, FORMAT.answer_start, FORMAT.answer_end


OF_TEXTS = sorted(set(BUILTIN) - {"reasoning_gym", "environment"})
"""Those of texts: the others have test_gym.py and test_episodes.py."""


def score(name: str, text: str, truth: str = "42", format: FormatSettings = FORMAT) -> float | None:
    (value,) = BUILTIN[name](completions=[text], answer=truth, prompt="?", format=format, difficulty="")
    return value


def answered(text: str) -> str:
    """Return a completion in the exact format of the prompt."""
    return f"Let me think.{T}So: {S}{text}{E}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"a{T}b{S}c{E}", 1.5),
        (f"{T}{S}{E}", 1.5),
        (f"a{T}{S}1{E}{S}2{E}", 0.5 - 1 - 1),
        (f"a{T}b{T}{S}1{E}", -1 + 0.5 + 0.5),
        (f"a{T}{S}1", 0.5 + 0.5 - 1),
        ("no marker at all", -3.0),
        ("", -3.0),
    ],
)
def test_format_approximate_scores(text: str, expected: float) -> None:
    assert score("format_approximate", text) == expected


def test_format_exact_rewards_format_of_prompt() -> None:
    # The original implementation searched for another end marker than its prompt asked for, and never gave a reward.
    golden = "<think>40 and 2 make 42.</think>SOLUTION_START_FLAG 42 SOLUTION_END_FLAG"
    assert score("format_exact", golden) == 3.0
    assert score("format_exact", golden.replace("SOLUTION_END_FLAG", "</SOLUTION>")) == 0.0
    assert score("answer", golden) == 3.5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (answered("42"), 3.0),
        (answered("42") + " \n\t", 3.0),
        (answered("wrong, but in the format"), 3.0),
        (answered("two\nlines"), 3.0),
        (f"{T}{S}42{E}", 3.0),
        (answered("42") + "!", 0.0),
        (answered("42") + E, 0.0),
        (answered(""), 0.0),
        (answered("  \n "), 0.0),
        (f"Let me think. {S}42{E}", 0.0),
        (f"{S}42{E}{T}", 0.0),
        (f"a{T}42{E}", 0.0),
        (f"a{T}{S}42", 0.0),
        (f"a{T}{E}42{S}", 0.0),
        (f"a{S}1{T}42{E}", 0.0),
        ("", 0.0),
    ],
)
def test_format_exact_scores(text: str, expected: float) -> None:
    assert score("format_exact", text) == expected


def test_formats_follow_settings() -> None:
    format = FormatSettings(think_end="#", answer_start="<a>", answer_end="</a>")
    assert score("format_exact", "t#<a>42</a>", format=format) == 3.0
    assert score("format_approximate", "t#<a>42</a>", format=format) == 1.5
    assert score("answer", "t#<a>42</a>", format=format) == 5.0
    assert score("exact", answered("42"), format=format) == 0.0
    # One sign for both markers, as in "$42$".
    same = FormatSettings(answer_start="$", answer_end="$")
    assert score("format_exact", f"t{T}$42$", format=same) == 3.0
    assert score("exact", f"t{T}$42$", format=same) == 1.0


@pytest.mark.parametrize(
    ("text", "truth", "expected"),
    [
        ("42", "42", -2.0),
        (answered("42") + " and more", "42", -2.0),
        (answered("42"), "42", 5.0),
        (answered("Paris"), "Paris", 5.0),
        (answered(" 42\n"), "42", 3.5),
        (answered("42"), " 42 ", 3.5),
        (answered("42.0"), "42", 3.5),
        (answered("1,000"), "1000", 3.5),
        (answered("50%"), "0.5", 3.5),
        (answered("52%"), "50", 2.0),
        (answered("90"), "100", 2.0),
        (answered("110"), "100", 2.0),
        (answered("0.33"), "0.3", 2.0),  # 10 % to the digit: 0.33 / 0.3 in floats is above 1.1
        (answered("-95"), "-100", 2.0),
        (answered("89.9"), "100", 1.5),
        (answered("110.1"), "100", 1.5),
        (answered("80"), "100", 1.5),
        (answered("120"), "100", 1.5),
        (answered("79.9"), "100", -2.5),
        (answered("120.1"), "100", -2.5),
        (answered("-100"), "100", -2.5),
        (answered("0"), "100", -2.5),
        (answered("0.0"), "0", 3.5),
        (answered("0.001"), "0", -2.5),
        (answered("forty-two"), "42", -4.5),
        (answered("42"), "forty-two", -4.5),
        (answered("nan"), "42", -4.5),
        (answered("inf"), "42", -4.5),
        (answered("٤٢"), "42", -4.5),
        (answered("4_2"), "42", -4.5),
        (answered("1,2"), "12", -4.5),
        (answered("9" * 100_000), "42", -4.5),
        (answered("9" * 100_000), "9" * 100_000, 5.0),
    ],
)
def test_answer_scores(text: str, truth: str, expected: float) -> None:
    assert score("answer", text, truth) == expected


@pytest.mark.parametrize(
    ("text", "truth", "expected"),
    [
        ("42", "42", -2.5),
        (f"{S} no digits {E}", "42", -2.5),
        (f"42 {S} . , {E}", "42", -2.5),
        (f"{S}42{E}", "42", 3.5),
        (f"{S} it is 42. {E}", "42", 3.5),
        (f"{S}1,234.50", "1234.5", 3.5),
        (f"{S}-.5{E}", "-0.5", 3.5),
        (f"{S} 41, not 42 {E}", "42", -1.5),
        (f"{S}-42{E}", "42", -1.5),
        (answered("42"), "42", 4.0),
        (f"{S}42{E}{T}{S}42.0{E}", "42", 4.0),
        (answered("41"), "42", -1.0),
        (f"{S}42{E}{T}{S}41{E}", "42", 3.5),
        (f"{S}41{E}{T}{S}42{E}", "42", -1.5),
        (f"{S}42{E}{T}no answer", "42", 3.5),
        (f"{S}42{E}{T}{S}41{E}{T}{S}42{E}", "42", 4.0),
        (answered("1.2.3"), "42", 0.0),
        (answered("42"), "Paris", 0.0),
        (answered("9" * 100_000), "42", 0.0),
        (answered("٤٢"), "42", -2.5),
    ],
)
def test_number_scores(text: str, truth: str, expected: float) -> None:
    assert score("number", text, truth) == expected


@pytest.mark.parametrize(
    ("text", "truth", "expected"),
    [
        (answered(" 42 "), "42", 1.0),
        (answered("42.00"), "42", 1.0),
        (answered("+1,000"), "1000.0", 1.0),
        (answered("Paris"), " Paris", 1.0),
        (answered("paris"), "Paris", 0.0),
        (answered("43"), "42", 0.0),
        (answered(""), "42", 0.0),
        (f"{S}42{E}", "42", 1.0),
        (f"{S}41{E} no: {S}42{E}", "42", 1.0),
        (f"{S}42{E} no: {S}41{E}", "42", 0.0),
        (f"{S}42{E} and {S}41", "42", 1.0),
        (f"{S}42{E}{E}", "42", 1.0),
        (f"{S}42{E}{T}", "42", 0.0),
        (f"{S}41{E}{T}{S}42{E} and more", "42", 1.0),
        (f"{S}42", "42", 0.0),
        ("42", "42", 0.0),
    ],
)
def test_exact_scores(text: str, truth: str, expected: float) -> None:
    assert score("exact", text, truth) == expected


@pytest.mark.parametrize(
    ("text", "truth", "expected"),
    [
        (answered(r"\frac{1}{2}"), "0.5", 1.0),
        (answered(r"$\frac{1}{2}$"), "0.5", 1.0),
        (answered("0.5"), r"\frac12", 1.0),
        (answered(r"\boxed{0.5}"), r"\frac12", 1.0),
        (answered("0.51"), r"\frac12", 0.0),
        (answered("(x+1)^2"), "x^2+2x+1", 1.0),
        (answered("(x-1)^2"), "x^2+2x+1", 0.0),
        (answered(r"\sqrt{8}"), r"2\sqrt{2}", 1.0),
        (answered(r"\{2, 1\}"), r"\{1, 2\}", 1.0),
        (answered("Paris"), "Paris", 1.0),
        (r"We get $\frac{3}{6}$", "0.5", 1.0),
        ("We get 7", "0.5", 0.0),
        (answered("2^{2023}"), r"2\cdot 2^{2022}", 1.0),
        (answered("2^{100000}"), "2^{100000}", 1.0),
        (answered(r"\frac{"), "0.5", 0.0),
        ("", "0.5", 0.0),
        # Without the limits sympy would compute these for hours.
        (answered("9^{9^{9}}"), "5", 0.0),
        (answered("(10^{10000})^{10000}"), "5", 0.0),
        (answered("1000000000!"), "5", 0.0),
        (answered("5"), "9^{9^{9}}", 0.0),
    ],
)
def test_latex_scores(text: str, truth: str, expected: float) -> None:
    assert score("latex", text, truth) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" -1,234.50 ", Fraction(-2469, 2)),
        ("+7", Fraction(7)),
        ("007", Fraction(7)),
        ("5.", Fraction(5)),
        (".5", Fraction(1, 2)),
        ("0.1", Fraction(1, 10)),
        ("1234,567", None),
        ("1,23", None),
        ("--1", None),
        ("- 1", None),
        (".", None),
        ("1e5", Fraction(100_000)),
        ("1.5E-2", Fraction(3, 200)),
        ("1e-1001", None),
        ("1e99999", None),
        (r"1.5 \times 10^{3}", Fraction(1500)),
        ("2 * 10^3", Fraction(2000)),
        ("1 000 000", Fraction(1_000_000)),
        ("1\u202f000", Fraction(1000)),
        ("1'000.5", Fraction(2001, 2)),
        ("1{,}000", Fraction(1000)),
        (r"1\,000", Fraction(1000)),
        ("1,000 000", None),
        ("4_2", None),
        ("$1,000.00", Fraction(1000)),
        (r"\$1,000", Fraction(1000)),
        ("-$5", Fraction(-5)),
        ("$-5", Fraction(-5)),
        ("-$-5", None),
        ("$5$", Fraction(5)),
        (r"\boxed{42}", Fraction(42)),
        ("**42**.", Fraction(42)),
        ("1/2", Fraction(1, 2)),
        ("-3 / 4", Fraction(-3, 4)),
        (r"-\frac{1}{2}", Fraction(-1, 2)),
        (r"\dfrac12", Fraction(1, 2)),
        ("1/0", None),
        (r"\frac{1}{0}", None),
        ("1/2/3", None),
        ("50%", Fraction(1, 2)),
        (r"50\%", Fraction(1, 2)),
        ("\u22125", Fraction(-5)),
        ("\uff11\uff12.\uff15", Fraction(25, 2)),
        ("\u0664\u0662", None),
        ("1.000,5", None),
        ("", None),
        ("²", None),
        ("1" * 1001, None),
    ],
)
def test_numbers_are_parsed(text: str, expected: Fraction | None) -> None:
    assert parse_number(text) == expected


@pytest.mark.parametrize(
    ("guess", "truth", "same"),
    [
        ("1,000", "1000", True),
        (".5", "1/2", True),
        ("0.5", "50%", True),
        ("50", "50%", True),
        ("50%", "50%", True),
        ("50%", "0.5%", False),
        ("5000%", "50%", False),
        ("-0", "0", True),
        ("$x+1$", "x+1", True),
        ("Paris.", "Paris", True),
        (r"\boxed{\text{Paris}}", "Paris", True),
        ("$a$ and $b$", "a$ and $b", False),
        (r"\boxed{1}+\boxed{2}", r"1}+\boxed{2", False),
        (".", "", False),
        ("Paris", "paris", False),
    ],
)
def test_equal_answers_are_the_same(guess: str, truth: str, same: bool) -> None:
    assert same_answer(guess, truth) == same
    assert same_answer(truth, guess) == same


@pytest.mark.parametrize(
    ("truth", "expected"),
    [
        ("She sold 48/2 = <<48/2=24>>24 clips.\n#### 72", "72"),
        ("#### 72", "72"),
        ("one\n#### 1\ntwo\n#### 1,234 \n", "1,234"),
        ("# a\n#### b\nc", "# a\n#### b\nc"),  # a heading
        ("a #### b", "a #### b"),
        ("We get $x=\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
        ("\\boxed{1} or \\fbox{2}", "2"),
        ("\\boxed{1", "\\boxed{1"),
        ("\\boxed{}", "\\boxed{}"),
        ("####", "####"),
        ("42", "42"),
    ],
)
def test_final_answer_of_worked_solution(truth: str, expected: str) -> None:
    assert final_answer(truth) == expected


@pytest.mark.parametrize("name", ["answer", "exact", "latex", "number"])
def test_ground_truth_with_rationale_rewards_its_answer(name: str) -> None:
    right, wrong = answered("1,072"), answered("24")
    for truth in ("24 clips a day make 1072.\n#### 1072", r"It is $24\cdot 44+16=\boxed{1072}$."):
        best, worst = score(name, right, truth), score(name, wrong, truth)
        assert best is not None
        assert worst is not None
        assert best > max(0, worst)
    assert holds_answer("so 1,072 it is", "24 clips\n#### 1072")


@pytest.mark.parametrize("number", ["1/2", "$1,000", "1 000", "50%", "1e3", "\u22125", r"\frac{3}{4}", "\uff14\uff12"])
@pytest.mark.parametrize("name", ["answer", "exact", "number"])
def test_every_spelling_of_number_equals_itself(name: str, number: str) -> None:
    value = score(name, answered(number), number)
    assert value is not None
    assert value >= 1.0


pieces = st.sampled_from([T, S, E, "$", "\\frac{", "}", "^", "!", "-", ",", ".", "42", " ", "\n", "\uff11", "\\boxed{"])
texts = st.one_of(st.text(), st.lists(st.one_of(pieces, st.text(max_size=3)), max_size=12).map("".join))


@given(text=texts, truth=texts)
@settings(max_examples=120, deadline=None)
def test_any_text_gets_finite_score(text: str, truth: str) -> None:
    for name, completion in product(OF_TEXTS, (text, answered(text), f"{T}{S}{text}")):
        value = score(name, completion, truth)
        assert value is not None, name
        assert math.isfinite(value), name


@given(before=st.text(), inside=texts, after=st.text())
@settings(max_examples=100, deadline=None)
def test_marked_answer_is_found_unchanged(before: str, inside: str, after: str) -> None:
    for marker in (T, S, E):
        inside, after = inside.replace(marker, ""), after.replace(marker, "")
    if all(marker not in inside + after for marker in (T, S, E)):  # removing one can create another
        assert marked_answer(f"{before}{T}{S}{inside}{E}{after}", FORMAT) == inside


@pytest.mark.parametrize("name", OF_TEXTS)
@pytest.mark.parametrize("piece", ["1", "1,", "1.", "1 ", "-", " ", "(", "$1", "a", T, S, E, S + E, "\\boxed{"])
def test_long_texts_are_scored_quickly(name: str, piece: str) -> None:
    text = (piece * 100_000)[:100_000]
    score(name, "")  # imports
    begin = time.process_time()
    for completion in (text, answered(text), S + text):
        assert score(name, completion) is not None
    assert time.process_time() - begin < 3.0


# --- the registry


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Write NAME.py into the current directory, which only `load_reward` adds to the path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])

    def write(name: str, text: str) -> None:
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text(text)

    return write


def test_builtin_names_load() -> None:
    assert {load_reward(name) for name in BUILTIN} == set(BUILTIN.values())
    assert set(BUILTIN) == {
        "format_approximate",
        "format_exact",
        "answer",
        "number",
        "exact",
        "latex",
        "reasoning_gym",
        "environment",
    }


def test_function_in_current_folder_is_loaded(write_module: Callable[[str, str], None]) -> None:
    write_module("rewards_own", "def length(completions, answer, **context):\n    return [len(c) for c in completions]")
    assert load_reward("rewards_own:length")(completions=["ab", ""], answer="") == [2, 0]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fromat_exact", ["'fromat_exact'", "did you mean 'format_exact'?", "latex", "'module:function'"]),
        ("zzz", ["'zzz' is not built in", "use one of answer, exact"]),
        ("rewards_ok:", ["'rewards_ok:'", "'module:function'"]),
        (":exact", ["':exact'", "'module:function'"]),
        ("rewards_gone:exat", ["'rewards_gone:exat' is not there", "did you mean 'exact'?", "PYTHONPATH"]),
        ("rewards_ok.gone:f", ["'rewards_ok.gone:f'", "rewards_ok.gone", "PYTHONPATH"]),
        ("rewards_needs:f", ["'rewards_needs:f' raised ModuleNotFoundError", "no_such_dependency"]),
        ("rewards_raises:f", ["'rewards_raises:f' raised ZeroDivisionError", "import rewards_raises"]),
        ("rewards_exits:f", ["'rewards_exits:f' raised SystemExit(3)"]),
        ("rewards_ok:lenght", ["has no 'lenght'", "did you mean 'rewards_ok:length'?"]),
        ("rewards_ok:exact", ["has no 'exact'", "did you mean 'exact'?"]),
        ("rewards_ok:LIMIT", ["'rewards_ok:LIMIT' is 7, which cannot be called"]),
    ],
)
def test_load_error_names_cause(write_module: Callable[[str, str], None], name: str, words: list[str]) -> None:
    write_module("rewards_ok", "LIMIT = 7\ndef length(**context):\n    return []")
    write_module("rewards_needs", "import no_such_dependency")
    write_module("rewards_raises", "1 / 0")
    write_module("rewards_exits", "raise SystemExit(3)")
    with pytest.raises(RewardError) as caught:
        load_reward(name)
    message = str(caught.value)
    assert [w for w in words if w not in message] == [], message
    assert "\n" not in message


# --- the contract


def grade(*functions: tuple[Callable[..., object], float], texts: tuple[str, ...] = ("a", "bb")) -> Scores:
    return score_group(
        functions, completions=texts, answer="42", prompt="?", format=FORMAT, columns={"answer": 0, "x": 1}
    )  # type: ignore[arg-type]


def test_totals_leave_out_scores_of_none() -> None:
    nan = math.nan
    scores = grade((lambda **_: [1, None], 2.0), (lambda **_: [None, None], 1.0), (lambda **_: [0.5, None], -1.0))
    np.testing.assert_array_equal(scores.by_function, np.array([[1, nan, 0.5], [nan, nan, nan]], np.float32))
    np.testing.assert_array_equal(scores.rewards, np.array([1.5, 0.0], np.float32))
    assert scores.rewards.dtype == scores.by_function.dtype == np.float32


def test_empty_group_has_no_scores() -> None:
    scores = grade((lambda **_: [], 1.0), texts=())
    assert scores.rewards.shape == (0,)
    assert scores.by_function.shape == (0, 1)


def test_functions_get_context_and_are_isolated() -> None:
    seen: list[dict[str, object]] = []

    def look(completions: list[str], **context: object) -> list[float]:
        seen.append({"completions": list(completions), **context})
        completions.clear()
        return [0.0, 0.0]

    grade((look, 1.0), (look, 1.0))
    wanted = {"completions": ["a", "bb"], "answer": "42", "prompt": "?", "format": FORMAT, "difficulty": "", "x": 1}
    wanted["columns"] = {"x": 1, "answer": 0}  # a column that has the name of an argument is found there
    assert seen == [wanted, wanted]


@pytest.mark.parametrize("value", [True, np.bool_(True), np.float64(1), np.int8(1), Fraction(1)])
def test_every_kind_of_number_is_a_score(value: object) -> None:
    assert grade((lambda **_: [value, 0], 1.0)).rewards.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ([1.0], ["1 scores for 2 completions"]),
        ([1.0, 2.0, 3.0], ["3 scores for 2 completions"]),
        (1.0, ["returned 1.0", "list"]),
        (None, ["returned None"]),
        ("ab", ["returned 'ab'"]),
        (np.array(1.0), ["returned 1.0"]),
        (np.ones((2, 1)), ["the score [1.0]"]),
        ({0: 1.0, 1: 1.0}, ["returned {0: 1.0"]),
        ([1.0, "5"], ["the score '5'", "None if it does not apply"]),
        ([1.0, math.nan], ["the score nan", "None if it does not apply"]),
        (np.array([1.0, math.nan]), ["the score nan"]),
        ([1.0, math.inf], ["the score inf"]),
        ([1.0, -math.inf], ["the score -inf"]),
        ([1.0, 1e39], ["the score 1e+39"]),  # infinite in float32
        ([1.0, 10**400], ["the score 1000"]),
        ([1.0, 1j], ["the score 1j"]),
        ([1.0, Decimal(1)], ["the score Decimal('1')"]),
        ([1.0, [1.0]], ["the score [1.0]"]),
    ],
)
def test_broken_contract_names_function_and_value(result: object, words: list[str]) -> None:
    def mine(**context: object) -> object:
        return result

    with pytest.raises(RewardError) as caught:
        grade((BUILTIN["exact"], 1.0), (mine, 1.0))
    assert [w for w in [f"'{__name__}:", "mine'", *words] if w not in str(caught.value)] == [], str(caught.value)


def test_infinite_sum_of_finite_scores_is_refused() -> None:
    with pytest.raises(RewardError, match=r"'exact', .* add up to more than float32 holds"):
        grade((BUILTIN["exact"], 1.0), (lambda **_: [1.0, -3e38], 10.0))


def test_every_error_but_memory_error_becomes_reward_error() -> None:
    class OddError(BaseException):
        def __repr__(self) -> str:
            raise ValueError("no repr")

    class Odd(float):
        def __float__(self) -> float:
            raise OddError

    class Endless(list[float]):
        def __iter__(self) -> Iterator[float]:
            raise KeyboardInterrupt

    def fail(error: BaseException) -> Callable[..., object]:
        def function(**context: object) -> object:
            raise error

        return function

    with pytest.raises(RewardError, match=r"the score 1\.0"):
        grade((lambda **_: [Odd(1.0), 0.0], 1.0))
    with pytest.raises(RewardError, match="raised a OddError that cannot be shown"):
        grade((fail(OddError()), 1.0))
    with pytest.raises(RewardError, match=r"raised CancelledError\(\)"):
        grade((fail(asyncio.CancelledError()), 1.0))
    with pytest.raises(RewardError, match=r"raised KeyboardInterrupt\(\)"):
        grade((lambda **_: Endless([1.0, 2.0]), 1.0))
    with pytest.raises(RewardError, match=r"raised RewardError\('mine'\)"):
        grade((fail(RewardError("mine")), 1.0))
    with pytest.raises(MemoryError):
        grade((fail(MemoryError()), 1.0))


def test_raising_function_is_named() -> None:
    class Grader:
        def __call__(self, completions: list[str]) -> list[float]:
            return []

    def leaves(**context: object) -> list[float]:
        raise SystemExit("bye")

    with pytest.raises(RewardError, match=r"leaves' raised SystemExit\('bye'\)"):
        grade((leaves, 1.0))
    with pytest.raises(RewardError, match=r"Grader' raised TypeError\(.*unexpected keyword.*\*\*context"):
        grade((Grader(), 1.0))


@pytest.mark.parametrize(
    ("text", "truth", "there"),
    [
        ("12+7=19", "19", True),
        ("12+7=19", "9", False),
        ("12+7=19", "7", True),
        ("12-7", "7", True),  # an operator, no sign
        ("(5)-7", "7", True),
        ("x = -7", "-7", True),
        ("x = -7", "7", False),
        ("START623END", "623", True),
        ("about 1,000.0.", "1000", True),
        ("1,2", "2", True),
        ("1,234", "234", False),
        ("1.2.3", "2", False),
        ("It is Paris, I think", "Paris", True),
        ("Parisian", "Paris", False),
        ("so 1/2 it is", "1/2", True),
        ("11/2", "1/2", False),
        ("", "42", False),
    ],
)
def test_answer_is_found_anywhere_in_text(text: str, truth: str, there: bool) -> None:
    assert holds_answer(text, truth) is there


@given(st.text(), st.text(min_size=1))
def test_holds_answer_accepts_any_text(text: str, truth: str) -> None:
    assert holds_answer(text, truth) in (True, False)
    if truth.strip():
        assert holds_answer(f"{text} {truth} {text}", truth) or parse_number(truth) is not None


def test_holds_answer_takes_linear_time() -> None:
    began = time.process_time()
    for text in ("1," * 20_000, "-" * 40_000, "1" * 40_000, "+-.1" * 10_000):
        assert not holds_answer(text, "7")
    assert time.process_time() - began < 2
