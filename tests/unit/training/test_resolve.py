"""Settings that a run decides before it starts, and its config.yaml; checks and training are replaced here."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from adagrpo_ray.checkpoint.resume import Past
from adagrpo_ray.cluster.placement import Hardware, place
from adagrpo_ray.config import Config
from adagrpo_ray.config.fixed import fixed_settings
from adagrpo_ray.data.prompts import PromptSets
from adagrpo_ray.errors import ResourceError
from adagrpo_ray.runs import Observer
from adagrpo_ray.runs.history import Mark
from adagrpo_ray.stop import Stop
from adagrpo_ray.training.preflight import Inputs
from adagrpo_ray.training.resolve import ResolvedRun, resolve
from adagrpo_ray.training.run import run

NO_GPU, SMALL_GPU, LARGE_GPU = Hardware(8, 0), Hardware(8, 1), Hardware(8, 1)
TWO_GPUS = Hardware(8, 2)


class Machine:
    """The place of runs: this machine with other hardware, or a cluster at the address `joined`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hardware, self.joined, self.ran = NO_GPU, None, list[Config]()
        monkeypatch.setattr("adagrpo_ray.training.resolve.check", self.check)
        monkeypatch.setattr("adagrpo_ray.training.memory.read_shape", lambda config: SimpleNamespace(model_type="tiny"))
        monkeypatch.setattr("adagrpo_ray.training.memory.gpu_memory", lambda: 0)
        monkeypatch.setattr("adagrpo_ray.training.memory.takes_turns", lambda *_, **__: self.hardware is SMALL_GPU)
        monkeypatch.setattr("adagrpo_ray.training.run.place_and_train", self.train)

    def check(self, config: Config, *_: Any, **__: Any) -> Inputs:
        ours = None if self.joined else place(config.rollout, config.learner, self.hardware, ours=True)
        return Inputs("tiny", PromptSets((), (), {}), 128, joined=self.joined, placement=ours)

    def train(self, config: Config, *_: Any) -> None:
        self.ran.append(config)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    return Machine(monkeypatch)


def settings(folder: Path, *overrides: str) -> Config:
    return Config.load(None, [f"run.output_dir={folder}", "run.report=false", *overrides])


def resolved(config: Config, resume: str | None = None) -> ResolvedRun:
    return resolve(config, lambda text: None, name="tiny", resume=resume, stop=Stop())


def test_open_settings_are_decided(machine: Machine, tmp_path: Path) -> None:
    given = settings(tmp_path)
    ready = resolved(given)
    name, sleep = ready.config.run.name, ready.config.rollout.sleep
    assert re.fullmatch(r"tiny-\d{8}-\d{6}", name or "")
    assert sleep is False
    assert ready.decided == {"run.name": name, "rollout.sleep": sleep}
    assert ready.home == f"{tmp_path}/{name}"
    assert list(tmp_path.iterdir()) == []  # nothing is written yet
    changes = {"run": given.run.model_copy(update={"name": name}), "rollout": ready.config.rollout}
    assert ready.config == given.model_copy(update=changes)


def test_given_settings_are_not_decided(machine: Machine, tmp_path: Path) -> None:
    given = settings(tmp_path, "run.name=mine", "rollout.sleep=false")
    ready = resolved(given)
    assert (ready.config, ready.decided, ready.home) == (given, {}, f"{tmp_path}/mine")


@pytest.mark.parametrize(
    ("hardware", "joined", "sleep"),
    [
        (NO_GPU, None, False),
        (SMALL_GPU, None, True),
        (LARGE_GPU, None, False),
        (TWO_GPUS, None, False),
        (SMALL_GPU, "10.0.0.2:6379", False),  # the GPU of a cluster is another machine's
    ],
)
def test_config_yaml_has_the_resolved_settings(
    machine: Machine, tmp_path: Path, hardware: Hardware, joined: str | None, sleep: bool
) -> None:
    machine.hardware, machine.joined = hardware, joined
    given = settings(tmp_path, "run.name=one")
    run(given, Observer())
    (ran,) = machine.ran
    written = yaml.safe_load((tmp_path / "one" / "config.yaml").read_text())
    assert written.pop("decided") == {"rollout.sleep": sleep}
    assert written == ran.model_dump(mode="json")
    assert ran.rollout.sleep is sleep
    assert Config.load(tmp_path / "one" / "config.yaml") == given


@pytest.mark.parametrize("again", [NO_GPU, LARGE_GPU, TWO_GPUS])
def test_a_run_resumes_on_other_hardware_with_its_own_config(machine: Machine, tmp_path: Path, again: Hardware) -> None:
    file = tmp_path / "one" / "config.yaml"
    machine.hardware = SMALL_GPU
    run(settings(tmp_path, "run.name=one"), Observer())
    machine.hardware = again
    run(Config.load(file), Observer(), resume="auto")
    first, second = machine.ran
    assert (first.rollout.sleep, second.rollout.sleep) == (True, False)
    assert yaml.safe_load(file.read_text())["rollout"]["sleep"] is False  # of the last run
    assert fixed_settings(first) == fixed_settings(second)


def test_resume_keeps_explicit_settings(machine: Machine, tmp_path: Path) -> None:
    machine.hardware = LARGE_GPU
    run(settings(tmp_path, "run.name=one", "rollout.sleep=true"), Observer())
    again = Config.load(tmp_path / "one" / "config.yaml")
    run(again, Observer(), resume="auto")
    assert [config.rollout.sleep for config in machine.ran] == [True, True]
    machine.hardware = TWO_GPUS
    with pytest.raises(ResourceError, match=r"rollout\.sleep=true makes room on a GPU that .* share"):
        run(again, Observer(), resume="auto")


def test_resume_ignores_decided_settings(machine: Machine, tmp_path: Path) -> None:
    given = settings(tmp_path)
    assert fixed_settings(resolved(given).config) == fixed_settings(given)


@pytest.mark.parametrize("home", [None, "s3://bucket/runs/there"])
def test_a_resumed_run_has_the_name_of_its_folder(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    past = Past(tmp_path / "there", Mark(-1, {}), home=home)
    monkeypatch.setattr("adagrpo_ray.training.resolve.find_past", lambda resume, config, notify: past)
    ready = resolved(settings(tmp_path, "run.name=here"), resume="any")
    assert (ready.past, ready.home) == (past, home or f"{tmp_path}/there")
    assert ready.config.run.name == "there"
    assert ready.decided["run.name"] == "there"


def test_a_run_in_a_job_has_the_id_of_the_job(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = '{"metadata": {"job_submission_id": "raysubmit_1"}}'
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", job)
    monkeypatch.setenv("HOME", str(tmp_path))
    ready = resolved(settings(Path("runs")))
    assert ready.config.run.name == "raysubmit_1"
    assert ready.config.run.output_dir == f"{tmp_path}/runs"
    assert ready.home == f"{tmp_path}/runs/raysubmit_1"


def test_the_folder_is_absolute_if_ray_is_connected(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolved(settings(Path("runs"))).config.run.output_dir == "runs"
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    assert resolved(settings(Path("runs"))).config.run.output_dir == f"{tmp_path}/runs"


def test_a_run_that_cannot_be_resolved_writes_nothing(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent() -> int:
        raise ResourceError("CUDA does not report")

    machine.hardware = SMALL_GPU
    monkeypatch.setattr("adagrpo_ray.training.memory.gpu_memory", silent)
    with pytest.raises(ResourceError, match="CUDA does not report"):
        run(settings(tmp_path, "run.name=one"), Observer())
    assert list(tmp_path.iterdir()) == []
