"""The prompts that are loaded before the start, with benchmarks and without."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from adagrpo_ray.config import Config
from adagrpo_ray.config.environments import EnvironmentSettings
from adagrpo_ray.errors import ConfigError, DataError
from adagrpo_ray.extensions.given import NOTHING
from adagrpo_ray.training import preflight
from tests.support.benchmark_rows import ROWS
from tests.support.ground_truths import TOKENIZER


def config(folder: Path, *overrides: str) -> Config:
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(ROWS["gsm8k"]) + "\n")
    return Config.load(None, [f"evaluation.benchmarks=[{{name: gsm8k, path: {path}}}]", *overrides])


def test_benchmarks_are_the_only_prompts_of_an_evaluation(tmp_path: Path) -> None:
    missing = config(tmp_path, "data.source=none.jsonl")
    sets = preflight._load(missing, TOKENIZER, "", NOTHING, training=False)
    assert (sets.train, sets.held_out) == ((), ())
    assert [one.name for one in sets.benchmarks] == ["gsm8k"]
    assert sets.template
    with pytest.raises(DataError, match=r"none\.jsonl"):
        preflight._load(missing, TOKENIZER, "", NOTHING, training=True)


def test_a_run_has_prompts_and_benchmarks(tmp_path: Path) -> None:
    sets = preflight._load(config(tmp_path, "data.train_prompts=20"), TOKENIZER, "", NOTHING, training=True)
    assert len(sets.train) == 20
    assert [one.name for one in sets.benchmarks] == ["gsm8k"]


def test_longest_prompt_of_a_benchmark_counts_in_the_length_of_sequences(tmp_path: Path) -> None:
    settings = config(tmp_path, "data.train_prompts=20", "rollout.max_new_tokens=10")
    sets = preflight._load(settings, TOKENIZER, "", NOTHING, training=True)
    longest = len(sets.benchmarks[0].prompts[0].token_ids)
    assert longest > max(len(prompt.token_ids) for prompt in sets.train)

    def length(limit: int) -> int:
        text = SimpleNamespace(max_position_embeddings=limit)
        return preflight._max_model_len(settings, SimpleNamespace(get_text_config=lambda: text), sets)

    assert length(longest + 10) == longest + 10
    with pytest.raises(ConfigError, match=rf"prompts of up to {longest} tokens .* leave out the benchmark gsm8k"):
        length(longest + 9)
    own = replace(sets, benchmarks=())
    text = SimpleNamespace(max_position_embeddings=10)
    with pytest.raises(ConfigError, match=r"lower rollout\.max_new_tokens or data\.length_quantile"):
        preflight._max_model_len(settings, SimpleNamespace(get_text_config=lambda: text), own)


def test_observations_of_episodes_count_in_the_length_of_sequences(tmp_path: Path) -> None:
    """A benchmark has longer prompts and no observations, so it is not the one that does not fit."""
    settings = config(tmp_path, "data.train_prompts=20", "rollout.max_new_tokens=10")
    sets = preflight._load(settings, TOKENIZER, "", NOTHING, training=True)
    longest = max(len(prompt.token_ids) for prompt in (*sets.train, *sets.held_out))
    overrides = {"name": "m:E", "max_observation_tokens": 1000}
    episodes = settings.model_copy(update={"environment": EnvironmentSettings.model_validate(overrides)})

    def length(limit: int, made: Config = episodes) -> int:
        text = SimpleNamespace(max_position_embeddings=limit)
        return preflight._max_model_len(made, SimpleNamespace(get_text_config=lambda: text), sets)

    assert length(longest + 1010) == longest + 1010
    expected = rf"prompts of up to {longest} tokens .* lower environment\.max_observation_tokens=1000, rollout\.max_new"
    with pytest.raises(ConfigError, match=expected):
        length(longest + 1009)
    limited = settings.model_copy(update={"rollout": settings.rollout.model_copy(update={"max_model_len": 5000})})
    assert length(5000, limited) == 5000
    with pytest.raises(ConfigError, match=r"rollout\.max_model_len=5000 is more than the 4999 positions"):
        length(4999, limited)
