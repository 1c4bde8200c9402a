"""The built-in environments: the calculator, the guessing game, and their tiny base models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from adagrpo_ray.config import Config
from adagrpo_ray.config.data import FormatSettings
from adagrpo_ray.data.observation_text import ObservationTemplate
from adagrpo_ray.environments.calculator import HardSums, calculator, short_calls
from adagrpo_ray.environments.guessing import Guessing
from adagrpo_ray.environments.parser_choice import chosen_parser
from adagrpo_ray.environments.tool_calls import hermes
from adagrpo_ray.toy.tiny import tiny_folder
from adagrpo_ray.toy.turn_examples import (
    CALL_END,
    CALL_RATE,
    CALL_START,
    LETTERS,
    SUM_PROMPT,
    calculator_example,
    guessing_example,
    questions,
    turn_tokenizer,
)
from tests.support.places import CONFIGS

FORMAT = FormatSettings()
TOKENIZER = turn_tokenizer(FORMAT)
END = TOKENIZER.eos_token_id
TEMPLATE = ObservationTemplate(TOKENIZER, {})


@pytest.mark.parametrize(
    ("expression", "value"),
    [("345+278", "623"), (" 12*(3+4) ", "84"), ("7/2", "3.5"), ("6/2", "3"), ("-3+1", "-2"), ("2 - 3", "-1")],
)
def test_calculator_computes(expression: str, value: str) -> None:
    assert calculator(expression) == value


@pytest.mark.parametrize(
    "expression", ["2**9999", "__import__('os')", "f(1)", "1 if 2 else 3", "'a'*9", "1+", "9" * 101]
)
def test_calculator_runs_no_code(expression: str) -> None:
    with pytest.raises((ValueError, SyntaxError)):
        calculator(expression)


def test_short_calls_are_read() -> None:
    (call,) = short_calls("Well, calculator(expression=12+34)")
    assert call == {"name": "calculator", "arguments": {"expression": "12+34"}}
    assert short_calls("46") == []


def test_hard_sums_reward_the_only_number_of_the_last_turn() -> None:
    made = HardSums(digits=3, problems=20)
    rows = made.rows()
    assert len({row["prompt"][-1]["content"] for row in rows}) == 20
    made.reset({"answer": "623"})
    replies = {
        text: made.step({"content": text})[1] for text in ("623", "It is 1,623", "It is 623.", "345+278=623", "")
    }
    assert replies == {"623": 1.0, "It is 1,623": 0.0, "It is 623.": 1.0, "345+278=623": 0.0, "": 0.0}


def play(made: Guessing, *guesses: str) -> list[tuple[str, float, bool]]:
    found = []
    for guess in guesses:
        messages, reward, done, _ = made.step({"content": guess})
        found.append((str(messages[0]["content"]) if messages else "", reward, done))
    return found


def test_guess_is_answered_by_its_side() -> None:
    made = Guessing()
    made.reset({"answer": "d"})
    assert play(made, "h", "b", "?", "d") == [
        ("before", 0.0, False),
        ("after", 0.0, False),
        ("no guess", 0.0, False),
        ("", 1.0, True),
    ]
    numbers = Guessing(items="numbers")
    numbers.reset({"answer": "5"})
    assert play(numbers, "I guess 8", "12345678", "none", "5")[-1] == ("", 1.0, True)


def test_games_hide_all_letters_equally_often() -> None:
    rows = Guessing().rows()
    counts = [sum(row["answer"] == letter for row in rows) for letter in LETTERS]
    assert len({row["prompt"] for row in rows}) == len(rows) == 1000
    assert max(counts) - min(counts) <= 1
    assert [row["prompt"] for row in rows[:5]] == [question for question, _ in questions(5, 0)]


def test_shown_game_halves_the_range() -> None:
    (row,) = [row for row in Guessing(items="numbers").rows() if row["item"] == "3 after 10"]
    said = [message["content"] for message in row["prompt"] if message["role"] == "assistant"]
    assert said == ["8", "12", "10"]
    assert row["prompt"][0] == row["prompt"][-1]


# Tiny base models


def written(example: Any) -> str:
    """The tokens with a weight."""
    return str(TOKENIZER.decode([i for i, w in zip(example.token_ids, example.weights, strict=True) if w]))


def test_examples_of_the_calculator_call_it_or_answer_wrongly() -> None:
    rng = np.random.default_rng(0)
    tail = TOKENIZER.encode("<|im_end|>\n<|im_start|>assistant\n")
    examples = [calculator_example(TOKENIZER, TEMPLATE, tail, rng, 3, FORMAT) for _ in range(60)]
    called = [example for example in examples if CALL_START in written(example)]
    assert 15 < len(called) < 45
    for example in called:
        (call,) = hermes(TOKENIZER.decode(example.token_ids))
        answer = calculator(call.arguments["expression"])
        assert f"<|im_start|>tool\n{answer}<|im_end|>" in TOKENIZER.decode(example.token_ids)
        assert f"<|im_start|>tool\n{answer}" not in written(example)
        assert written(example).endswith(f"{FORMAT.answer_start}{answer}{FORMAT.answer_end}<|im_end|>")
    assert {max(e.weights) if e in called else 1.0 for e in examples} == {1.0}
    first = [next(w for w in e.weights if w) for e in examples]
    assert set(first) == {2 * CALL_RATE, 2 * (1 - CALL_RATE)}


def test_examples_of_the_game_end_with_the_hidden_letter_or_the_last_guess() -> None:
    rng = np.random.default_rng(0)
    tail = TOKENIZER.encode("<|im_end|>\n<|im_start|>assistant\n")
    for _ in range(50):
        example = guessing_example(TOKENIZER, TEMPLATE, tail, rng)
        guesses = written(example).replace("<|im_end|>", "")
        assert set(guesses) <= set(LETTERS)
        assert 1 <= len(guesses) <= 4
        assert example.token_ids[-1] == END


def test_texts_of_calls_are_single_tokens_in_hermes_format() -> None:
    for text in (CALL_START, CALL_END, "tool\n", " calculator"):
        assert len(TOKENIZER.encode(text)) == 1
    assert chosen_parser("auto", TOKENIZER, {}) == "hermes"
    ObservationTemplate(TOKENIZER, {}, [{"type": "function", "function": {"name": "calculator"}}]).check(
        ("user", "tool")
    )


def test_configuration_asks_as_the_base_model_was_trained() -> None:
    config = Config.load(CONFIGS / "tiny-calculator.yaml")
    assert config.data.system_prompt == SUM_PROMPT
    assert config.arithmetic.episodes == "calculator"
    assert Config.load(CONFIGS / "tiny-guessing.yaml").arithmetic.episodes == "guessing"


def test_each_base_model_has_a_folder_of_its_own() -> None:
    folders = {
        tiny_folder(Config.load(None, [f"arithmetic.episodes={name}"]).arithmetic, FORMAT)
        for name in ("null", "calculator", "guessing")
    }
    assert len(folders) == 3
