"""The task `skills` of the benchmark: its operations, its prompts, and the mixture of two procedures."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import skills
import skills_model as model

from adagrpo_ray.data.split import split
from adagrpo_ray.toy.training import forked_example

BY_NAME = {skill.name: skill for skill in skills.SKILLS}
LETTERS: Any = SimpleNamespace(encode=lambda text: [ord(letter) for letter in text], eos_token_id=0)
"""A tokenizer of characters."""


@pytest.mark.parametrize(
    ("name", "digits"),
    [
        ("rotate", "8214"),
        ("complement", "5178"),
        ("last", "1"),
        ("swap", "1824"),
        ("increment", "5932"),
        ("parity", "0001"),
        ("mirror", "2112"),
        ("outer", "41"),
        ("halve", "2410"),
        ("reverse", "1284"),
    ],
)
def test_operation_on_4821(name: str, digits: str) -> None:
    assert BY_NAME[name].answer("4821")[1:] == digits


def test_digits_stay_single_digits() -> None:
    assert BY_NAME["increment"].answer("9909")[1:] == "0010"
    assert BY_NAME["complement"].answer("0990")[1:] == "9009"


def test_success_rates_run_from_half_a_percent_to_99() -> None:
    rates = [skill.rate for skill in skills.SKILLS]
    assert rates == [0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.30, 0.60, 0.90, 0.99]


def test_each_skill_has_a_sign_and_letters_of_its_own() -> None:
    signs = {skill.sign for skill in skills.SKILLS}
    letters = {letter for skill in skills.SKILLS for letter in (skill.correct, skill.wrong)}
    assert len(signs) == len({skill.digit for skill in skills.SKILLS}) == len(skills.SKILLS)
    assert len(letters) == 2 * len(skills.SKILLS)


@pytest.mark.parametrize("skill", skills.SKILLS, ids=lambda skill: skill.name)
def test_wrong_answer_is_as_long_and_never_correct(skill: Any) -> None:
    for operand in ("0000", "4821", "1221", "9999"):
        correct, wrong = skill.answer(operand), skill.wrong_answer(operand)
        assert len(correct) == len(wrong) < skills.LONGEST
        assert correct[0] != wrong[0]


def test_reward_is_for_the_whole_text() -> None:
    assert skills.same_text(["a8214", "a8214 ", "a821", ""], "a8214", prompt="=4821~~~") == [1.0, 0.0, 0.0, 0.0]


def test_no_prompt_occurs_twice_and_all_skills_equally_often() -> None:
    rows = list(skills.rows(62, seed=0))
    assert len({row["prompt"] for row in rows}) == len(rows) == 620
    assert set(Counter(row["skill"] for row in rows).values()) == {62}


@pytest.mark.parametrize("seed", [0, 1, 100])
def test_all_skills_have_equally_many_held_out_prompts(seed: int) -> None:
    rows = list(skills.rows(62, seed=0))
    train, held_out, lost = split([row["bundle"] for row in rows], seed, 300, 320)
    assert (len(train), len(held_out), lost) == (320, 300, [])
    assert set(Counter(rows[place]["skill"] for place in held_out).values()) == {30}
    assert set(Counter(rows[place]["skill"] for place in train).values()) == {32}


# The mixture


def test_only_the_letter_of_the_procedure_is_weighted_by_the_rate() -> None:
    skill, operand = BY_NAME["swap"], "4821"
    texts = skill.answer(operand), skill.wrong_answer(operand)
    for taken, text, weight in ((True, texts[0], 0.08), (False, texts[1], 1.92)):
        example = forked_example(LETTERS, [1, 2], *texts, skill.rate, taken=taken)
        assert example.token_ids == [1, 2, *map(ord, text), 0]
        assert example.weights == [0.0, 0.0, pytest.approx(weight), *[1.0] * 5]


def test_solution_that_begins_like_the_other_forks_at_the_first_difference() -> None:
    example = forked_example(LETTERS, [], "ab", "ac", 0.25, taken=True)
    assert example.weights == [1.0, 0.5, 1.0]


def test_each_problem_is_in_a_batch_with_both_procedures() -> None:
    batch = model.batch_of(LETTERS, np.random.default_rng(0), 40)
    assert len(batch) == 40
    for place in range(0, 40, 2):
        skill = skills.SKILLS[(place // 2) % 10]
        correct, wrong = batch[place], batch[place + 1]
        prompt = len(skill.prompt("0000")) - 1  # without the head, which all prompts share
        assert correct.token_ids[:prompt] == wrong.token_ids[:prompt]
        assert chr(correct.token_ids[prompt]) == skill.correct
        assert chr(wrong.token_ids[prompt]) == skill.wrong
        assert correct.weights[prompt] / 2 == pytest.approx(skill.rate)
        assert wrong.weights[prompt] / 2 == pytest.approx(1 - skill.rate)


def test_name_of_the_model_changes_with_the_recipe() -> None:
    assert model.recipe_hash() != model.recipe_hash(model.Recipe(steps=7))
