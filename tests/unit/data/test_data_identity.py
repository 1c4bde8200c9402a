"""Ids of rows, duplicates, and the split by problem."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adagrpo_ray.config import Config
from adagrpo_ray.data.prompts import PromptSets, load_prompts
from adagrpo_ray.data.row_id import normalised
from adagrpo_ray.data.split import split
from adagrpo_ray.errors import DataError
from adagrpo_ray.toy.tokenizer import build_tokenizer

DATED = (
    "Today is {{ strftime_now('%H:%M:%S.%f') }}. {% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def load(path: Path, rows: list[Any], template: str | None = None, seed: int = 0, **data: Any) -> PromptSets:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = build_tokenizer(Config().data.format)
    if template is not None:
        tokenizer.chat_template = template
    settings = {"source": str(path), "eval_prompts": 0} | data
    config = Config.model_validate({"run": {"seed": seed}, "data": settings, "algorithm": {"prompts_per_step": 1}})
    return load_prompts(config, tokenizer)


def row(prompt: Any, solution: str = "2", **others: Any) -> dict[str, Any]:
    return {"prompt": prompt, "solution": solution, **others}


def chat(*messages: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in messages]


def numbered(n: int) -> list[dict[str, Any]]:
    return [row(f"problem {i}", str(i)) for i in range(n)]


def texts(prompts: Any) -> set[str]:
    return {p.text for p in prompts}


def test_ids_depend_on_row_and_not_on_rendering(tmp_path: Path) -> None:
    rows = numbered(3)
    dated, again = (load(tmp_path / "d.jsonl", rows, DATED).train for _ in range(2))
    assert [p.id for p in dated] == [p.id for p in again]
    assert dated[0].token_ids.tolist() != again[0].token_ids.tolist()
    plain = load(tmp_path / "d.jsonl", rows, system_prompt=None).train
    assert [p.id for p in plain] == [p.id for p in dated]


@pytest.mark.parametrize(
    "same",
    [
        *(
            "caf\u00e9 1+1",
            "cafe\u0301 1+1",
            " caf\u00e9 1+1 ",
            "caf\u00e9  1+1",
            "caf\u00e9\r\n1+1",
            "caf\u00e9\u00a01+1",
        ),
        *("caf\u00e9\u200b 1+1", "\ufeffcaf\u00e9 1+1", "caf\u00e9\t\n1+1\n"),
        chat(("user", "caf\u00e9 1+1 ")),
    ],
)
def test_other_white_space_or_unicode_form_is_a_duplicate(tmp_path: Path, same: Any) -> None:
    prompts = load(tmp_path / "d.jsonl", [row("caf\u00e9 1+1"), row(same, " 2 ")])
    assert (len(prompts.train), prompts.dropped) == (1, {"double": 1})


@pytest.mark.parametrize("other", ["X^2", "x\u00b2", "x2", "x ^ 2", "x^2."])
def test_letter_case_and_compatibility_forms_are_other_problems(other: str) -> None:
    assert normalised(other) != normalised("x^2")


SAME_PROBLEM = [
    row("1+1", "2"),
    row("1+1 ", "two"),
    row(chat(("system", "be brief"), ("user", "1+1")), "2"),
    row(chat(("user", "3+3"), ("assistant", "6"), ("user", "1+1")), "2"),
    row(chat(("user", "1+1"), ("assistant", "It is")), "2"),
]


@pytest.mark.parametrize("seed", range(8))
def test_rows_of_one_problem_are_on_one_side(tmp_path: Path, seed: int) -> None:
    prompts = load(tmp_path / "d.jsonl", [*SAME_PROBLEM, *numbered(8)], seed=seed, eval_prompts=6)
    assert (len(prompts.train), len(prompts.held_out), prompts.dropped) == (7, 6, {})
    assert not texts(prompts.train) & texts(prompts.held_out)
    assert sum(p.text.strip() == "1+1" for p in (*prompts.train, *prompts.held_out)) == 5


def test_rest_of_cut_problem_is_not_trained_on(tmp_path: Path) -> None:
    rows = [row(text, str(n)) for text in ("a", "b") for n in range(3)]
    prompts = load(tmp_path / "d.jsonl", rows, eval_prompts=2)
    assert (len(prompts.train), len(prompts.held_out)) == (3, 2)
    assert prompts.dropped == {"of a held-out problem": 1}
    assert not texts(prompts.train) & texts(prompts.held_out)


def test_column_can_identify_the_problem(tmp_path: Path) -> None:
    rows = [
        row(chat(("system", f"problem {n // 2}"), ("user", "Solve it.")), str(n), extra={"id": n // 2})
        for n in range(8)
    ]
    with pytest.raises(DataError, match="6 of a held-out problem"):
        load(tmp_path / "d.jsonl", rows, eval_prompts=2)
    prompts = load(tmp_path / "d.jsonl", rows, eval_prompts=2, columns={"problem": "extra.id"})
    assert (len(prompts.train), len(prompts.held_out)) == (6, 2)
    assert len({p.columns["extra"]["id"] for p in prompts.held_out}) == 1  # type: ignore[index]
    with pytest.raises(DataError, match=r"data\.columns\.problem='extra' holds a dict.*row 1"):
        load(tmp_path / "d.jsonl", rows, columns={"problem": "extra"})


def test_split_does_not_depend_on_order_of_rows(tmp_path: Path) -> None:
    one = load(tmp_path / "d.jsonl", numbered(30), eval_prompts=10, train_prompts=8)
    other = load(tmp_path / "d.jsonl", numbered(30)[::-1], eval_prompts=10, train_prompts=8)
    assert texts(one.held_out) == texts(other.held_out)
    assert texts(one.train) == texts(other.train)


def test_added_rows_move_no_training_problem_to_held_out_side(tmp_path: Path) -> None:
    few = load(tmp_path / "d.jsonl", numbered(30), eval_prompts=10)
    many = load(tmp_path / "d.jsonl", numbered(60), eval_prompts=10)
    assert not texts(few.train) & texts(many.held_out)


def test_smaller_training_set_is_subset_of_larger(tmp_path: Path) -> None:
    few, more = (load(tmp_path / "d.jsonl", numbered(30), eval_prompts=5, train_prompts=n) for n in (6, 12))
    assert texts(few.train) < texts(more.train)
    assert texts(few.held_out) == texts(more.held_out)


@given(
    problems=st.lists(st.sampled_from("abcdef"), min_size=1, max_size=30),
    seed=st.integers(0, 5),
    held_out=st.integers(0, 12),
    train=st.none() | st.integers(1, 12),
)
def test_splits_are_exact_and_disjoint_by_problem(
    problems: list[str], seed: int, held_out: int, train: int | None
) -> None:
    rest, aside, lost = split(problems, seed, held_out, train)
    assert len(aside) == min(held_out, len(problems))
    assert not {problems[n] for n in rest} & {problems[n] for n in aside}
    assert not set(rest) & set(lost)
    if train is None:
        assert sorted([*rest, *aside, *lost]) == list(range(len(problems)))
    else:
        assert len(rest) <= train
