"""launch/evaluate.py as a program: evaluations, resumption after a signal, and arguments that are refused."""

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

from adagrpo_ray.config import Config
from adagrpo_ray.errors import StoppedError
from adagrpo_ray.evaluation import overview
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
    """The results and the output of an evaluation of a finished run's base and adapter, on all of its prompts."""
    folder = tmp_path_factory.mktemp("evaluation")
    ended = subprocess.run(command(whole, folder), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder, ended.stdout


@pytest.mark.long
def test_metrics_equal_those_of_the_evaluations_in_the_run(
    program: ModuleType, whole: Path, out: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All held-out prompts are finished already, so that nothing is started."""
    folder = shutil.copytree(out[0], tmp_path / "out")  # the tables in it are overwritten
    before = (folder / RESULTS).read_bytes()
    assert program.main(["--adapter", str(whole), "--out", str(folder)]) == 0
    output = capsys.readouterr().out
    assert f"{folder / RESULTS} has all results already" in output
    assert not ray.is_initialized()
    assert (folder / RESULTS).read_bytes() == before
    evaluations = [json.loads(line) for line in (whole / "evaluations.jsonl").read_text().splitlines()]
    compared = json.loads((folder / JSON).read_text())
    assert compared["problems"] == 4
    assert [model["name"] for model in compared["models"]] == ["base", whole.name]
    for record, model in zip((evaluations[0], evaluations[-1]), compared["models"], strict=True):
        metrics = model["metrics"]
        assert metrics["accuracy"]["value"] == record["accuracy"]
        assert metrics["tokens"]["value"] == record["completions_mean_length"]
        assert {k: v["value"] for k, v in model["accuracy_by_difficulty"].items()} == record["accuracy_by_difficulty"]


@pytest.mark.long
def test_each_problem_is_evaluated_once_with_each_model(out: tuple[Path, str]) -> None:
    folder, output = out
    models = by_model(folder)
    assert len(models) == 2
    ids = [[line["problem"] for line in found] for found in models.values()]
    assert set(ids[0]) == set(ids[1])
    assert [len(found) for found in ids] == [PROBLEMS, PROBLEMS] == [len(set(found)) for found in ids]
    base, adapter = (sorted(found, key=lambda line: str(line["problem"])) for found in models.values())
    for line in (*base, *adapter):
        for completion in line["completions"]:
            correct = f"SOLUTION_START_FLAG{line['answer']}SOLUTION_END_FLAG" in completion["text"]
            assert completion["correct"] is correct
    assert "\x1b" not in output
    assert f"{PROBLEMS} problems (all), 2 models" in output
    assert f"base  {PROBLEMS}/{PROBLEMS}  accuracy so far" in output
    assert "correct answer anywhere" in output
    assert (folder / MARKDOWN).read_text().count("| setting | value |") == 1


@pytest.mark.long
def test_results_of_other_settings_are_refused_before_anything_starts(
    program: ModuleType, whole: Path, out: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = out
    before = (folder / RESULTS).read_bytes()
    assert program.main(["--adapter", str(whole), "--out", str(folder), "-k", "2", "run.seed=5"]) == 2
    captured = capsys.readouterr()
    (error,) = captured.err.splitlines()
    assert error.startswith(f"error: {folder / RESULTS} has results of other settings: ")
    assert "run.seed was 0 and is 5; evaluation.samples was 1 and is 2" in error
    assert "it may have been trained on prompts that are held out here" in captured.out
    assert not ray.is_initialized()
    assert (folder / RESULTS).read_bytes() == before


def with_strong_adapter(run: Path, folder: Path) -> Path:
    """A copy of a run in `folder` whose adapter changes the model's answers; four steps of training may not."""
    shutil.copytree(run, folder)
    file = folder / "adapter" / "adapter_model.safetensors"
    save_file({name: 30 * tensor for name, tensor in load_file(file).items()}, file)
    return folder


@pytest.mark.long
def test_benchmarks_are_evaluated_side_by_side_and_continued(whole: Path, tmp_path: Path) -> None:
    """The first command evaluates one benchmark, the second one adds another."""
    adapter = with_strong_adapter(whole, tmp_path / "run")
    sums = [{"question": f"{i}+{i}?", "answer": f"#### {2 * i}"} for i in range(9)]
    for name, rows in (("gsm8k", sums), ("amc23", [{"question": row["question"], "answer": "7"} for row in sums])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def evaluated(*names: str) -> str:
        copies = ",".join(f"{name}={tmp_path / name}.jsonl" for name in names)
        options = ("--adapter", str(adapter), "--benchmark", copies, "--limit", "3", "-k", "2", "--out", str(out))
        command = [sys.executable, "launch/evaluate.py", *options, "rollout.max_new_tokens=12"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    out = tmp_path / "out"
    evaluated("gsm8k")
    before = (out / "gsm8k" / RESULTS).read_bytes()
    output = evaluated("gsm8k", "amc23")
    assert (out / "gsm8k" / RESULTS).read_bytes() == before
    assert "benchmark amc23, 3 of 9 problems with 2 completions each" in output
    assert "amc23 (avg@2, 3 problems)" in output
    for name in ("gsm8k", "amc23"):
        models = by_model(out / name)
        assert [len(found) for found in models.values()] == [3, 3]
        texts = [{c["text"] for line in found for c in line["completions"]} for found in models.values()]
        assert texts[0] != texts[1], "the adapter was not applied"
        for line in (line for found in models.values() for line in found):
            assert line["problem"].startswith(f"{name}/")
            assert line["prompt"].endswith("put your final answer within \\boxed{}.")
            assert [completion["extracted"] for completion in line["completions"]] == [None, None]
        assert json.loads((out / name / JSON).read_text())["samples"] == 2
    assert list(json.loads((out / overview.JSON).read_text())) == ["gsm8k", "amc23"]


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_same_command_continues_after_a_signal(
    whole: Path, out: tuple[Path, str], gate: Gate, tmp_path: Path, number: signal.Signals
) -> None:
    """The signal comes when four problems are finished and the fifth is being scored."""
    results = tmp_path / RESULTS
    gate.close(results, (1, 4))
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with started(command(whole, tmp_path, *gate.settings), **piped, start_new_session=True) as running:
        gate.wait(running)
        until(lambda: len(results.read_text().splitlines()) == 1 + 4, running)
        processes = children(running)
        assert any(map(is_engine, processes))
        if number == signal.SIGINT:
            os.killpg(running.pid, number)  # Ctrl-C in a terminal goes to every process of the group
        else:
            running.send_signal(number)
        _, errors = running.communicate()
    gate.open()
    assert gone(processes)
    kept = results.read_text().splitlines()
    assert len(kept) == 1 + 4
    if number == signal.SIGKILL:
        with results.open("ab") as file:
            file.write(b'{"model": "base", "sett')  # an incomplete line, as after a kill during a write
    else:
        assert running.returncode == 128 + number
        assert f"results are in {results}: give the same command again to continue" in errors

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
    assert tables_of(tmp_path) == tables_of(out[0])


def tables_of(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The contents of the JSON and Markdown tables, without the settings that make a program wait."""
    compared = json.loads((folder / JSON).read_text())
    own = ("rewards.functions", f"(the file of {NAME})")
    compared["settings"] = {key: value for key, value in compared["settings"].items() if key not in own}
    return compared, [line for line in (folder / MARKDOWN).read_text().splitlines() if not any(k in line for k in own)]


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_the_evaluation(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    def evaluate(options: Any, stop: Stop) -> None:
        assert signal.getsignal(number) == stop._handle  # otherwise the signal would end the tests
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
    """Runs the program with invalid arguments: the only error. Checks that nothing was started."""

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


def test_adapter_is_found_in_a_run_a_checkpoint_and_a_peft_folder(whole: Path, tmp_path: Path) -> None:
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


def test_path_without_an_adapter_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "--adapter='/no/such' is no folder" in refused("--adapter", "/no/such")
    assert "holds no adapter_config.json" in refused("--adapter", str(tmp_path))
    assert "is a URL" in refused("--adapter", "s3://bucket/run")
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").touch()
    assert "holds no adapter_model.safetensors" in refused("--adapter", str(tmp_path))


def test_damaged_adapter_is_refused(refused: Callable[..., str], whole: Path, tmp_path: Path) -> None:
    folder = adapter_in(whole, tmp_path / "mine")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "is damaged" in refused("--adapter", str(folder))
    step = tmp_path / "checkpoints" / "step-000004"
    shutil.copytree(whole / "checkpoints" / "step-000004", step)
    (step / "adapter.safetensors").write_bytes(b"")
    assert f"the checkpoint {step} is damaged" in refused("--adapter", str(step))


def test_adapter_of_another_base_model_is_refused(refused: Callable[..., str], whole: Path, tmp_path: Path) -> None:
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


def test_rank_that_vllm_cannot_serve_is_refused(refused: Callable[..., str], whole: Path, tmp_path: Path) -> None:
    folder = adapter_in(whole, tmp_path / "mine", r=512)
    weights = folder / "adapter_model.safetensors"
    wide = {name: t.repeat((32, 1) if "lora_A" in name else (1, 32)) for name, t in load_file(weights).items()}
    save_file(wide, weights)
    error = refused("--adapter", str(folder), "rollout.lora_mode=adapter")
    assert "has r=512" in error
    assert "rollout.lora_mode=merged" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--no-base",), "there is nothing to evaluate"),
        (("data.eval_prompts=0",), "data.eval_prompts leaves no prompt there"),
        (("data.source=none.jsonl",), "data.source='none.jsonl' is no file"),
        (("rewards.functions=[{function: exakt}]",), "did you mean 'exact'"),
        (("-k", "4", "evaluation.sampling.temperature=0"), "evaluation.samples=4 with temperature 0"),
        (("--benchmark", "gsm8k=none.jsonl"), "benchmark gsm8k from 'none.jsonl': there is no such file or folder"),
        (("--benchmark", "gsm8"), "did you mean 'gsm8k'?"),
        (("--out", "s3://bucket/out"), "is a URL"),
        (("rollout.tensor_parallel_size=2",), "rollout.tensor_parallel_size=2 needs GPUs"),
    ],
)
def test_other_invalid_arguments_are_refused(
    refused: Callable[..., str], arguments: tuple[str, ...], message: str
) -> None:
    assert message in refused(*arguments)


@pytest.mark.parametrize("number", ["0", "-1", "x", "1.5"])
def test_invalid_number_is_refused(program: ModuleType, capsys: pytest.CaptureFixture[str], number: str) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main([f"--limit={number}"])
    assert ended.value.code == 2
    assert f"argument --limit: '{number}' is not a whole number above 0" in capsys.readouterr().err


def test_out_folder_that_cannot_be_written_is_refused(
    program: ModuleType, tiny_model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    assert program.main(["--out", str(tmp_path / "file" / "out")]) == 2
    assert f"error: cannot write {tmp_path}/file/out/{RESULTS}" in capsys.readouterr().err
    assert not ray.is_initialized()


def test_help_lists_every_option_and_setting(program: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main(["--help"])
    assert ended.value.code == 0
    output = capsys.readouterr().out
    options = ("--adapter", "--no-base", "--config", "--split", "--benchmark", "--limit", "-k", "--out")
    for option in (*options, "evaluation.samples"):
        assert option in output


def test_results_depend_on_template_kwargs(tiny_model: Path) -> None:
    config = Config.load(TINY, ["data.template_kwargs.enable_thinking=false"])
    assert counting_settings(config, str(tiny_model))["data.template_kwargs.enable_thinking"] is False
