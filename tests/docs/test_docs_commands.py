"""Every command of README.md and docs/ is run here, by another test, or has its reason why it is not.

Programs of launch/ get their arguments read by their own readers, with all settings loaded, so that none is stale;
what starts nothing is run to its end. A new command that this file does not account for fails.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from adagrpo_ray.cluster.placement import Hardware
from adagrpo_ray.config import Config, load_config
from adagrpo_ray.reports.charts import charts
from adagrpo_ray.rewards import load_reward
from adagrpo_ray.runs.summary import summarize
from adagrpo_ray.runs.writer import RunWriter
from tests.support.documents import Command, commands, files, names
from tests.support.histories import evaluation, group, step
from tests.support.places import ROOT
from tests.support.scripts import script
from tests.support.shapes import SHAPE

ALL = commands()
PROGRAMS = ("evaluate", "export", "report", "submit", "train", "ui")

PLAIN = "test_submit.py::test_plain_ray_job_submit_needs_no_setting_loses_no_run_and_shows_it_to_prometheus"
HELD = {
    # Programs that are more than read here
    r"launch/report\.py s3://": "test_report.py::test_a_run_at_a_url_gets_its_report_there",
    r"launch/ui\.py --runs runs": (
        "test_chat_page.py::test_a_start_is_stopped_and_then_both_sides_answer_as_they_are_streamed"
    ),
    r"launch/evaluate\.py --adapter runs/NAME": (
        "test_evaluate.py::test_figures_are_those_that_the_run_measured_itself"
    ),
    r"launch/export\.py runs/NAME --out my-model$": "test_export.py::test_the_export_says_what_the_adapter_says",
    r"launch/export\.py runs/NAME/checkpoints": (
        "test_export.py::test_a_checkpoint_is_exported_as_its_runs_adapter_is"
    ),
    r"launch/export\.py s3://": "test_export.py::test_a_run_at_a_url",
    r"launch/export\.py path/to/peft-adapter": (
        "test_export.py::test_an_adapters_own_folder_is_enough_and_so_is_a_base_that_is_named"
    ),
    r"launch/export\.py my-model --push \S+ --private$": "test_push.py::test_nothing_is_sent_without_a_yes",
    r"launch/export\.py my-model --push .* --yes": "test_push.py::test_all_files_go_in_one_commit_and_no_others",
    r"launch/export\.py runs/NAME --push": "test_push.py::test_an_adapter_of_a_run_can_be_pushed_as_it_is",
    r"launch/submit\.py --fetch": ("test_submit.py::test_submit_shows_the_log_names_the_job_and_fetches_the_results"),
    r"--resume auto": "test_resume.py::test_a_killed_run_ends_as_one_that_never_stopped",
    # Ray
    r"^ray start --head --num-cpus 4": PLAIN,
    r"^ray start (--head --num-cpus 0|--address)": ("test_multi_node.py::test_job_continues_after_loss_of_worker_node"),
    r"^ray job submit": PLAIN,
    r"^ray get-auth-token --generate": "Ray's own; it writes into the home folder of whoever runs it",
    r"^ray (up|exec|dashboard|rsync-down|down) cluster/aws\.yaml": (
        "test_manifests.py::test_the_launcher_accepts_the_file"
    ),
    # docs/tracking.md
    r"^pip install 'adagrpo_ray": "installs the extras of pyproject.toml",
    r"submit\.py --env WANDB": "test_tracking.py::test_a_relative_folder_is_refused_in_a_job_which_loses_it",
    r"launch/train\.py tracking\.wandb": "test_tracking.py::test_a_run_and_its_resumption_are_one_run_in_both_trackers",
    r"^ray start --head --metrics-export-port 8080": PLAIN,
    r"^prometheus --config": "test_ray_metrics.py::test_prometheus_reads_the_file_that_ray_keeps",
    r"^curl -s http://127\.0\.0\.1:8080/metrics": PLAIN,
    # docs/examples
    r"^\.venv/bin/python docs/examples/one_process\.py$": (
        "test_example.py::test_the_example_trains_and_every_step_syncs_new_weights"
    ),
    # Programs that are missing here
    r"^(head=\$\()?kubectl ": "no Kubernetes; the files are held by test_manifests.py",
    r"^helm ": "no Kubernetes",
    r"^export RAY_AUTH_TOKEN=\$\(kubectl": "no Kubernetes",
    # A shell
    r"^source \.venv/bin/activate$": "made by venv",
    r"^export \w+=(?!\$\()": "sets variables alone",
    r"^\.venv/bin/tensorboard --logdir runs$": (
        "test_observe.py::TestRunWriter::test_tensorboard_shows_the_figures_in_groups"
    ),
    r"^make ": "its recipe is read below",
    r"^(mkdir|python3|chmod) .*~/\.adagrpo-ray": "run below",
}
"""Who else runs a command, or why nobody does: by a part of it."""


def read_here(command: Command) -> bool:
    return command.program is not None


def of_program(*wanted: str) -> list[object]:
    return [
        pytest.param(command, id=f"{command.page}: {command.text[-60:]}")
        for command in ALL
        if command.program is not None and command.program[0] in wanted
    ]


def arguments_of(command: Command) -> list[str]:
    assert command.program is not None
    return shlex.split(command.program[1])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what the pages' files and commands take for granted: where a reader stands."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "launch").symlink_to(ROOT / "launch")
    for name, text in files().items():
        (folder / name).write_text(text)
    for name in ("NAME", "first", "grpo", "dapo", "adagrpo"):
        steps = [step(number) for number in range(1, 31)]
        measured = (evaluation(0, 0.25), evaluation(30, 0.75))
        with RunWriter(folder / "runs" / name, "run:\n  steps: 30\n") as run:
            for record in measured:
                run.evaluation("", record)
            for record in steps:
                run.step(record)
            run.samples([group(1)])
            here = folder / "runs" / name
            run.summary(summarize(steps, *measured, name=name, folder=here, adapter=here / "adapter"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            patch.delenv(name, raising=False)
        yield folder


@pytest.fixture(scope="module")
def programs(place: Path) -> dict[str, ModuleType]:
    return {name: script(name) for name in PROGRAMS}


def loaded(config: str | Path | None, overrides: list[str]) -> Config:
    """The settings, with every reward function found."""
    read = load_config(config, overrides)
    for function in read.rewards.functions:
        load_reward(function.function)
    return read


# --- all of them


def test_every_command_is_accounted_for() -> None:
    assert len(ALL) > 60
    open_ = [c for c in ALL if not read_here(c) and not any(re.search(part, c.text) for part in HELD)]
    assert open_ == [], "run it in this file, or name in HELD the test that does"


def test_who_else_runs_a_command_is_there() -> None:
    for part, by in HELD.items():
        assert any(re.search(part, command.text) for command in ALL), f"no page has such a command any more: {part}"
        if by.startswith("test_"):
            file, _, name = by.partition("::")
            (found,) = (ROOT / "tests").rglob(file)
            assert name in names(found), by


def test_files_of_the_repository_that_commands_name_are_there() -> None:
    for command in ALL:
        for file in re.findall(r"(?<![\w./-])(?:launch|cluster|docker|tests)/[\w./-]+\.\w+", command.text):
            assert (ROOT / file).exists(), command


@pytest.mark.parametrize("name", PROGRAMS)
def test_help(programs: dict[str, ModuleType], capsys: pytest.CaptureFixture[str], name: str) -> None:
    with pytest.raises(SystemExit) as ended:
        programs[name].main(["--help"])
    assert ended.value.code == 0
    assert f"launch/{name}.py" in capsys.readouterr().out


# --- launch/, each program by its own reader


GPUS = {"## One GPU of 16 GB": (1, 16), "## Eight GPUs in one machine": (8, 80)}
"""What a part of docs/recipes.md is for: GPUs, and GiB of each."""


def hardware_of(command: Command) -> tuple[int, int]:
    parts = re.split(r"^(?=## )", (ROOT / command.page).read_text().replace("\\\n", " "), flags=re.MULTILINE)
    part = next(part for part in parts if command.text in " ".join(re.sub(r"\s+#\s.*", "", part).split()))
    return GPUS.get(part.splitlines()[0], (0, 16))


@pytest.mark.parametrize("command", of_program("train"))
def test_training(
    programs: dict[str, ModuleType],
    command: Command,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With --dry-run, on the machine that the page is about."""
    train, arguments = programs["train"], arguments_of(command)
    if "--help" in arguments:
        return  # run above
    gpus, gib = hardware_of(command)
    monkeypatch.setattr("adagrpo_ray.cluster.placement.local_hardware", lambda: Hardware(16.0, float(gpus)))
    monkeypatch.setattr("adagrpo_ray.training.memory.device_memory", lambda hardware: gib * 2**30)
    monkeypatch.setattr("adagrpo_ray.training.memory.read_shape", lambda config: SHAPE)
    options = train.parse(arguments)
    config = loaded(options.config, options.overrides)
    assert train.main([*arguments, *([] if options.dry_run else ["--dry-run"])]) == 0
    told = capsys.readouterr().out
    assert yaml.safe_load(told)["run"]["steps"] == config.run.steps
    assert f"{config.rollout.actors} x rollout actor: 1 CPU, {0.5 if gpus == 1 else min(gpus, 1):g} GPU" in told or (
        config.rollout.tensor_parallel_size > 1 or config.run.ray_address is not None
    )
    if gpus and config.model.path == "Qwen/Qwen3-1.7B":
        assert f"GiB fits in {gib}.0 GiB" in told
        assert "does not fit" not in told


def test_the_memory_that_the_recipes_tell_is_what_the_estimate_says(
    programs: dict[str, ModuleType], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adagrpo_ray.training.memory.read_shape", lambda config: SHAPE)

    def told(gpus: int, gib: int, *arguments: str) -> str:
        monkeypatch.setattr("adagrpo_ray.cluster.placement.local_hardware", lambda: Hardware(16.0, float(gpus)))
        monkeypatch.setattr("adagrpo_ray.training.memory.device_memory", lambda hardware: gib * 2**30)
        monkeypatch.setattr("adagrpo_ray.model.pretrained.flash_attention", lambda config: False)
        assert programs["train"].main([*arguments, "--dry-run"]) == 0
        return capsys.readouterr().out

    one = told(1, 16, "--config", "launch/configs/local-1gpu.yaml")
    assert "15.4 GiB fits in 16.0 GiB" in one
    assert "or 3 sequences of 8192" in one
    eight = ("--config", "launch/configs/cluster.yaml", "run.ray_address=null", "rollout.actors=6", "learner.ranks=2")
    large, small = told(8, 80, *eight), told(8, 24, *eight)
    assert "a learner rank's GPU: 9.8 GiB fits" in large
    assert "a rollout actor's GPU: 72.0 GiB fits" in large
    assert "or 77 sequences" in large
    assert "fits in 24.0 GiB" in small
    assert "or 19 sequences" in small
    page = (ROOT / "docs" / "recipes.md").read_text()
    assert all(
        figure in page for figure in ("15.4 of 16 GiB", "3 sequences", "9.8 for", "72 for", "19 sequences", "77.")
    )


@pytest.mark.parametrize("command", of_program("evaluate"))
def test_evaluation(programs: dict[str, ModuleType], command: Command) -> None:
    options = programs["evaluate"].parse(arguments_of(command))
    loaded(options.config or "launch/configs/tiny-cpu.yaml", options.overrides)


@pytest.mark.parametrize("command", of_program("export"))
def test_export(programs: dict[str, ModuleType], command: Command) -> None:
    options = programs["export"].parse(arguments_of(command))
    assert options.out is not None or options.push is not None


@pytest.mark.parametrize("command", of_program("ui"))
def test_web_application(programs: dict[str, ModuleType], command: Command) -> None:
    options = programs["ui"].parse(arguments_of(command))
    loaded(options.config or "launch/configs/tiny-cpu.yaml", options.overrides)


@pytest.mark.parametrize("command", of_program("submit"))
def test_jobs(programs: dict[str, ModuleType], command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that launch/submit.py finds wrong without a cluster."""
    arguments = arguments_of(command)
    for name in re.findall(r"--env (\w+)(?!=)", command.text):
        monkeypatch.setenv(name, "value")
    job = programs["submit"].prepare(programs["submit"].parse(arguments))
    assert job.entrypoint.startswith("python launch/train.py")


@pytest.mark.parametrize("command", of_program("report"))
def test_report(
    programs: dict[str, ModuleType],
    command: Command,
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "s3://" in command.text:
        return  # in HELD
    # Its first figure is enough: that all are drawn is test_report.py's.
    monkeypatch.setattr("adagrpo_ray.reports.write.charts", lambda runs, interval: islice(charts(runs, interval), 1))
    arguments = [a.replace("/tmp", str(place)) for a in arguments_of(command)]
    assert programs["report"].main(arguments) == 0
    made = re.search(r"report: (\S+)", capsys.readouterr().out)
    assert made is not None
    assert (place / made[1]).is_file()


# --- make, and a shell


@pytest.mark.parametrize(
    "command", [c for c in ALL if c.text.startswith("make ")], ids=lambda command: command.text[:60]
)
def test_make(programs: dict[str, ModuleType], command: Command) -> None:
    """`make -n` says what it would run; what it starts of launch/ is read as above."""
    target, *rest = shlex.split(command.text)[1:]
    ours = ("MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "ARGS", "CONFIG")  # of the make that runs these tests
    env = {key: value for key, value in os.environ.items() if key not in ours}
    said = subprocess.run(["make", "-n", target, *rest], cwd=ROOT, env=env, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    for line in said.stdout.replace("\\\n", " ").splitlines():
        program = Command("Makefile", line).program
        if program is not None:
            options = programs[program[0]].parse(shlex.split(program[1]))
            if program[0] == "train":
                loaded(options.config, options.overrides)
            elif program[0] == "submit":
                programs["submit"].prepare(options)


def test_the_token_of_the_launcher(tmp_path: Path) -> None:
    lines = [c.text for c in ALL if c.page == "docs/launcher.md" and re.match(r"mkdir|python3 -c|chmod", c.text)]
    assert len(lines) == 3
    subprocess.run(["bash", "-ec", "\n".join(lines)], env={**os.environ, "HOME": str(tmp_path)}, check=True)
    token = tmp_path / ".adagrpo-ray" / "auth_token"
    assert re.fullmatch(r"[0-9a-f]{64}\n", token.read_text())
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.parent.stat().st_mode & 0o777 == 0o700
