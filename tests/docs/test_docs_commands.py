"""Every command in README.md and docs/ is run here or by another test, or has a reason why it is not run.

Arguments of programs of launch/ are parsed by the programs, and all their settings are loaded, so that outdated ones
fail. Commands that start nothing are run. A new command that is not listed here fails.
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

from adagrpo_ray.cluster.device_memory import DeviceMemory
from adagrpo_ray.cluster.placement import Hardware
from adagrpo_ray.config import Config
from adagrpo_ray.model.kernels import Kernels
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

PLAIN = "test_submit.py::test_plain_ray_job_submit_keeps_the_run_and_serves_its_metrics"
HELD = {
    # Programs of launch/ that other tests run
    r"launch/report\.py s3://": "test_report.py::test_report_of_a_run_at_a_url_is_written_there",
    r"launch/ui\.py --runs runs": ("test_chat_page.py::test_start_is_stopped_and_later_answers_are_streamed"),
    r"launch/evaluate\.py --adapter runs/NAME": (
        "test_evaluate.py::test_metrics_equal_those_of_the_evaluations_in_the_run"
    ),
    r"launch/export\.py runs/NAME --out my-model$": "test_export.py::test_merged_model_has_the_logits_of_the_adapter",
    r"launch/export\.py runs/NAME/checkpoints": (
        "test_export.py::test_export_of_last_checkpoint_equals_that_of_the_run"
    ),
    r"launch/export\.py s3://": "test_export.py::test_run_at_a_url_is_exported",
    r"launch/export\.py path/to/peft-adapter": (
        "test_export.py::test_adapter_folder_is_exported_with_and_without_a_base_option"
    ),
    r"launch/export\.py my-model --push \S+ --private$": "test_push.py::test_nothing_is_uploaded_without_yes",
    r"launch/export\.py my-model --push .* --yes": "test_push.py::test_files_are_uploaded_in_one_commit",
    r"launch/export\.py runs/NAME --push": "test_push.py::test_adapter_of_a_run_is_pushed_without_an_export",
    r"launch/submit\.py --fetch": ("test_submit.py::test_submit_shows_the_log_and_fetches_the_results"),
    r"--resume auto": "test_resume.py::test_a_resumed_run_after_sigkill_gives_the_same_result",
    # Ray
    r"^ray start --head --num-cpus 4": PLAIN,
    r"^ray start (--head --num-cpus 0|--address)": ("test_multi_node.py::test_job_continues_after_loss_of_worker_node"),
    r"^ray job submit": PLAIN,
    r"^ray get-auth-token --generate": "a command of Ray, which writes into the user's home folder",
    r"^ray (up|exec|dashboard|rsync-down|down) cluster/aws\.yaml": (
        "test_manifests.py::test_launcher_accepts_the_file"
    ),
    # docs/tracking.md
    r"^pip install 'adagrpo_ray": "installs the extras of pyproject.toml",
    r"submit\.py --env WANDB": "test_tracking.py::test_relative_mlflow_folder_is_refused_in_a_job",
    r"launch/train\.py tracking\.wandb": "test_tracking.py::test_resumed_run_is_one_run_in_both_trackers",
    r"^ray start --head --metrics-export-port 8080": PLAIN,
    r"^prometheus --config": "test_ray_metrics.py::test_prometheus_reads_the_discovery_file_of_ray",
    r"^curl -s http://127\.0\.0\.1:8080/metrics": PLAIN,
    # docs/examples
    r"^\.venv/bin/python docs/examples/one_process\.py$": (
        "test_example.py::test_the_example_trains_and_every_step_syncs_new_weights"
    ),
    # docs/rewards.md
    r"^vllm serve \S+ --port": "test_served_models.py::test_judge_scores_completions",
    r"^vllm serve \S+ --runner pooling": "test_served_models.py::test_reward_model_has_the_output_of_transformers",
    # Programs that are not installed
    r"^(head=\$\()?kubectl ": "no Kubernetes; the files are checked by test_manifests.py",
    r"^helm ": "no Kubernetes",
    r"^export RAY_AUTH_TOKEN=\$\(kubectl": "no Kubernetes",
    # A shell
    r"^source \.venv/bin/activate$": "made by venv",
    r"^export \w+=(?!\$\()": "only sets variables",
    r"^(cd|ln -s) .*(nvidia\.cu13|libcudart)": "needs CUDA of pip; docker/Dockerfile makes the same links",
    r"^\.venv/bin/tensorboard --logdir runs$": (
        "test_observe.py::TestRunWriter::test_tensorboard_shows_metrics_in_groups"
    ),
    r"^make ": "its recipe is read below",
    r"^(mkdir|python3|chmod) .*~/\.adagrpo-ray": "run below",
}
"""A part of a command -> the test that runs it, or the reason why none does."""


def read_here(command: Command) -> bool:
    return command.program is not None


def of_program(*programs: str) -> list[object]:
    return [
        pytest.param(command, id=f"{command.page}: {command.text[-60:]}")
        for command in ALL
        if command.program is not None and command.program[0] in programs
    ]


def arguments_of(command: Command) -> list[str]:
    assert command.program is not None
    return shlex.split(command.program[1])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the files that commands on the pages assume, such as run folders."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "launch").symlink_to(ROOT / "launch")
    for name, text in files().items():
        (folder / name).write_text(text)
    for name in ("NAME", "first", "grpo", "dapo", "adagrpo"):
        steps = [step(number) for number in range(1, 31)]
        evaluations = (evaluation(0, 0.25), evaluation(30, 0.75))
        with RunWriter(folder / "runs" / name, "run:\n  steps: 30\n") as run:
            for record in evaluations:
                run.evaluation("", record)
            for record in steps:
                run.step(record)
            run.samples([group(1)])
            here = folder / "runs" / name
            run.summary(summarize(steps, *evaluations, name=name, folder=here, adapter=here / "adapter"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            patch.delenv(name, raising=False)
        yield folder


@pytest.fixture(scope="module")
def programs(place: Path) -> dict[str, ModuleType]:
    return {name: script(name) for name in PROGRAMS}


def loaded(config: str | Path | None, overrides: list[str]) -> Config:
    """Load the settings and every reward function."""
    read = Config.load(config, overrides)
    for function in read.rewards.own:
        load_reward(function.name)
    return read


# --- all of them


def test_each_documented_command_is_tested() -> None:
    assert len(ALL) > 60
    open_ = [c for c in ALL if not read_here(c) and not any(re.search(part, c.text) for part in HELD)]
    assert open_ == [], "run it in this file, or add its test to HELD"


def test_tests_of_commands_exist() -> None:
    for part, by in HELD.items():
        assert any(re.search(part, command.text) for command in ALL), f"no page has such a command: {part}"
        if by.startswith("test_"):
            file, _, name = by.partition("::")
            (found,) = (ROOT / "tests").rglob(file)
            assert name in names(found), by


def test_files_in_documented_commands_exist() -> None:
    for command in ALL:
        for file in re.findall(r"(?<![\w./-])(?:launch|cluster|docker|tests)/[\w./-]+\.\w+", command.text):
            assert (ROOT / file).exists(), command


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_print_their_help(
    programs: dict[str, ModuleType], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        programs[name].main(["--help"])
    assert ended.value.code == 0
    assert f"launch/{name}.py" in capsys.readouterr().out


# --- launch/, with arguments parsed by the programs


ONE_GPU = {"local-1gpu-24gb.yaml": 24, "local-1gpu.yaml": 16}
"""Configuration for one GPU -> its GiB."""
GPUS = {"## Eight GPUs in one machine": (8, 80)}
"""Heading in docs/recipes.md -> number of GPUs, and GiB of each."""


def hardware_of(command: Command) -> tuple[int, int]:
    for config, gib in ONE_GPU.items():
        if config in command.text:
            return 1, gib
    parts = re.split(r"^(?=## )", (ROOT / command.page).read_text().replace("\\\n", " "), flags=re.MULTILINE)
    part = next(part for part in parts if command.text in " ".join(re.sub(r"\s+#\s.*", "", part).split()))
    return GPUS.get(part.splitlines()[0], (0, 16))


@pytest.mark.parametrize("command", of_program("train"))
def test_training_commands_are_valid(
    programs: dict[str, ModuleType],
    command: Command,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Runs the command with --dry-run, for the machine that the page is about."""
    train, arguments = programs["train"], arguments_of(command)
    if "--help" in arguments:
        return  # tested by test_programs_print_their_help
    gpus, gib = hardware_of(command)
    monkeypatch.setattr("adagrpo_ray.cluster.placement.local_hardware", lambda: Hardware(16.0, float(gpus)))
    memory = DeviceMemory(gib * 2**30, gib * 2**30)
    monkeypatch.setattr("adagrpo_ray.cluster.device_memory.device_memory", lambda hardware: memory)
    monkeypatch.setattr("adagrpo_ray.model.shape.read_shape", lambda config: SHAPE)
    options = train.parse(arguments)
    config = loaded(options.config, options.overrides)
    assert train.main([*arguments, *([] if options.dry_run else ["--dry-run"])]) == 0
    output = capsys.readouterr().out
    assert yaml.safe_load(output)["run"]["steps"] == config.run.steps
    assert f"{config.rollout.actors} x rollout actor: 1 CPU, {0.5 if gpus == 1 else min(gpus, 1):g} GPU" in output or (
        config.rollout.tensor_parallel_size > 1 or config.run.ray_address is not None
    )
    if gpus and config.model.path == "Qwen/Qwen3-1.7B":
        assert f"GiB fits in the {gib}.0 GiB that are free" in output
        assert "does not fit" not in output


def test_memory_in_the_pages_is_that_of_the_estimate(
    programs: dict[str, ModuleType], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adagrpo_ray.model.shape.read_shape", lambda config: SHAPE)
    monkeypatch.setattr("adagrpo_ray.model.kernels.kernels_here", lambda config, model_type: Kernels(flash=True))

    def dry_run(gpus: int, free: float, total: float, *arguments: str) -> str:
        memory = DeviceMemory(int(free * 2**30), int(total * 2**30))
        monkeypatch.setattr("adagrpo_ray.cluster.placement.local_hardware", lambda: Hardware(16.0, float(gpus)))
        monkeypatch.setattr("adagrpo_ray.cluster.device_memory.device_memory", lambda hardware: memory)
        assert programs["train"].main([*arguments, "--dry-run"]) == 0
        return capsys.readouterr().out

    recipes, scaling = ((ROOT / "docs" / f"{page}.md").read_text() for page in ("recipes", "scaling"))
    small = dry_run(1, 14.8, 15.9, "--config", "launch/configs/local-1gpu.yaml")
    assert "while vLLM generates: 13.9 GiB fits in the 14.8 GiB" in small
    assert "vLLM sleeps: 8.5 GiB fits in the 14.8 GiB" in small
    assert "or 5 sequences of 8192" in small
    large = dry_run(1, 22.8, 23.5, "--config", "launch/configs/local-1gpu-24gb.yaml")
    assert "both, on one GPU of this machine: 19.3 GiB fits in the 22.8 GiB" in large
    assert "KV cache 7.5 = 11.8 GiB" in large
    assert "or 8 sequences of 8192" in large
    assert all(text in recipes for text in ("13.9 GiB while", "8.5 while", "5 sequences", "in 19.3 GiB"))
    rows = ("| 15.9 | 23.5 |", "| 14.8 | 22.8 |", "| 5 | 8 |", "| 13.9 | 19.3 |", "| 8.5, vLLM sleeps | 19.3 |")
    assert all(row in scaling for row in rows)

    eight = ("--config", "launch/configs/cluster.yaml", "run.ray_address=null", "rollout.actors=6", "learner.ranks=2")
    of_80, of_24 = dry_run(8, 80, 80, *eight), dry_run(8, 24, 24, *eight)
    assert "a learner rank's GPU: 8.8 GiB fits" in of_80
    assert "a rollout actor's GPU: 72.0 GiB fits" in of_80
    assert "or 77 sequences" in of_80
    assert "fits in the 24.0 GiB" in of_24
    assert "or 19 sequences" in of_24
    assert all(number in recipes for number in ("8.8 for", "72 for", "19 sequences", "77."))


@pytest.mark.parametrize("command", of_program("evaluate"))
def test_evaluation_commands_are_valid(programs: dict[str, ModuleType], command: Command) -> None:
    options = programs["evaluate"].parse(arguments_of(command))
    loaded(options.config or "launch/configs/tiny-cpu.yaml", options.overrides)
    assert options.adapter or options.base, "a model to evaluate"


@pytest.mark.parametrize("command", of_program("export"))
def test_export_commands_are_valid(programs: dict[str, ModuleType], command: Command) -> None:
    options = programs["export"].parse(arguments_of(command))
    assert options.out is not None or options.push is not None


@pytest.mark.parametrize("command", of_program("ui"))
def test_ui_commands_are_valid(programs: dict[str, ModuleType], command: Command) -> None:
    options = programs["ui"].parse(arguments_of(command))
    loaded(options.config or "launch/configs/tiny-cpu.yaml", options.overrides)
    assert options.password_file is not None or options.host == "127.0.0.1", "else it is refused"


@pytest.mark.parametrize("command", of_program("submit"))
def test_submit_commands_are_valid(
    programs: dict[str, ModuleType], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prepares the job, which finds every mistake that can be found without a cluster."""
    arguments = arguments_of(command)
    for name in re.findall(r"--env (\w+)(?!=)", command.text):
        monkeypatch.setenv(name, "value")
    job = programs["submit"].prepare(programs["submit"].parse(arguments))
    assert job.entrypoint.startswith("python launch/train.py")


@pytest.mark.parametrize("command", of_program("report"))
def test_report_commands_are_valid(
    programs: dict[str, ModuleType],
    command: Command,
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "s3://" in command.text:
        return  # listed in HELD
    # Only the first figure; test_drawn_reports.py draws all.
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
def test_make_commands_are_valid(programs: dict[str, ModuleType], command: Command) -> None:
    """`make -n` lists the commands of the target; those of launch/ are parsed as above."""
    target, *rest = shlex.split(command.text)[1:]
    ours = ("MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "ARGS", "CONFIG")  # of the make that runs these tests
    env = {key: value for key, value in os.environ.items() if key not in ours}
    listed = subprocess.run(["make", "-n", target, *rest], cwd=ROOT, env=env, capture_output=True, text=True)
    assert listed.returncode == 0, listed.stderr
    actors = subprocess.run(
        ["docker/cluster.sh", "actors"], cwd=ROOT, env=env, check=True, capture_output=True, text=True
    )
    for line in listed.stdout.replace("\\\n", " ").replace("$actors", actors.stdout.strip()).splitlines():
        program = Command("Makefile", line).program
        if program is not None:
            options = programs[program[0]].parse(shlex.split(program[1]))
            if program[0] == "train":
                loaded(options.config, options.overrides)
            elif program[0] == "submit":
                programs["submit"].prepare(options)


def test_commands_for_the_token_of_the_launcher(tmp_path: Path) -> None:
    lines = [c.text for c in ALL if c.page == "docs/launcher.md" and re.match(r"mkdir|python3 -c|chmod", c.text)]
    assert len(lines) == 3
    subprocess.run(["bash", "-ec", "\n".join(lines)], env={**os.environ, "HOME": str(tmp_path)}, check=True)
    token = tmp_path / ".adagrpo-ray" / "auth_token"
    assert re.fullmatch(r"[0-9a-f]{64}\n", token.read_text())
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.parent.stat().st_mode & 0o777 == 0o700
