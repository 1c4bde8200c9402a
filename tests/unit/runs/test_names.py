"""Names made from text of users: distinct, reversible, and accepted by TensorBoard, MLflow, Ray and file systems."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tensorboard.compat.proto.summary_pb2 import Summary

from adagrpo_ray.runs.metric import scalars
from adagrpo_ray.runs.names import FILE, LABEL, LONGEST, MLFLOW, TAG, Rule, name_of, text_of
from adagrpo_ray.tracking.mlflow_run import metric_name
from tests.support.histories import BEFORE, STEP
from tests.support.texts import MEAN, texts

RULES = {"tag": TAG, "mlflow": MLFLOW, "label": LABEL, "file": FILE}


@given(text=texts)
@example("%4\xe91")
@example(":H")
def test_text_of_recovers_the_text_from_its_name(text: str) -> None:
    for rule in RULES.values():
        assert text_of(name_of(text, rule, 10_000), rule) == text


@given(one=texts, two=texts)
def test_different_texts_have_different_names(one: str, two: str) -> None:
    for rule, longest in product(RULES.values(), (40, LONGEST)):
        assert (name_of(one, rule, longest) == name_of(two, rule, longest)) == (one == two)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_hostile_texts_have_distinct_names_of_allowed_characters(rule: Rule) -> None:
    names = [name_of(text, rule) for text in MEAN]
    assert len(set(names)) == len(set(MEAN))
    for name in names:
        assert 0 < len(name.encode()) <= LONGEST
        assert all(map(rule.allowed, name))
        assert name.isprintable()
        assert name.strip() == name
        assert not name.startswith(".")


@pytest.mark.parametrize(
    "text", ["3 digits", "easy", "hard (1-2)", "50 %", "0.5", "my_rewards:short", "niveau très dur"]
)
def test_ordinary_names_are_unchanged(text: str) -> None:
    assert name_of(text, TAG) == text
    if text.isascii():
        assert name_of(text, LABEL) == text


@given(st.lists(texts, max_size=20, unique=True))
def test_each_difficulty_has_its_own_curve_in_tensorboard_and_mlflow(difficulties: list[str]) -> None:
    accuracies = {difficulty: number / 100 for number, difficulty in enumerate(difficulties)}
    tags = {
        **scalars(replace(STEP, accuracy_by_difficulty=accuracies)),
        **scalars(replace(BEFORE, accuracy_by_difficulty=accuracies)),
    }
    for group in ("accuracy_by_difficulty/", "eval/accuracy_by_difficulty/"):
        found = {tag: value for tag, value in tags.items() if tag.startswith(group)}
        assert sorted(found.values()) == sorted(value for difficulty, value in accuracies.items() if difficulty)
        assert len({metric_name(tag) for tag in found}) == len(found)
        for tag in found:
            Summary.Value(tag=tag, simple_value=1.0).SerializeToString()


def test_shortened_name_keeps_its_beginning_and_differs_from_other_names() -> None:
    long = "x" * 300
    cut = name_of(long)
    assert cut.startswith("x" * 150)
    assert name_of(cut) != cut  # a difficulty with this text has another name
    assert name_of("é" * 300, LABEL).count("%C3") == name_of("é" * 300, LABEL).count("%A9")


def test_file_names_can_be_created(tmp_path: Path) -> None:
    for text in MEAN:
        (tmp_path / name_of(text, FILE)).touch()
    assert len(list(tmp_path.iterdir())) == len(set(MEAN))
