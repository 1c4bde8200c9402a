"""launch/train.py before anything starts: help, dry run, and one error for each kind of invalid input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import psutil
import pytest
import ray
import yaml

from adagrpo_ray.cluster import joining
from tests.support.places import CONFIGS, ROOT, TINY
from tests.support.reserved import closed_address, silent_address


def rows(folder: Path, *rows: dict[str, object]) -> str:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_help_lists_every_setting(launch: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        launch.main(["--help"])
    assert ended.value.code == 0
    output = capsys.readouterr().out
    for key, _, text in launch.settings():
        assert key in output
        assert text in output


@pytest.mark.parametrize("name", ["tiny-cpu", "cluster"])
def test_dry_run_prints_settings_and_placement_and_starts_nothing(
    launch: ModuleType, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert launch.main(["--config", str(CONFIGS / f"{name}.yaml"), "--dry-run", "run.steps=7"]) == 0
    output = capsys.readouterr().out
    assert yaml.safe_load(output)["run"]["steps"] == 7
    assert "rollout actor: 1 CPU" in output
    assert "learner rank: 1 CPU" in output
    assert not ray.is_initialized()


def test_options_may_be_mixed_with_settings(launch: ModuleType) -> None:
    options = launch.parse(["run.name=a", "--resume", "auto", "run.steps=3", "--dry-run", "run.seed=1"])
    assert (options.overrides, options.resume, options.dry_run) == (
        ["run.name=a", "run.steps=3", "run.seed=1"],
        "auto",
        True,
    )


def test_unknown_model_path_is_refused(refused: Callable[..., str]) -> None:
    assert "model.path='no/such-model'" in refused("model.path=no/such-model")


def test_model_folder_without_weights_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "config.json" in refused("model.path=empty")


def test_missing_data_file_is_refused(refused: Callable[..., str]) -> None:
    assert "data.source='nothing.jsonl'" in refused("data.source=nothing.jsonl")


def test_empty_data_set_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "empty" in refused(f"data.source={rows(tmp_path)}")


def test_missing_column_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    error = refused(f"data.source={rows(tmp_path, {'question': '1+1', 'solution': '2'})}")
    assert "data.columns.prompt='prompt'" in error
    assert "question" in error


def test_too_few_prompts_for_a_step_are_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    error = refused(f"data.source={rows(tmp_path, {'prompt': '1+1', 'solution': '2'})}", "data.eval_prompts=0")
    assert "algorithm.prompts_per_step=16" in error


def test_invalid_yaml_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("run:\n  steps: [1\n")
    assert "bad.yaml is not valid YAML at line" in refused(config="bad.yaml")


def test_reward_that_cannot_be_imported_is_refused(refused: Callable[..., str]) -> None:
    assert "no_such_module:f" in refused("rewards.functions=[{function: 'no_such_module:f'}]")


def test_criterion_that_cannot_be_imported_is_refused(refused: Callable[..., str]) -> None:
    assert "algorithm.criterion.kind" in refused("algorithm.criterion.kind=no_such_module:f")


def test_sizes_beyond_the_positions_of_the_model_are_refused(refused: Callable[..., str]) -> None:
    error = refused("rollout.max_new_tokens=500")
    assert "rollout.max_new_tokens=500" in error
    assert "512" in error


def test_incompatible_sizes_are_refused(refused: Callable[..., str]) -> None:
    assert "algorithm.budget=3" in refused("algorithm.budget=3")


def test_error_of_an_unknown_key_suggests_the_nearest(refused: Callable[..., str]) -> None:
    error = refused("learner.learnin_rate=1")
    assert "'learner.learnin_rate' (value 1)" in error
    assert "did you mean 'learner.learning_rate'?" in error


def test_more_gpus_than_available_are_refused(refused: Callable[..., str]) -> None:
    assert "rollout.tensor_parallel_size=2" in refused("rollout.tensor_parallel_size=2")


def test_dry_run_estimates_memory_from_a_config_alone(
    launch: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "vocab_size": 100, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", **sizes, **heads}))
    assert launch.main(["--config", TINY, "--dry-run", f"model.path={tmp_path}", "run.ray_address=auto"]) == 0
    output = capsys.readouterr().out
    assert yaml.safe_load(output)["model"]["path"] == str(tmp_path)
    # Bytes of a token: key and value, 2 layers, 2 heads, 16 numbers, 4 bytes each. The cache has 0.5 GiB.
    assert "#   KV cache: 512 bytes a token, room for 1048576 tokens, or 10922 sequences of 96 at a time" in output
    assert "fits in" not in output  # the memory of a cluster is unknown
    assert launch.main(["--config", TINY, "--dry-run", f"model.path={tmp_path}"]) == 0
    assert "GiB fits in" in capsys.readouterr().out


def test_dry_run_accepts_custom_resources_of_a_cluster(launch: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    named = ("rollout.resources.rollout=1", "learner.resources.learner=1")
    assert launch.main(["--config", str(CONFIGS / "cluster.yaml"), "--dry-run", *named]) == 0
    assert "4 x rollout actor: 1 CPU, 1 GPU, 1 rollout each" in capsys.readouterr().out


def test_dry_run_explains_a_missing_estimate(
    launch: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert launch.main(["--config", TINY, "--dry-run"]) == 0
    assert "#   not estimated: the tiny model is built on first use" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


# The program behaves as tests/unit/cluster/test_joining.py tests for the functions


def test_program_refuses_a_closed_address(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    with closed_address(ray.util.get_node_ip_address()) as closed:
        assert f"cannot be reached at {closed}" in refused(f"run.ray_address={closed}")
        monkeypatch.setenv("RAY_ADDRESS", closed)
        assert f"cannot be reached at {closed}" in refused()


def test_program_refuses_an_address_that_never_answers(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "ANSWER_S", 0.5)
    with silent_address(ray.util.get_node_ip_address()) as silent:
        assert "gave no answer within 0.5 s" in refused(f"run.ray_address={silent}")


@pytest.mark.parametrize("options", [[], ["--resume", "auto", "run.name=a"]])
def test_program_refuses_a_long_tmpdir_before_anything_starts(options: list[str], tmp_path: Path) -> None:
    folder = f"{tmp_path}/{'x' * 110}"
    began = time.time()
    ended = subprocess.run(
        [sys.executable, str(ROOT / "launch/train.py"), f"run.output_dir={tmp_path / 'runs'}", *options],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "TMPDIR": folder, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
    )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"error: TMPDIR='{folder}' has ")
    assert "Traceback" not in ended.stdout
    assert not (tmp_path / "runs").exists()
    assert not [p for p in psutil.process_iter(["create_time", "name"]) if _left(p, began, folder)]


def _left(process: psutil.Process, began: float, folder: str) -> bool:
    try:
        return process.create_time() > began and process.environ().get("TMPDIR") == folder
    except psutil.Error:
        return False
