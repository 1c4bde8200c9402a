"""The door for Python: what importing costs, how functions get their names, what is refused before anything starts."""

from __future__ import annotations

import builtins
import io
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import adagrpo_ray
import adagrpo_ray.training.run
from adagrpo_ray import (
    Callback,
    Config,
    ConfigError,
    EvaluationRecord,
    ExtensionError,
    Group,
    Ladder,
    SamplingParams,
    Stop,
    train,
)
from adagrpo_ray.extensions.given import Given
from adagrpo_ray.runs import Console
from adagrpo_ray.runs.guarded import Guarded
from adagrpo_ray.training.run import _keep_codes

TINY = Path("launch/configs/tiny-cpu.yaml").resolve()


def half(completions: list[str], answer: str, **context: object) -> list[float]:
    return [0.5 for _ in completions]


def whole(completions: list[str], answer: str, **context: object) -> list[float]:
    return [1.0 for _ in completions]


def satisfied(group: Group) -> bool:
    return True


def hotter(group: Group, step: int) -> SamplingParams | None:
    return None


class Patient(Ladder):
    """A ladder of the user's."""


def loaded_by(code: str) -> set[str]:
    """Packages that are loaded once `code` has run."""
    ended = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*{{m.partition('.')[0] for m in sys.modules}})"],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return set(ended.stdout.split())


def test_importing_the_package_loads_next_to_nothing() -> None:
    heavy = {"ray", "torch", "vllm", "deepspeed", "transformers", "datasets", "peft"}
    assert not loaded_by("import adagrpo_ray") & {*heavy, "numpy", "pydantic", "rich"}
    assert not loaded_by("from adagrpo_ray import *") & heavy
    assert not loaded_by("from adagrpo_ray import Config, train\nConfig.load(None, {'run.steps': 3})") & heavy


def test_every_public_name_is_there_and_no_other() -> None:
    assert {name: getattr(adagrpo_ray, name) for name in adagrpo_ray.__all__}.keys() <= set(dir(adagrpo_ray))
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = adagrpo_ray.trian  # type: ignore[attr-defined]


def test_types_travel_with_the_package() -> None:
    assert Path(adagrpo_ray.__file__).with_name("py.typed").exists()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What runs would have been started with; none is."""
    runs: list[dict[str, Any]] = []
    monkeypatch.setattr(
        adagrpo_ray.training.run, "run", lambda config, told, **rest: runs.append({"config": config, **rest})
    )
    return runs


def load(**overrides: object) -> Config:
    return Config.load(TINY, {key.replace("__", "."): value for key, value in overrides.items()})


def test_settings_may_be_given_as_a_mapping_or_as_on_the_command_line(tmp_path: Path) -> None:
    as_mapping = Config.load(TINY, {"run.steps": 3, "run.output_dir": tmp_path / "a: b", "algorithm.triggers": []})
    as_texts = Config.load(TINY, ["run.steps=3", f"run.output_dir='{tmp_path}/a: b'", "algorithm.triggers=[]"])
    assert as_mapping == as_texts
    assert as_mapping.run.output_dir == f"{tmp_path}/a: b"
    with pytest.raises(ConfigError, match=r"unknown key 'run\.stesp' \(value 3\); did you mean 'run\.steps'"):
        Config.load(TINY, {"run.stesp": 3})


def test_reward_functions_that_the_configuration_does_not_name_take_its_place(started: list[dict[str, Any]]) -> None:
    train(load(), reward_functions=[half, whole], name="mine", progress=False)
    (run,) = started
    assert [(f.function, f.weight) for f in run["config"].rewards.functions] == [("half", 1.0), ("whole", 1.0)]
    assert run["config"].run.name == "mine"
    assert run["given"].find("rewards.functions", "half")(["a"], "") == [0.5]


def test_reward_functions_that_it_names_count_as_it_says(started: list[dict[str, Any]]) -> None:
    named = [{"function": "half", "weight": 0.25}, {"function": "exact"}]
    config = load(rewards__functions=named, rewards__correct_by="exact")
    train(config, reward_functions=[half], progress=False)
    assert started[0]["config"] == config


def test_a_criterion_and_a_ladder_are_named_for_what_they_are(started: list[dict[str, Any]]) -> None:
    for ladder, name in ((hotter, "hotter"), (Patient, "Patient")):
        train(load(), criterion=satisfied, ladder=ladder, progress=False)
        algorithm = started[-1]["config"].algorithm
        assert (algorithm.criterion.kind, algorithm.ladder) == ("satisfied", name)
        assert started[-1]["config"].uses_phases


def exact(completions: list[str], **context: object) -> list[float]:
    return []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"reward_functions": [lambda completions, **context: []]}, r"rewards\.functions: .* has no name; give"),
        ({"reward_functions": [half, half]}, "two are called 'half'"),
        ({"reward_functions": [exact]}, "'exact' is the name of one that is built in"),
        (
            {"criterion": satisfied, "grpo": True},
            r"algorithm\.criterion\.kind: .*algorithm\.name=grpo resamples nothing",
        ),
        ({"ladder": hotter, "grpo": True}, r"algorithm\.ladder: .*algorithm\.name=grpo resamples nothing"),
        ({"callbacks": [Callback]}, "callbacks: .*is no Callback"),
        ({"stop": threading.Event()}, r"make one with adagrpo_ray\.Stop\(\)"),
        ({"name": "no/name"}, r"run\.name='no/name'"),
    ],
)
def test_what_cannot_be_given_is_one_error(started: list[dict[str, Any]], arguments: dict[str, Any], told: str) -> None:
    config = load(algorithm__name="grpo" if arguments.pop("grpo", False) else "adagrpo")
    with pytest.raises(ConfigError, match=told):
        train(config, progress=False, **arguments)
    assert not started


def test_a_configuration_that_names_some_of_the_functions_is_refused(started: list[dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match=r"names some of reward_functions, and not \['whole'\]"):
        train(load(rewards__functions=[{"function": "half"}]), reward_functions=[half, whole], progress=False)
    with pytest.raises(ConfigError, match=r"make one with Config\.load"):
        train({"run.steps": 3}, progress=False)  # type: ignore[arg-type]
    assert not started


def test_a_ladder_by_name_is_for_adagrpo() -> None:
    with pytest.raises(ConfigError, match=r"algorithm\.ladder='mine:f' resamples, which algorithm\.name=dapo does not"):
        load(algorithm__ladder="mine:f", algorithm__name="dapo")


def test_code_that_changed_since_a_run_began_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    given = [Given(codes={"rewards.functions: f": code}) for code in ("a", "a", "b", "b")]
    counts = []
    for each in given:
        _keep_codes(str(tmp_path), each, told.append)
        counts.append(len(told))
    assert counts == [0, 0, 1, 1]
    assert told == ["warning: rewards.functions: f is not the code that the run began with"]


def test_a_run_in_a_notebook_is_shown_as_lines_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    class ZMQInteractiveShell:
        """What rich knows a notebook by, for which it makes HTML."""

    monkeypatch.setattr(builtins, "get_ipython", ZMQInteractiveShell, raising=False)
    stream = io.StringIO()
    with Console(2, stream) as console:
        console.phase("checking")
    assert stream.getvalue().endswith("checking\n")


class Failing(Callback):
    def evaluation(self, label: str, record: EvaluationRecord) -> None:
        raise KeyError(label)


def test_an_error_of_a_callback_is_told_as_its_own_with_its_line() -> None:
    record = EvaluationRecord(0, 0.5, {}, 1, 0, 3.0, 0.1)
    with pytest.raises(
        ExtensionError, match=r"callback Failing\.evaluation raised KeyError\('before'\) \(.*test_api\.py, line \d+\)"
    ) as raised:
        Guarded(Failing()).evaluation("before", record)
    assert isinstance(raised.value.__cause__, KeyError)


def test_a_callback_hears_all_that_a_run_tells() -> None:
    told: list[str] = []

    class Everything(Callback):
        def __getattribute__(self, name: str) -> Any:
            return lambda *arguments: told.append(name) if name in hooks else None

    hooks = [name for name in vars(Callback) if not name.startswith("_")]
    guarded = Guarded(Everything())
    for hook in hooks:
        getattr(guarded, hook)(*range(getattr(Callback, hook).__code__.co_argcount - 1))
    assert told == hooks
    assert {"began", "phase", "step", "samples", "evaluation", "summary", "ended"} <= {*hooks}


def test_a_signal_interrupts_and_a_second_one_leaves_at_once() -> None:
    before, stop = signal.getsignal(signal.SIGTERM), Stop()
    with stop.on_signals():
        assert not stop.is_set()
        signal.raise_signal(signal.SIGTERM)
        assert (stop.is_set(), stop.interrupted) == (True, signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_stop_that_was_set_before_can_still_be_interrupted() -> None:
    stop = Stop()
    stop.set()
    with stop.on_signals():
        signal.raise_signal(signal.SIGINT)
    assert stop.interrupted == signal.SIGINT


def test_signals_are_left_alone_in_other_threads() -> None:
    seen: list[object] = []
    before = signal.getsignal(signal.SIGINT)

    def within() -> None:
        with Stop().on_signals():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=within)
    thread.start()
    thread.join()
    assert seen == [before]
