"""Invalid options of the commands: one error before anything starts, exit status 2, no traceback."""

from __future__ import annotations

import io
import os
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from adagrpo_ray.config import Config
from adagrpo_ray.errors import ConfigError, ResourceError
from adagrpo_ray.storage.cache import cache_folder, state_folder
from tests.support.scripts import script


@pytest.fixture(scope="module")
def commands() -> dict[str, ModuleType]:
    return {name: script(name) for name in ("train", "evaluate", "report", "export", "ui", "submit")}


@pytest.fixture
def error_of(
    commands: dict[str, ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., str]:
    """Runs a command with invalid options in an empty folder: the only error."""

    def run(name: str, *arguments: str) -> str:
        code = commands[name].main(list(arguments))
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert code == 2
        assert line.startswith("error: ")
        return line

    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    return run


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["train", "--config", ""], "--config is empty"),
        (["train", "--config", "."], "cannot read the configuration ."),
        (["train", "--resume", ""], "--resume is empty"),
        (["evaluate", "--out", " "], "--out is empty"),
        (["evaluate", "--adapter", "a", "--adapter", ""], "--adapter is empty"),
        (["evaluate", "--benchmark", ""], "--benchmark is empty"),
        (["report", ""], "RUNS is empty"),
        (["report", "file", "--out", ""], "--out is empty"),
        (["export", "", "--out", "x"], "SOURCE is empty"),
        (["export", "file", "--out", "x", "--base", ""], "--base is empty"),
        (["ui", "--host", ""], "--host is empty"),
        (["ui", "--runs", ""], "--runs is empty"),
        (["ui", "--runs", "file"], "--runs file is a file"),
        (["submit", "--entrypoint-cpus", "nan", "--", "run.output_dir=/x"], "--entrypoint-cpus nan"),
        (["submit", "--entrypoint-cpus=-1", "--", "run.output_dir=/x"], "--entrypoint-cpus -1"),
        (["submit", "--stop-wait=-3", "--", "run.output_dir=/x"], "--stop-wait -3"),
        (["submit", "--fetch", "file", "--", "run.output_dir=/x"], "--fetch file cannot be created"),
        (["submit", "--fetch", "file/inner", "--", "run.output_dir=/x"], "--fetch file/inner cannot be created"),
        (["submit", "--name", "", "--", "run.output_dir=/x"], "--name is empty"),
        (["submit", "--env", "A=1", "--env", "A=2", "--", "run.output_dir=/x"], "--env names a variable twice"),
        (["submit", "--address", "", "--", "run.output_dir=/x"], "--address is empty"),
        (["submit", "--address", "http://", "--", "run.output_dir=/x"], "--address 'http://' is not a URL"),
        (["submit", "--address", "http://127.0.0.1:abc", "--", "run.output_dir=/x"], "is not a URL"),
    ],
)
def test_invalid_options_are_refused(error_of: Callable[..., str], command: list[str], message: str) -> None:
    assert message in error_of(*command)


def test_benchmarks_are_names_with_or_without_a_copy(commands: dict[str, ModuleType]) -> None:
    evaluate = commands["evaluate"]
    config = Config.load(None, {"evaluation.benchmarks": [{"name": "amc23", "path": "amc.jsonl", "limit": 3}]})
    given = ["--benchmark", "gsm8k,math500=a.jsonl", "--benchmark", "amc23"]
    options = evaluate.parse([*given, "--limit", "9", "-k", "2"])
    assert [(one.name, one.path, one.limit, one.samples) for one in evaluate.benchmarks(options, config)] == [
        ("gsm8k", None, 9, 2),
        ("math500", "a.jsonl", 9, 2),
        ("amc23", "amc.jsonl", 9, 2),
    ]
    assert evaluate.benchmarks(evaluate.parse([]), config) == (), "those of the run are evaluated during training"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmark", "gsm8k,math50"], "--benchmark gsm8k,math50: evaluation.benchmarks.1.name='math50': "),
        (["--benchmark", "gsm8k,math50"], "did you mean 'math500'?"),
        (["--benchmark", "gsm8k", "--benchmark", "gsm8k=x.jsonl"], "names a benchmark twice"),
        (
            ["--benchmark", "gsm8k="],
            "--benchmark gsm8k=: evaluation.benchmarks.0.path='': string should have",
        ),
        (["--benchmark", "gsm8k", "--split", "all"], "--split all selects prompts of the data"),
    ],
)
def test_invalid_benchmarks_are_refused(commands: dict[str, ModuleType], arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        commands["evaluate"].benchmarks(commands["evaluate"].parse(arguments), Config())


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 2}', '{"a": NaN}', '{"a": 0}', '{"a": -1}', "[1]", "1", "x", '{"a": "b"}']
)
def test_invalid_resources_are_refused(error_of: Callable[..., str], text: str) -> None:
    assert "is not a JSON object of numbers above 0" in error_of(
        "submit", "--entrypoint-resources", text, "--", "run.output_dir=/x"
    )


def test_dashboard_that_never_answers_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        submit = script("submit")
        monkeypatch.setattr(submit, "ANSWER_S", 0.5)
        with pytest.raises(ResourceError, match="timed out"), submit.cluster_errors(address):
            submit.connect(address)


def test_options_of_ui_may_be_mixed_with_settings() -> None:
    options = script("ui").parse(["run.steps=1", "--port", "0", "run.seed=2"])
    assert (options.overrides, options.port) == (["run.steps=1", "run.seed=2"], 0)


def test_characters_that_the_terminal_lacks_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert script("ending").ended(lambda: print("é \ud800", flush=True)) == 0
    assert raw.getvalue() == b"\\xe9 \\ud800\n"


def test_cache_and_state_folders_need_a_home_or_an_absolute_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert cache_folder() == tmp_path / ".cache" / "adagrpo_ray"
    assert state_folder() == tmp_path / "state" / "adagrpo_ray"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(ConfigError, match="set HOME or XDG_CACHE_HOME"):
        cache_folder()


def test_user_without_a_name_can_submit(monkeypatch: pytest.MonkeyPatch) -> None:
    submit = script("submit")

    def nameless() -> str:
        raise KeyError(f"getpwuid(): uid not found: {os.getuid()}")

    monkeypatch.setattr(submit.getpass, "getuser", nameless)
    assert submit.prepare(submit.parse(["--", "run.output_dir=/x"])).metadata["user"] == "unknown"
