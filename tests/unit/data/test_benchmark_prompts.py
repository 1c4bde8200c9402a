"""Loading benchmarks: copies in files and folders, limited parts, rendering, and errors before the start."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adagrpo_ray.config import Config
from adagrpo_ray.data import benchmark_prompts
from adagrpo_ray.data.benchmark_prompts import BenchmarkPrompts, load_benchmarks, short_limits
from adagrpo_ray.errors import DataError
from tests.support.benchmark_rows import ASKED, ROWS
from tests.support.ground_truths import TOKENIZER
from tests.support.scripted import tokenizer_of


def written(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def loaded(*benchmarks: Any, tokenizer: Any = TOKENIZER, **settings: Any) -> tuple[BenchmarkPrompts, ...]:
    config = Config.load(None, {"evaluation.benchmarks": list(benchmarks), **settings})
    return load_benchmarks(config, tokenizer)


def sums(count: int) -> list[dict[str, Any]]:
    return [{"question": f"{i}+{i}?", "answer": f"{i}+{i}.\n#### {2 * i:,}"} for i in range(count)]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("name", [name for name in ROWS if name != "gpqa_diamond"])
def test_prompts_of_a_copy_are_the_published_ones(tmp_path: Path, name: str, suffix: str) -> None:
    (found,) = loaded({"name": name, "path": written(tmp_path / f"rows{suffix}", [ROWS[name]])})
    (prompt,) = found.prompts
    assert (prompt.text, prompt.answer, prompt.difficulty) == ASKED[name]
    assert prompt.id.startswith(f"{name}/")
    text = TOKENIZER.decode(prompt.token_ids.tolist())
    assert text == f"<|im_start|>user\n{prompt.text}<|im_end|>\n<|im_start|>assistant\n"


def test_prompts_have_no_system_message_of_the_data(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", [ROWS["gsm8k"]])
    (found,) = loaded({"name": "gsm8k", "path": path}, **{"data.system_prompt": "Answer in {answer_start}."})
    assert "system" not in TOKENIZER.decode(found.prompts[0].token_ids.tolist())


def test_prompts_of_a_base_model_are_plain_text(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", [ROWS["gsm8k"]])
    tokenizer = tokenizer_of("bos", template=None)
    (found,) = loaded({"name": "gsm8k", "path": path}, tokenizer=tokenizer, **{"data.chat_template": "none"})
    assert tokenizer.decode(found.prompts[0].token_ids.tolist()) == f"<s>{ASKED['gsm8k'][0]}"


def test_folder_is_read_by_the_split_of_the_benchmark(tmp_path: Path) -> None:
    written(tmp_path / "copy" / "train.jsonl", sums(5))
    written(tmp_path / "copy" / "test.jsonl", sums(3))
    (found,) = loaded({"name": "gsm8k", "path": str(tmp_path / "copy")})
    assert [prompt.answer for prompt in found.prompts] == ["0", "2", "4"]
    (tmp_path / "copy" / "test.jsonl").unlink()
    with pytest.raises(DataError, match=r"^benchmark gsm8k from '.*copy': split 'test': the folder .* it has train$"):
        loaded({"name": "gsm8k", "path": str(tmp_path / "copy")})


def test_copy_of_the_repository_is_read_by_subset_and_split(tmp_path: Path) -> None:
    """As `hf download` and `git clone` make it."""
    written(tmp_path / "main" / "test-0.parquet", sums(2))
    written(tmp_path / "main" / "train-0.parquet", sums(9))
    written(tmp_path / "socratic" / "test-0.parquet", sums(7))
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: main/train-*\n"
        "  - split: test\n    path: main/test-*\n- config_name: socratic\n  data_files:\n  - split: test\n"
        "    path: socratic/test-*\n---\n"
    )
    (found,) = loaded({"name": "gsm8k", "path": str(tmp_path)})
    assert found.whole == 2


def test_data_set_that_datasets_saved_is_read(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    Dataset.from_list(sums(2)).save_to_disk(str(tmp_path / "one"))
    DatasetDict(test=Dataset.from_list(sums(3)), train=Dataset.from_list(sums(5))).save_to_disk(str(tmp_path / "two"))
    assert [loaded({"name": "gsm8k", "path": str(tmp_path / name)})[0].whole for name in ("one", "two")] == [2, 3]


def test_limit_selects_the_same_problems_for_any_order(tmp_path: Path) -> None:
    rows = sums(50)
    path, backwards = written(tmp_path / "a.jsonl", rows), written(tmp_path / "b.jsonl", rows[::-1])

    def ids(path: str, limit: int) -> set[str]:
        (found,) = loaded({"name": "gsm8k", "path": path, "limit": limit})
        assert found.whole == 50
        return {prompt.id for prompt in found.prompts}

    ten = ids(path, 10)
    assert len(ten) == 10
    assert ids(backwards, 10) == ten
    assert ids(path, 3) < ten
    (found,) = loaded({"name": "gsm8k", "path": path, "limit": 10})
    answers = [int(prompt.answer) for prompt in found.prompts]
    assert answers == sorted(answers), "in the order of the benchmark"
    assert answers != list(range(0, 20, 2)), "not the first rows"
    assert len(ids(path, 99)) == 50


def test_repeated_question_counts_twice(tmp_path: Path) -> None:
    (found,) = loaded({"name": "gsm8k", "path": written(tmp_path / "a.jsonl", [*sums(2), *sums(2)])})
    assert len({prompt.id for prompt in found.prompts}) == found.whole == 4


def test_number_of_completions_is_the_usual_one_unless_it_is_set(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [ROWS["aime24"]])
    entry = {"name": "aime24", "path": path}
    assert [found.samples for found in loaded(entry)] == [32]
    assert [found.samples for found in loaded({**entry, "samples": 4})] == [4]
    assert [found.samples for found in loaded(entry, **{"evaluation.sampling.temperature": 0.0})] == [1]
    assert loaded(entry)[0].in_words == "aime24, 1 problem with 32 completions each"
    many = {"name": "gsm8k", "path": written(tmp_path / "b.jsonl", sums(5)), "limit": 2}
    assert loaded(many)[0].in_words == "gsm8k, 2 of 5 problems with 1 completion each"


def test_no_benchmarks_load_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_prompts, "ChatTemplate", None)
    assert loaded() == ()


def test_short_limit_of_tokens_is_a_warning() -> None:
    config = Config.load(None, ["evaluation.benchmarks=[gsm8k, aime24, amc23]", "rollout.max_new_tokens=1024"])
    (warning,) = short_limits(config)
    assert warning.startswith("warning: benchmark aime24 is usually given up to 32,768 tokens")
    assert "rollout.max_new_tokens=1024" in warning


# --- errors


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "is empty"),
        ([{"question": "1+1?"}], "row 1: there is no column 'answer'; give the columns question, answer"),
        ([*sums(2), {"question": "1+1?", "answer": "2"}], "row 3: 'answer' is '2'; it must end with ####"),
        ([{"question": "1+1?", "answer": "#### two"}], "row 1: the ground truth 'two' is no number; correct it"),
        ([{"question": "\ud800", "answer": "#### 2"}], "a problem is no Unicode text"),
    ],
)
def test_bad_rows_of_a_copy_are_one_error(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    path = written(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError) as refused:
        loaded({"name": "gsm8k", "path": path})
    assert str(refused.value).startswith(f"benchmark gsm8k from {path!r}: ")
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.jsonl", "there is no such file or folder; give one with the columns problem, answer (and level, if"),
        ("*.jsonl", "matches no file"),
        ("a.txt", "is a file of a kind that is not read"),
        ("bad.jsonl", "line 1 is not JSON"),
    ],
)
def test_copy_that_cannot_be_read_is_one_error(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "a.txt").write_text("x")
    if name == "bad.jsonl":
        (tmp_path / name).write_text("{")
    with pytest.raises(DataError, match=re.escape(message)) as refused:
        loaded({"name": "math500", "path": str(tmp_path / name)})
    assert str(refused.value).startswith("benchmark math500 from ")
    assert "data.source" not in str(refused.value)


@pytest.mark.parametrize("name", ["gsm8k", "gpqa_diamond"])
def test_benchmark_that_the_hub_does_not_give_names_the_remedies(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def unreachable(*_: Any) -> None:
        raise DataError("Couldn't reach it on the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr(benchmark_prompts, "hub_rows", unreachable)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError) as refused:
        loaded(name)
    message = str(refused.value)
    assert message.startswith(f"benchmark {name} from the Hub (")
    assert "cannot be loaded: Couldn't reach it on the Hub (OfflineModeIsEnabled) (HF_HUB_OFFLINE is set); " in message
    assert f"give a copy on this machine, as --benchmark {name}=FILE or as path in evaluation.benchmarks" in message
    terms = "accept its terms at https://huggingface.co/datasets/Idavidrein/gpqa and log in there (HF_TOKEN), or give"
    assert (terms in message) == (name == "gpqa_diamond")


def test_prompts_that_leave_no_room_for_a_completion_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", sums(3))
    with pytest.raises(DataError, match=r"3 of 3 prompts, of up to \d+ tokens, do not fit into rollout\.max_model_len"):
        loaded({"name": "gsm8k", "path": path}, **{"rollout.max_model_len": 24, "rollout.max_new_tokens": 20})
