"""Benchmarks and training data from the Hub: `datasets` in a process of its own, against a fake Hub on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from adagrpo_ray.data.benchmark_sets import BENCHMARKS
from tests.support.benchmark_rows import ASKED, ROWS
from tests.support.dataset_hub import repository, serving

# Prints the problems of the benchmarks and of the training data, or the error of either.
PROGRAM = """
import json
import sys

from adagrpo_ray.config import Config
from adagrpo_ray.data.benchmark_prompts import load_benchmarks
from adagrpo_ray.data.prompts import load_prompts
from adagrpo_ray.errors import DataError
from tests.support.ground_truths import TOKENIZER

benchmarks, settings = json.loads(sys.argv[1])
try:
    found = {
        loaded.name: [(p.text, p.answer, p.difficulty) for p in loaded.prompts]
        for loaded in load_benchmarks(Config.load(None, {"evaluation.benchmarks": benchmarks}), TOKENIZER)
    }
    if settings:
        sets = load_prompts(Config.load(None, settings), TOKENIZER)
        found["data"] = [(p.text, p.answer, p.difficulty) for p in (*sets.train, *sets.held_out)]
except DataError as error:
    found = str(error)
print(json.dumps(found))
"""
ROWS_OF_DATA = [{"question": f"{i}+{i}?", "answer": str(2 * i)} for i in range(10)]


def loaded(url: str, home: Path, *benchmarks: str, **settings: Any) -> Any:
    """What PROGRAM prints, with the Hub at `url` and an empty cache in `home`."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", PROGRAM, json.dumps([benchmarks, settings])]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def test_every_benchmark_and_a_data_set_load_from_the_hub(tmp_path: Path) -> None:
    repositories = {b.repository: repository(b.subset, b.split, [ROWS[name]]) for name, b in BENCHMARKS.items()}
    repositories["me/sums"] = repository(None, "train", ROWS_OF_DATA)
    settings = {
        "data.source": "me/sums",
        "data.columns": {"prompt": "question", "ground_truth": "answer"},
        "data.train_prompts": 8,
        "data.eval_prompts": 2,
    }
    with serving(repositories) as url:
        found = loaded(url, tmp_path, *BENCHMARKS, **settings)
    assert isinstance(found, dict), found
    assert sorted((text, answer) for text, answer, _ in found.pop("data")) == sorted(
        (row["question"], row["answer"]) for row in ROWS_OF_DATA
    )
    ((text, letter, _),) = found.pop("gpqa_diamond")  # its choices are in an order of their own
    assert f"{letter}) the neutron" in text.splitlines()
    assert {name: tuple(prompt) for name, (prompt,) in found.items()} == {
        name: asked for name, asked in ASKED.items() if name != "gpqa_diamond"
    }


def test_a_benchmark_whose_terms_are_not_accepted_names_the_remedies(tmp_path: Path) -> None:
    gated = BENCHMARKS["gpqa_diamond"]
    repositories = {gated.repository: repository(gated.subset, gated.split, [ROWS["gpqa_diamond"]])}
    with serving(repositories, gated=[gated.repository]) as url:
        error = loaded(url, tmp_path, "gpqa_diamond")
    assert isinstance(error, str)
    assert error.startswith("benchmark gpqa_diamond from the Hub (Idavidrein/gpqa): ")
    assert "accept its terms at https://huggingface.co/datasets/Idavidrein/gpqa and log in there (HF_TOKEN)" in error
    assert "give a copy on this machine, as --benchmark gpqa_diamond=FILE" in error


def test_a_data_set_that_the_hub_lacks_is_named(tmp_path: Path) -> None:
    with serving({}) as url:
        error = loaded(url, tmp_path, **{"data.source": "me/none"})
    assert isinstance(error, str)
    assert error.startswith("data.source='me/none' (subset None, split 'train') cannot be loaded: ")
