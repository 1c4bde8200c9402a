"""From files to prompts: both DAPO layouts, dropped rows, error messages, and the order of prompts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adagrpo_ray.config import Config
from adagrpo_ray.data.order import PromptOrder
from adagrpo_ray.data.prompts import PromptSets, load_prompts
from adagrpo_ray.errors import CheckpointError, ConfigError, DataError
from tests.support.builders import make_prompt
from tests.support.ground_truths import TOKENIZER

DAPO = {
    "data_source": "math_dapo",
    "prompt": [{"content": "Solve: 1+1?", "role": "user"}],
    "reward_model": {"ground_truth": "2", "style": "rule"},
    "extra_info": {"index": "a1"},
}
PROCESSED = {"prompt": "Solve: 1+1?", "solution": "2", "source": "dapo"}


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, rows: list[Any]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def load(source: Path | str, prompts_per_step: int = 1, rollout: Any = None, seed: int = 0, **data: Any) -> PromptSets:
    data = {"eval_prompts": 0, "source": str(source)} | data
    config = Config.model_validate(
        {
            "run": {"seed": seed},
            "data": data,
            "algorithm": {"prompts_per_step": prompts_per_step},
            "rollout": rollout or {},
        }
    )
    return load_prompts(config, TOKENIZER)


def rows_of(n: int) -> list[dict[str, str]]:
    return [{"prompt": f"{i}+{i}", "solution": str(2 * i)} for i in range(n)]


def rendered(prompts: PromptSets) -> str:
    return str(TOKENIZER.decode(prompts.train[0].token_ids.tolist()))


# Layouts


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
def test_dapo_math_17k_layout_is_read(tmp_path: Path, write: Callable[[Path, list[Any]], Path]):
    path = write(tmp_path / f"d.{write.__name__.removeprefix('write_')}", [DAPO])
    prompts = load(path, columns={"ground_truth": "reward_model.ground_truth", "difficulty": "data_source"})
    (prompt,) = prompts.train
    assert (prompt.text, prompt.answer, prompt.difficulty) == ("Solve: 1+1?", "2", "math_dapo")
    assert prompt.columns == DAPO
    assert rendered(prompts) == ("<|im_start|>user\nSolve: 1+1?<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
def test_processed_dapo_layout_is_read(tmp_path: Path, write: Callable[[Path, list[Any]], Path]):
    path = write(tmp_path / f"d.{write.__name__.removeprefix('write_')}", [PROCESSED])
    (prompt,) = load(path).train
    assert (prompt.text, prompt.answer, prompt.difficulty) == ("Solve: 1+1?", "2", "")
    assert prompt.columns == PROCESSED


def test_both_layouts_give_the_same_prompt(tmp_path: Path):
    (a,) = load(write_jsonl(tmp_path / "a.jsonl", [DAPO]), columns={"ground_truth": "reward_model.ground_truth"}).train
    (b,) = load(write_jsonl(tmp_path / "b.jsonl", [PROCESSED])).train
    assert a.id == b.id
    assert len(a.id) == 16


def test_system_message_of_data_is_kept(tmp_path: Path):
    own = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1"}]
    text = rendered(load(write_jsonl(tmp_path / "d.jsonl", [{"prompt": own, "solution": "2"}])))
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")


def test_default_has_no_system_message(tmp_path: Path):
    text = rendered(load(write_jsonl(tmp_path / "d.jsonl", [PROCESSED]), system_prompt=None))
    assert text.startswith("<|im_start|>user\n")


def test_numbers_in_the_answer_become_text(tmp_path: Path):
    rows = [{"prompt": "a", "solution": 34}, {"prompt": "b", "solution": 2.5}]
    assert [p.answer for p in load(write_jsonl(tmp_path / "d.jsonl", rows)).train] == ["34", "2.5"]


# Dropped rows


def test_rows_without_prompt_or_answer_and_duplicates_are_counted(tmp_path: Path):
    rows = [
        *rows_of(2),
        {"prompt": "0+0", "solution": "0"},
        {"prompt": "0+0", "solution": "another answer"},
        {"prompt": "  ", "solution": "1"},
        {"prompt": None, "solution": "1"},
        {"prompt": [{"role": "user", "content": ""}], "solution": "1"},
        {"prompt": "1+0", "solution": None},
        {"prompt": "1+0", "solution": ""},
        {"prompt": "1+0", "solution": ["1"]},
    ]
    prompts = load(write_jsonl(tmp_path / "d.jsonl", rows))
    assert [p.answer for p in prompts.train] == ["0", "2", "another answer"]
    assert prompts.dropped == {"double": 1, "without a prompt": 3, "without an answer": 3}


def test_prompts_above_the_quantile_of_lengths_are_dropped(tmp_path: Path):
    rows = [{"prompt": "1" * length, "solution": "1"} for length in (10, 1, 2, 3, 4, 5, 6, 7, 8, 9)]
    prompts = load(write_jsonl(tmp_path / "d.jsonl", rows), length_quantile=0.9)
    assert sorted(len(p.text) for p in prompts.train) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert prompts.dropped == {"too long": 1}
    assert len(load(tmp_path / "d.jsonl").train) == 10


def test_prompts_that_leave_no_room_for_a_completion_are_dropped(tmp_path: Path):
    path = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "1" * n, "solution": "1"} for n in (5, 6, 7)])
    lengths = [len(p.token_ids) for p in load(path).train]
    prompts = load(path, rollout={"max_model_len": lengths[1] + 20, "max_new_tokens": 20})
    assert [len(p.text) for p in prompts.train] == [5, 6]


# The split


def test_split_is_exact_disjoint_and_follows_the_seed(tmp_path: Path):
    path = write_jsonl(tmp_path / "d.jsonl", rows_of(50))
    a, b, c = (load(path, seed=seed, eval_prompts=10, train_prompts=20) for seed in (0, 0, 1))
    ids = [{p.id for p in part} for part in (a.train, a.held_out)]
    assert (len(ids[0]), len(ids[1]), len(ids[0] & ids[1])) == (20, 10, 0)
    assert [p.id for p in a.train] == [p.id for p in b.train]
    assert [p.id for p in a.held_out] == [p.id for p in b.held_out]
    assert {p.id for p in a.held_out} != {p.id for p in c.held_out}


def test_arithmetic_has_difficulty_classes():
    prompts = load("arithmetic", eval_prompts=8, train_prompts=40)
    assert (len(prompts.train), len(prompts.held_out), prompts.dropped) == (40, 8, {})
    assert {p.difficulty for p in prompts.held_out} == {"2 digits", "3 digits", "4 digits", "5 digits"}
    first = prompts.train[0]
    assert sum(map(int, first.text.split("+"))) == int(first.answer)
    assert not {p.id for p in prompts.train} & {p.id for p in prompts.held_out}


@pytest.mark.parametrize("part", [{"split": "test"}, {"subset": "hard"}])
def test_arithmetic_refuses_subset_and_split(part: dict[str, str]):
    with pytest.raises(DataError, match=r"data\.(split='test'|subset='hard'): 'arithmetic' has no"):
        load("arithmetic", **part)


def test_arithmetic_has_2000_prompts_by_default():
    assert len(load("arithmetic").train) == 2000


# Error messages


def test_missing_file_names_the_nearest(tmp_path: Path):
    write_jsonl(tmp_path / "train.jsonl", rows_of(1))
    with pytest.raises(DataError, match=r"trian\.jsonl' is no file \(there is 'train\.jsonl'\)"):
        load(tmp_path / "trian.jsonl")
    with pytest.raises(DataError, match=r"is no file; give a file or a Hub name"):
        load(tmp_path / "no" / "folder.parquet")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a", "solution": "b"}\n{"prompt": \n', r"line 2 is not JSON"),
        ('{"prompt": "a", "solution": "b"}\n\n["a", "b"]\n', r"line 3 holds a list; each line must be an object"),
        ("", r"is empty"),
        ("\n\n", r"is empty"),
    ],
)
def test_bad_jsonl_is_refused(tmp_path: Path, text: str, message: str):
    path = tmp_path / "d.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        load(path)


def test_files_of_other_format_than_their_name_are_refused(tmp_path: Path):
    for name in ("d.parquet", "d.jsonl"):
        (tmp_path / name).write_bytes(b"\xff\xfe not at all")
        with pytest.raises(DataError, match=rf"cannot read .*{name}"):
            load(tmp_path / name)
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    with pytest.raises(DataError, match="is empty"):
        load(tmp_path / "empty.parquet")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"ground_truth": "solutoin"},
            r"data\.columns\.ground_truth='solutoin': .* no column 'solutoin'; did you mean 'solution'",
        ),
        ({"prompt": "promt"}, r"data\.columns\.prompt='promt': .* did you mean 'prompt'"),
        ({"difficulty": "zzz"}, r"data\.columns\.difficulty='zzz': .* it has prompt, solution, meta"),
        ({"ground_truth": "meta.gound"}, r"no column 'gound' in 'meta'; did you mean 'ground'"),
        ({"ground_truth": "solution.text"}, r"no column 'text' in 'solution'; it has no columns"),
    ],
)
def test_missing_columns_name_setting_and_nearest(tmp_path: Path, columns: dict[str, str], message: str):
    path = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "1", "solution": "1", "meta": {"ground": "1"}}])
    with pytest.raises(DataError, match=message):
        load(path, columns=columns)


def test_error_for_too_few_prompts_has_counts_and_reasons(tmp_path: Path):
    rows = [*rows_of(5), {"prompt": "", "solution": "1"}]
    with pytest.raises(
        DataError,
        match=r"leaves 2 prompts to train on and 3 held out \(dropped: 1 without a prompt\)"
        r".* algorithm\.prompts_per_step=4",
    ):
        load(write_jsonl(tmp_path / "d.jsonl", rows), prompts_per_step=4, eval_prompts=3)


@pytest.mark.parametrize("prompt", ["End with {think_edn}", "{}", "open { brace", "{think_end.no}"])
def test_bad_placeholder_in_system_prompt_is_refused(prompt: str):
    with pytest.raises(ConfigError, match=r"data\.system_prompt=.* use \{think_end\}, \{answer_start\}"):
        load("arithmetic", system_prompt=prompt)


def test_braces_can_be_doubled(tmp_path: Path):
    text = rendered(load(write_jsonl(tmp_path / "d.jsonl", [PROCESSED]), system_prompt="Use \\boxed{{}}{think_end}"))
    assert text.startswith("<|im_start|>system\nUse \\boxed{}</think><|im_end|>")


def test_template_that_refuses_system_messages_names_remedy(monkeypatch: pytest.MonkeyPatch):
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    monkeypatch.setattr(TOKENIZER, "chat_template", refusing)
    with pytest.raises(DataError, match=r"system, user: no system here; .* data\.system_prompt to null"):
        load("arithmetic")


# The order of prompts


def test_order_state_with_other_chat_template_is_refused():
    prompts = [make_prompt(str(i)) for i in range(3)]
    state = PromptOrder(prompts, 0, True, "one template").state_dict()
    PromptOrder(prompts, 0, True, "one template").load_state_dict(state)
    with pytest.raises(CheckpointError, match="chat template is not the one that the run began with"):
        PromptOrder(prompts, 0, True, "another").load_state_dict(state)


def test_order_state_of_other_version_is_refused():
    state = order_of(3).state_dict()
    del state["ids"]
    with pytest.raises(CheckpointError, match="a version that names prompts in another way"):
        order_of(3).load_state_dict(state)


def order_of(n: int, seed: int = 0, shuffle: bool = True) -> PromptOrder:
    return PromptOrder([make_prompt(str(i)) for i in range(n)], seed, shuffle)


def visits(order: PromptOrder, n: int) -> list[tuple[str, int]]:
    return [(prompt.id, epoch) for prompt, epoch in order.take(n)]


def test_without_shuffle_passes_follow_order_of_data():
    assert visits(order_of(2, shuffle=False), 5) == [("0", 0), ("1", 0), ("0", 1), ("1", 1), ("0", 2)]


def test_each_pass_has_every_prompt_once_in_new_order():
    taken = visits(order_of(20), 60)
    passes = [taken[i : i + 20] for i in (0, 20, 40)]
    for number, one in enumerate(passes):
        assert [epoch for _, epoch in one] == [number] * 20
        assert {name for name, _ in one} == {str(i) for i in range(20)}
        expected = np.random.default_rng([0, number]).permutation(20)
        assert [name for name, _ in one] == [str(i) for i in expected]
    assert visits(order_of(20, seed=1), 60) != taken


@pytest.mark.parametrize("taken", [0, 3, 7, 20])
def test_order_resumes_exactly(taken: int):
    order = order_of(7)
    order.take(taken)
    state = json.loads(json.dumps(order.state_dict()))
    resumed = order_of(7)
    resumed.take(2)
    resumed.load_state_dict(state)
    assert visits(resumed, 30) == visits(order, 30)


def test_order_state_of_other_prompts_is_refused():
    with pytest.raises(CheckpointError, match=r"data\.source: the 7 prompts to train on are not those"):
        order_of(7).load_state_dict(order_of(8).state_dict())
