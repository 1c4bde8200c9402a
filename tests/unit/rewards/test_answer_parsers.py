"""The parsers of completions on any text: their results keep the contract, and they raise nothing."""

from __future__ import annotations

import threading
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from adagrpo_ray.config.data import FormatSettings
from adagrpo_ray.rewards.extract import after_thought, exact_answer, marked_answer, number_after_start, same_answer
from adagrpo_ray.rewards.numbers import normalised, parse_number
from adagrpo_ray.rewards.registry import BUILTIN

FORMAT = FormatSettings()
T, S, E = FORMAT.think_end, FORMAT.answer_start, FORMAT.answer_end

# The scores of each built-in function, by its table.
SCORES = {
    "exact": {0.0, 1.0},
    "latex": {0.0, 1.0},
    "format_exact": {0.0, 3.0},
    "format_approximate": {-3.0, -1.5, 0.0, 1.5},
    "answer": {-4.5, -2.5, -2.0, 1.5, 2.0, 3.5, 5.0},
    "number": {-2.5, -1.5, -1.0, 0.0, 3.5, 4.0},
}

# Any character, NUL and lone surrogates included, and pieces that reach all parts of the parsers.
PIECES = [T, S, E, "$", "\\frac{", "\\sqrt[", "\\boxed{", "{", "}", "(", ")", "^", "_", "!", "-", ",", ".", "/", "="]
PIECES += ["%", "42", "9^9", "1e9", "\\{", "\\text{", "\\infty", "\\pi", "x", "\x00", "\ud800", "\u0664", "\\", "&"]
TEXTS = st.lists(st.one_of(st.sampled_from(PIECES), st.text(st.characters(), max_size=4)), max_size=16).map("".join)


@given(text=TEXTS, other=TEXTS)
@settings(max_examples=300)
def test_extraction_keeps_its_contract(text: str, other: str) -> None:
    behind = after_thought(text, FORMAT)
    assert behind is None or text.endswith(T + behind)
    marked = marked_answer(text, FORMAT)
    assert marked is None or (S + marked + E) in text
    exact = exact_answer(text, FORMAT)
    assert exact is None or (exact.strip() and exact == marked)
    number = number_after_start(text, FORMAT)
    assert number is None or number in normalised(text)
    value = parse_number(text)
    assert value is None or isinstance(value, Fraction)
    assert same_answer(text, text)
    assert same_answer(text, other) == same_answer(other, text)


@given(text=TEXTS, truth=TEXTS)
@settings(max_examples=60)
def test_every_score_is_in_table_of_function(text: str, truth: str) -> None:
    texts = [text, f"{T}{S}{text}{E}", f"{S}{text}", f"{T}{S}{truth}{E}"]
    for name, table in SCORES.items():
        scores = BUILTIN[name](completions=texts, answer=truth, prompt="?", format=FORMAT, difficulty="")
        assert len(scores) == len(texts), name
        assert set(scores) <= table, (name, scores, text, truth)


def test_latex_needs_no_signals() -> None:
    """Signals work in a main thread only, and math-verify would use them for its time limits."""
    found: list[object] = []

    def work() -> None:
        found.extend(BUILTIN["latex"](completions=[rf"{T}{S}\frac{{1}}{{2}}{E}"], answer="0.5", format=FORMAT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [1.0]
