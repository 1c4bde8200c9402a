"""The file of results: finished problems survive the end of a program, and are not evaluated again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from adagrpo_ray.config import Config
from adagrpo_ray.errors import ConfigError, ResourceError
from adagrpo_ray.evaluation.results import RESULTS, CompletionResult, ProblemResult, ResultFile
from adagrpo_ray.evaluation.settings import BASE_WEIGHTS, counting_settings

SETTINGS = {"run.seed": 0, "evaluation.samples": 2, "data.columns.difficulty": None}


def result(problem: str, model: str = "base", settings: str = "") -> ProblemResult:
    completion = CompletionResult("12\u00e9\ud800|\n", 4, False, 1.0, True, False, True)
    return ProblemResult(model, settings, problem, "1+2", "3", "1 digit", "", (completion,) * 2)


def write(folder: Path, *problems: str) -> ResultFile:
    with ResultFile(folder, SETTINGS) as results:
        for problem in problems:
            results.add(result(problem, settings=results.digest))
    return results


def test_results_are_read_back(tmp_path: Path) -> None:
    write(tmp_path, "a", "b")
    with ResultFile(tmp_path, SETTINGS) as results:
        assert dict(results.of("base")) == {name: result(name, settings=results.digest) for name in ("a", "b")}
        assert results.of("another digest") == {}


def test_truncated_file_is_continued_after_its_complete_lines(tmp_path: Path) -> None:
    write(tmp_path, "a", "b")
    path = tmp_path / RESULTS
    data = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(data) if byte == ord("\n")]
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        whole = max(0, sum(end <= cut for end in ends) - 1)  # the first line holds the settings
        with ResultFile(tmp_path, SETTINGS) as results:
            assert list(results.of("base")) == ["a", "b"][:whole], cut
            results.add(result("c", settings=results.digest))
        with ResultFile(tmp_path, SETTINGS) as results:
            assert list(results.of("base")) == [*["a", "b"][:whole], "c"]


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    write(tmp_path, "a")
    before = (tmp_path / RESULTS).read_bytes()
    with pytest.raises(ConfigError) as refused:
        ResultFile(tmp_path, {**SETTINGS, "evaluation.samples": 4, "new": 1})
    message = str(refused.value)
    assert message.startswith(f"{tmp_path / RESULTS} has results of other settings: ")
    assert "evaluation.samples was 2 and is 4" in message
    assert "new was 'nothing' and is 1" in message
    assert "run.seed" not in message
    assert "--out" in message
    assert (tmp_path / RESULTS).read_bytes() == before
    with ResultFile(tmp_path, SETTINGS) as results:  # it is not locked
        assert list(results.of("base")) == ["a"]


def test_second_program_cannot_open_the_file(tmp_path: Path) -> None:
    with ResultFile(tmp_path, SETTINGS), pytest.raises(ConfigError, match="another program"):
        ResultFile(tmp_path, SETTINGS)


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b"\xff", b'{"model": "base"}', b'{"settings": 1}', b'{"completions": 3}']
)
def test_error_names_a_damaged_line(tmp_path: Path, line: bytes) -> None:
    write(tmp_path, "a")
    path = tmp_path / RESULTS
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(ResourceError, match=f"{RESULTS}, line 3 cannot be read"):
        ResultFile(tmp_path, SETTINGS)


def test_error_names_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=f"cannot write {tmp_path}/file/out/{RESULTS} .*--out"):
        ResultFile(tmp_path / "file" / "out", SETTINGS)


def test_failed_write_leaves_no_partial_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with ResultFile(tmp_path, SETTINGS) as results:
        results.add(result("a", settings=results.digest))
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(ResourceError, match="No space left"):
            results.add(result("b", settings=results.digest))
        assert list(results.of("base")) == ["a"]
        monkeypatch.undo()
        results.add(result("c", settings=results.digest))
    with ResultFile(tmp_path, SETTINGS) as results:
        assert list(results.of("base")) == ["a", "c"]


def counting(folder: Path, *overrides: str) -> dict[str, object]:
    return counting_settings(Config.load("launch/configs/tiny-cpu.yaml", overrides), str(folder))


def weights(folder: Path, last: float = 0.0) -> None:
    tensor = np.zeros(1_000_000, np.float32)
    tensor[-1] = last
    save_file({"weight": tensor}, folder / "model.safetensors")


def test_counting_settings_are_those_that_results_depend_on(tmp_path: Path) -> None:
    weights(tmp_path)
    before = counting(tmp_path)
    assert json.loads(json.dumps(before)) == before
    free = ("rollout.actors=3", "data.eval_prompts=7", "algorithm.group_size=8", "learner.ranks=2", "run.steps=3")
    assert counting(tmp_path, *free) == before
    for override in (
        "run.seed=1",
        "evaluation.sampling.top_p=0.5",
        "rollout.max_new_tokens=32",
        "model.dtype=bfloat16",
    ):
        assert counting(tmp_path, override) != before
    weights(tmp_path, last=1.0)
    assert {key for key, value in counting(tmp_path).items() if value != before[key]} == {BASE_WEIGHTS}


def test_changed_reward_function_changes_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    weights(tmp_path)
    (tmp_path / "counted_reward.py").write_text("def score(completions, answer, **context): return [0.0]\n")
    own = "rewards.functions=[{function: 'counted_reward:score'}]"
    before = counting(tmp_path, own)
    (tmp_path / "counted_reward.py").write_text("def score(completions, answer, **context): return [1.0]\n")
    assert [key for key, value in counting(tmp_path, own).items() if value != before[key]] == [
        "(the file of counted_reward:score)"
    ]
