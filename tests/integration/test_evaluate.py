"""launch/evaluate.py as a user starts it, and what it refuses before anything starts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import ray
import torch
from safetensors.torch import load_file, save_file

from adagrpo_ray.config import load_config
from adagrpo_ray.errors import StoppedError
from adagrpo_ray.evaluation.models import locate
from adagrpo_ray.evaluation.results import RESULTS
from adagrpo_ray.evaluation.settings import counting_settings
from adagrpo_ray.evaluation.table import JSON, MARKDOWN
from adagrpo_ray.stop import Stop
from tests.support.held import NAME, Gate, started, until
from tests.support.places import TINY
from tests.support.program import ENDING_S, children, is_engine
from tests.support.scripts import script

PROBLEMS = 10


@pytest.fixture(scope="module")
def program() -> ModuleType:
    return script("evaluate")


def lines(folder: Path) -> list[dict[str, Any]]:
    """The finished problems of a file of results."""
    return [json.loads(line) for line in (folder / RESULTS).read_text().splitlines()[1:]]


def by_model(folder: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for line in lines(folder):
        found.setdefault(line["model"], []).append(line)
    return found


def command(whole: Path, out: Path, *arguments: str) -> list[str]:
    options = ("--adapter", str(whole), "--split", "all", "--limit", str(PROBLEMS), "--out", str(out))
    return [sys.executable, "launch/evaluate.py", *options, *arguments]


def gone(processes: set[psutil.Process]) -> bool:
    return psutil.wait_procs(processes, timeout=ENDING_S)[1] == []


@pytest.fixture(scope="module")
def out(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where the base and the adapter of a finished run were measured on its held-out prompts and others."""
    folder = tmp_path_factory.mktemp("evaluation")
    ended = subprocess.run(command(whole, folder), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder, ended.stdout


def test_figures_are_those_that_the_run_measured_itself(
    program: ModuleType, whole: Path, out: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked for the held-out prompts alone, it finds all of them finished, and starts nothing."""
    folder = shutil.copytree(out[0], tmp_path / "out")  # whose tables it writes anew
    before = (folder / RESULTS).read_bytes()
    assert program.main(["--adapter", str(whole), "--out", str(folder)]) == 0
    told = capsys.readouterr().out
    assert f"all of it is in {folder / RESULTS} already" in told
    assert not ray.is_initialized()
    assert (folder / RESULTS).read_bytes() == before
    evaluations = [json.loads(line) for line in (whole / "evaluations.jsonl").read_text().splitlines()]
    compared = json.loads((folder / JSON).read_text())
    assert compared["problems"] == 4
    assert [model["name"] for model in compared["models"]] == ["base", whole.name]
    for record, model in zip((evaluations[0], evaluations[-1]), compared["models"], strict=True):
        figures = model["metrics"]
        assert figures["accuracy"]["value"] == record["accuracy"]
        assert figures["tokens"]["value"] == record["completions_mean_length"]
        assert {k: v["value"] for k, v in model["accuracy_by_difficulty"].items()} == record["accuracy_by_difficulty"]


def test_every_problem_is_measured_once_with_each_model(out: tuple[Path, str]) -> None:
    folder, told = out
    models = by_model(folder)
    assert len(models) == 2
    ids = [[line["problem"] for line in found] for found in models.values()]
    assert set(ids[0]) == set(ids[1])
    assert [len(found) for found in ids] == [PROBLEMS, PROBLEMS] == [len(set(found)) for found in ids]
    base, adapter = (sorted(found, key=lambda line: str(line["problem"])) for found in models.values())
    texts = [[c["text"] for line in found for c in line["completions"]] for found in (base, adapter)]
    assert texts[0] != texts[1], "the adapter was served"
    for line in (*base, *adapter):
        for completion in line["completions"]:
            right = f"SOLUTION_START_FLAG{line['answer']}SOLUTION_END_FLAG" in completion["text"]
            assert completion["correct"] is right
    assert "\x1b" not in told
    assert f"{PROBLEMS} problems (all), 2 models" in told
    assert f"base  {PROBLEMS}/{PROBLEMS}  accuracy so far" in told
    assert "correct answer anywhere" in told
    assert (folder / MARKDOWN).read_text().count("| setting | value |") == 1


def test_other_settings_are_refused_and_nothing_starts(
    program: ModuleType, whole: Path, out: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = out
    before = (folder / RESULTS).read_bytes()
    assert program.main(["--adapter", str(whole), "--out", str(folder), "-k", "2", "run.seed=5"]) == 2
    captured = capsys.readouterr()
    (error,) = captured.err.splitlines()
    assert error.startswith(f"error: {folder / RESULTS} holds results of other settings: ")
    assert "run.seed was 0 and is 5; evaluation.samples was 1 and is 2" in error
    assert "it may have been trained on prompts that are held out here" in captured.out
    assert not ray.is_initialized()
    assert (folder / RESULTS).read_bytes() == before


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_what_was_finished_stays_and_the_same_command_goes_on(
    whole: Path, out: tuple[Path, str], gate: Gate, tmp_path: Path, number: signal.Signals
) -> None:
    """It ends when four problems are finished and the fifth is being scored."""
    results = tmp_path / RESULTS
    gate.close(results, (1, 4))
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with started(command(whole, tmp_path, *gate.settings), **piped, start_new_session=True) as running:
        gate.wait(running)
        until(lambda: len(results.read_text().splitlines()) == 1 + 4, running)
        processes = children(running)
        assert any(map(is_engine, processes))
        if number == signal.SIGINT:
            os.killpg(running.pid, number)  # as a terminal's Ctrl-C: it goes to every process
        else:
            running.send_signal(number)
        _, errors = running.communicate()
    gate.open()
    assert gone(processes)
    kept = results.read_text().splitlines()
    assert len(kept) == 1 + 4
    if number == signal.SIGKILL:
        with results.open("ab") as file:
            file.write(b'{"model": "base", "sett')  # what a kill in the middle of a line leaves
    else:
        assert running.returncode == 128 + number
        assert f"results are in {results}: give the same command again to go on" in errors

    again = command(whole, tmp_path, *gate.settings)
    ended = subprocess.run(again, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    after = results.read_text().splitlines()
    assert after[: len(kept)] == kept
    assert f"base: 4 of {PROBLEMS} problems were finished before" in ended.stdout
    key = ("model", "problem")
    done = {tuple(line[k] for k in key): line["completions"] for line in lines(tmp_path)}
    assert len(after) == 1 + 2 * PROBLEMS == 1 + len(done)
    assert done == {tuple(line[k] for k in key): line["completions"] for line in lines(out[0])}
    assert as_measured(tmp_path) == as_measured(out[0])


def as_measured(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What both files say, but for the settings that make a program wait."""
    compared = json.loads((folder / JSON).read_text())
    own = ("rewards.functions", f"(the file of {NAME})")
    compared["settings"] = {key: value for key, value in compared["settings"].items() if key not in own}
    return compared, [line for line in (folder / MARKDOWN).read_text().splitlines() if not any(k in line for k in own)]


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_heard(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    def evaluate(options: Any, stop: Stop) -> None:
        assert signal.getsignal(number) == stop._handle  # or it would end the tests
        signal.raise_signal(number)
        assert stop.is_set()
        raise StoppedError("stopped as asked")

    monkeypatch.setattr(program, "evaluate", evaluate)
    assert program.main([]) == 128 + number
    assert capfd.readouterr().err.splitlines() == [
        "stopping: finished problems are kept; once more to leave at once",
        "stopped as asked",
    ]


# --- before anything starts ---


@pytest.fixture
def refused(
    program: ModuleType, tiny_model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., str]:
    """Run with bad input: the one error; nothing was started."""

    def run(*arguments: str) -> str:
        assert program.main(["--out", str(tmp_path / "out"), *arguments]) == 2
        captured = capsys.readouterr()
        (error,) = captured.err.splitlines()
        assert error.startswith("error: ")
        assert "Traceback" not in captured.out
        assert not ray.is_initialized()
        assert not (tmp_path / "out").exists()
        return error

    return run


def adapter_in(whole: Path, folder: Path, **settings: Any) -> Path:
    """A copy of the run's adapter with other settings."""
    shutil.copytree(whole / "adapter", folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    return folder


def test_an_adapter_is_found_in_a_run_a_checkpoint_and_a_peft_folder(whole: Path, tmp_path: Path) -> None:
    step = whole / "checkpoints" / "step-000003"
    named = {
        whole: ("run", whole / "adapter"),
        whole / "adapter": ("run", whole / "adapter"),
        step: ("run/step-000003", step),
        adapter_in(whole, tmp_path / "mine"): ("mine", tmp_path / "mine"),
    }
    for given, (name, folder) in named.items():
        place = locate(str(given))
        assert (place.name, place.folder) == (name, folder)
        assert place.config == (whole / "config.yaml" if whole in (given, *given.parents) else None)
    (tmp_path / "unfinished").mkdir()
    shutil.copytree(whole / "checkpoints", tmp_path / "unfinished" / "checkpoints")
    assert locate(str(tmp_path / "unfinished")).name == "unfinished/step-000004"


def test_an_adapter_that_is_none(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "--adapter='/no/such' is no folder" in refused("--adapter", "/no/such")
    assert "holds no adapter_config.json" in refused("--adapter", str(tmp_path))
    assert "is a URL" in refused("--adapter", "s3://bucket/run")
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").touch()
    assert "holds no adapter_model.safetensors" in refused("--adapter", str(tmp_path))


def test_an_adapter_that_is_damaged(refused: Callable[..., str], whole: Path, tmp_path: Path) -> None:
    folder = adapter_in(whole, tmp_path / "mine")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "is damaged" in refused("--adapter", str(folder))
    step = tmp_path / "checkpoints" / "step-000004"
    shutil.copytree(whole / "checkpoints" / "step-000004", step)
    (step / "adapter.safetensors").write_bytes(b"")
    assert f"the checkpoint {step} is damaged" in refused("--adapter", str(step))


def test_an_adapter_of_another_base_model(refused: Callable[..., str], whole: Path, tmp_path: Path) -> None:
    folder = adapter_in(whole, tmp_path / "mine", base_model_name_or_path="Qwen/Another")
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("q_proj.lora_A.weight"))
    save_file({**tensors, name: torch.zeros(tensors[name].shape[0], 7)}, weights)
    error = refused("--adapter", str(folder))
    assert "does not fit model.path='tiny'" in error
    assert "x 7" in error
    assert "it was made for 'Qwen/Another'" in error
    save_file({key.replace("layers.0.", "layers.40."): value for key, value in tensors.items()}, weights)
    assert "has no linear layer model.layers.40." in refused("--adapter", str(folder))
    save_file({**tensors, "base_model.model.lm_head.weight": torch.zeros(1)}, weights)
    assert "cannot be used: the adapter has tensors other than pairs" in refused("--adapter", str(folder))


def test_a_rank_that_is_not_served(refused: Callable[..., str], whole: Path, tmp_path: Path) -> None:
    folder = adapter_in(whole, tmp_path / "mine", r=512)
    weights = folder / "adapter_model.safetensors"
    wide = {name: t.repeat((32, 1) if "lora_A" in name else (1, 32)) for name, t in load_file(weights).items()}
    save_file(wide, weights)
    error = refused("--adapter", str(folder), "rollout.lora_mode=adapter")
    assert "has r=512" in error
    assert "rollout.lora_mode=merged" in error


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--no-base",), "there is nothing to evaluate"),
        (("data.eval_prompts=0",), "data.eval_prompts leaves no prompt there"),
        (("data.source=none.jsonl",), "data.source='none.jsonl' is no file"),
        (("rewards.functions=[{function: exakt}]",), "did you mean 'exact'"),
        (("-k", "4", "evaluation.sampling.temperature=0"), "evaluation.samples=4 with temperature 0"),
        (("--out", "s3://bucket/out"), "is a URL"),
        (("rollout.tensor_parallel_size=2",), "rollout.tensor_parallel_size=2 needs GPUs"),
    ],
)
def test_other_mistakes(refused: Callable[..., str], arguments: tuple[str, ...], told: str) -> None:
    assert told in refused(*arguments)


@pytest.mark.parametrize("number", ["0", "-1", "x", "1.5"])
def test_a_number_that_is_none(program: ModuleType, capsys: pytest.CaptureFixture[str], number: str) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main([f"--limit={number}"])
    assert ended.value.code == 2
    assert f"argument --limit: '{number}' is no whole number above 0" in capsys.readouterr().err


def test_an_out_folder_that_cannot_be_written(
    program: ModuleType, tiny_model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    assert program.main(["--out", str(tmp_path / "file" / "out")]) == 2
    assert f"error: cannot write {tmp_path}/file/out/{RESULTS}" in capsys.readouterr().err
    assert not ray.is_initialized()


def test_help_tells_every_option_and_setting(program: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main(["--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    for option in ("--adapter", "--no-base", "--config", "--split", "--limit", "-k", "--out", "evaluation.samples"):
        assert option in told


def test_template_kwargs_are_among_what_results_depend_on(tiny_model: Path) -> None:
    config = load_config(TINY, ["data.template_kwargs.enable_thinking=false"])
    assert counting_settings(config, str(tiny_model))["data.template_kwargs.enable_thinking"] is False
