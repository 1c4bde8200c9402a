"""The entry from Python: the cost of the import, the names of functions, and errors before the start."""

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
from adagrpo_ray.runs.observer import Guarded
from adagrpo_ray.training.run import _check_codes
from tests.support.places import TINY
from tests.support.tools import add


def half(completions: list[str], answer: str, **context: object) -> list[float]:
    return [0.5 for _ in completions]


def whole(completions: list[str], answer: str, **context: object) -> list[float]:
    return [1.0 for _ in completions]


def satisfied(group: Group) -> bool:
    return True


def hotter(group: Group, step: int) -> SamplingParams | None:
    return None


class Patient(Ladder):
    """A ladder of the user."""


def loaded_by(*codes: str) -> list[set[str]]:
    """The packages that are loaded after each of `codes`, which run one after the other in a new process."""
    show = "import sys; print(*{m.partition('.')[0] for m in sys.modules})"
    program = "\n".join(line for code in codes for line in (code, show))
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return [set(line.split()) for line in ended.stdout.splitlines()]


def test_importing_the_package_does_not_load_ray_or_torch() -> None:
    heavy = {"ray", "torch", "vllm", "deepspeed", "transformers", "datasets", "peft"}
    package, names, config = loaded_by(
        "import adagrpo_ray",
        "from adagrpo_ray import *",
        "from adagrpo_ray import Config, train; Config.load(None, {'run.steps': 3})",
    )
    assert not package & {*heavy, "numpy", "pydantic", "rich"}
    assert not names & heavy
    assert not config & heavy


def test_all_names_the_public_names() -> None:
    assert {name: getattr(adagrpo_ray, name) for name in adagrpo_ray.__all__}.keys() <= set(dir(adagrpo_ray))
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = adagrpo_ray.trian  # type: ignore[attr-defined]


def test_the_package_has_types() -> None:
    assert Path(adagrpo_ray.__file__).with_name("py.typed").exists()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Record the arguments of runs instead of starting them."""
    runs: list[dict[str, Any]] = []
    monkeypatch.setattr(
        adagrpo_ray.training.run, "run", lambda config, observer, **rest: runs.append({"config": config, **rest})
    )
    return runs


def load(**overrides: object) -> Config:
    return Config.load(TINY, {key.replace("__", "."): value for key, value in overrides.items()})


def test_settings_may_be_a_mapping_or_assignments(tmp_path: Path) -> None:
    as_mapping = Config.load(TINY, {"run.steps": 3, "run.output_dir": tmp_path / "a: b", "algorithm.triggers": []})
    as_texts = Config.load(TINY, ["run.steps=3", f"run.output_dir='{tmp_path}/a: b'", "algorithm.triggers=[]"])
    assert as_mapping == as_texts
    assert as_mapping.run.output_dir == f"{tmp_path}/a: b"
    with pytest.raises(ConfigError, match=r"unknown key 'run\.stesp' \(value 3\); did you mean 'run\.steps'"):
        Config.load(TINY, {"run.stesp": 3})


def test_reward_functions_replace_those_of_the_configuration(started: list[dict[str, Any]]) -> None:
    train(load(), reward_functions=[half, whole], name="mine", progress=False)
    (run,) = started
    assert [(f.function, f.weight) for f in run["config"].rewards.functions] == [("half", 1.0), ("whole", 1.0)]
    assert run["config"].run.name == "mine"
    assert run["given"].find("rewards.functions", "half")(["a"], "") == [0.5]


def test_reward_functions_have_the_weights_of_the_configuration(started: list[dict[str, Any]]) -> None:
    named = [{"function": "half", "weight": 0.25}, {"function": "exact"}]
    config = load(rewards__functions=named, rewards__correct_by="exact")
    train(config, reward_functions=[half], progress=False)
    assert started[0]["config"] == config


def test_judges_stay_next_to_functions_that_the_configuration_names(started: list[dict[str, Any]]) -> None:
    judge = {"name": "helpful", "model": "m", "base_url": "http://x/v1", "template": "{completion}"}
    config = load(rewards__functions=[{"function": "half"}, {"judge": judge}])
    train(config, reward_functions=[half], progress=False)
    with pytest.raises(ConfigError, match=r"has helpful and none of reward_functions \['whole'\].*name them there too"):
        train(load(rewards__functions=[{"judge": judge}]), reward_functions=[whole], progress=False)
    assert started[0]["config"].rewards.names == ["half", "helpful"]


def test_environment_and_tools_are_taken_as_they_are(started: list[dict[str, Any]]) -> None:
    train(load(), environment=Countdown, tools=[add], progress=False)
    (run,) = started
    environment = run["config"].environment
    assert (environment.name, environment.tools, environment.active) == ("Countdown", ("add",), True)
    assert run["given"].find("environment.name", "Countdown")().step({}) == ([], 0.0, True, {})
    assert run["given"].find("environment.tools", "add")(2, 3) == 5
    train(load(environment__tools=["m:other"]), tools=[add], progress=False)
    assert started[-1]["config"].environment.tools == ("add",)


def test_criterion_and_ladder_are_named_by_their_function(started: list[dict[str, Any]]) -> None:
    for ladder, name in ((hotter, "hotter"), (Patient, "Patient")):
        train(load(), criterion=satisfied, ladder=ladder, progress=False)
        algorithm = started[-1]["config"].algorithm
        assert (algorithm.criterion.kind, algorithm.ladder) == ("satisfied", name)
        assert started[-1]["config"].uses_phases


def exact(completions: list[str], **context: object) -> list[float]:
    return []


class Countdown:
    def reset(self, row: object) -> None: ...

    def step(self, message: object) -> tuple[list[Any], float, bool, dict[str, Any]]:
        return [], 0.0, True, {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reward_functions": [lambda completions, **context: []]}, r"rewards\.functions: .* has no name; give"),
        ({"reward_functions": [half, half]}, "two have the name 'half'"),
        ({"reward_functions": [exact]}, "'exact' is the name of a built-in one"),
        (
            {"criterion": satisfied, "grpo": True},
            r"algorithm\.criterion\.kind: .*algorithm\.name=grpo does not resample",
        ),
        ({"ladder": hotter, "grpo": True}, r"algorithm\.ladder: .*algorithm\.name=grpo does not resample"),
        ({"callbacks": [Callback]}, "callbacks: .*is not a Callback"),
        ({"stop": threading.Event()}, r"make one with adagrpo_ray\.Stop\(\)"),
        ({"name": "no/name"}, r"run\.name='no/name'"),
    ],
)
def test_an_argument_that_cannot_be_used_is_a_config_error(
    started: list[dict[str, Any]], arguments: dict[str, Any], message: str
) -> None:
    config = load(algorithm__name="grpo" if arguments.pop("grpo", False) else "adagrpo")
    with pytest.raises(ConfigError, match=message):
        train(config, progress=False, **arguments)
    assert not started


def test_a_configuration_that_names_some_of_the_functions_is_refused(started: list[dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match=r"names some of reward_functions, but not \['whole'\]"):
        train(load(rewards__functions=[{"function": "half"}]), reward_functions=[half, whole], progress=False)
    with pytest.raises(ConfigError, match=r"make one with Config\.load"):
        train({"run.steps": 3}, progress=False)  # type: ignore[arg-type]
    assert not started


def test_a_ladder_needs_adagrpo() -> None:
    with pytest.raises(ConfigError, match=r"algorithm\.ladder='mine:f' resamples, which algorithm\.name=dapo does not"):
        load(algorithm__ladder="mine:f", algorithm__name="dapo")


def test_a_function_that_changed_since_the_run_began_is_a_warning(tmp_path: Path) -> None:
    notices: list[str] = []
    given = [Given(codes={"rewards.functions: f": code}) for code in ("a", "a", "b", "b")]
    counts = []
    for each in given:
        _check_codes(str(tmp_path), each, notices.append)
        counts.append(len(notices))
    assert counts == [0, 0, 1, 1]
    assert notices == ["warning: rewards.functions: f is not the code that the run began with"]


def test_the_console_prints_plain_lines_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    class ZMQInteractiveShell:
        """The class by which rich detects a notebook, for which it makes HTML."""

    monkeypatch.setattr(builtins, "get_ipython", ZMQInteractiveShell, raising=False)
    stream = io.StringIO()
    with Console(2, stream) as console:
        console.phase("checking")
    assert stream.getvalue().endswith("checking\n")


class Failing(Callback):
    def evaluation(self, label: str, record: EvaluationRecord) -> None:
        raise KeyError(label)


def test_an_error_of_a_callback_names_it_and_its_line() -> None:
    record = EvaluationRecord(0, 0.5, {}, 1, 0, 3.0, 0.1)
    with pytest.raises(
        ExtensionError, match=r"callback Failing\.evaluation raised KeyError\('before'\) \(.*test_api\.py, line \d+\)"
    ) as raised:
        Guarded(Failing()).evaluation("before", record)
    assert isinstance(raised.value.__cause__, KeyError)


def test_a_callback_receives_all_events() -> None:
    events: list[str] = []

    class Everything(Callback):
        def __getattribute__(self, name: str) -> Any:
            return lambda *arguments: events.append(name) if name in hooks else None

    hooks = [name for name in vars(Callback) if not name.startswith("_")]
    guarded = Guarded(Everything())
    for hook in hooks:
        getattr(guarded, hook)(*range(getattr(Callback, hook).__code__.co_argcount - 1))
    assert events == hooks
    assert {"began", "phase", "step", "samples", "evaluation", "summary", "ended"} <= {*hooks}


def test_a_signal_interrupts_and_a_second_one_exits_at_once() -> None:
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


def test_signal_handlers_are_not_set_in_other_threads() -> None:
    seen: list[object] = []
    before = signal.getsignal(signal.SIGINT)

    def within() -> None:
        with Stop().on_signals():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=within)
    thread.start()
    thread.join()
    assert seen == [before]
