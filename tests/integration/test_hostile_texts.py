"""One real run with hostile texts: difficulty classes, the name of a reward function, the folder."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from adagrpo_ray.data.arithmetic import SYSTEM_PROMPT
from adagrpo_ray.runs.metric import scalars
from adagrpo_ray.runs.names import name_of, text_of
from adagrpo_ray.runs.reader import RunHistory, load
from adagrpo_ray.tracking.mlflow_run import metric_name
from tests.support import program
from tests.support.texts import MEAN
from tests.support.tracked import offline_run

pytestmark = pytest.mark.slow  # each tracker, file and page meets these texts in a test of its own, too

CLASSES = [text for text in MEAN if text == text.strip() and text.encode("utf-16", "replace").decode("utf-16") == text]
REWARDS = """
def prüfe(completions, answer, **context):
    return [3.4e38 if answer in text else -3.4e38 for text in completions]

def nirgends(completions, **context):
    return [None] * len(completions)
"""


def problems(path: Path) -> None:
    """Additions, four of each class."""
    numbers = random.Random(0)
    with path.open("w") as file:
        for place, difficulty in enumerate(CLASSES * 4):
            a = numbers.randrange(1000)
            row = {"prompt": f"{a}+{place}=", "solution": str(a + place), "difficulty": difficulty}
            file.write(json.dumps(row) + "\n")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The parent folder of the run, with the output of the program in `output.txt`."""
    folder = tmp_path_factory.mktemp("läufe") / "hostile"
    folder.mkdir()
    problems(folder / "problems.jsonl")
    (folder / "meine_belohnung.py").write_text(REWARDS)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(folder), prepend=":")
        environment.setenv("WANDB_MODE", "offline")
        ended = program.launch(
            *("--config", "launch/configs/tiny-cpu.yaml", f"run.output_dir={folder}", "run.name=run", "run.steps=3"),
            *(f"data.source={folder / 'problems.jsonl'}", "data.columns.difficulty=difficulty", "data.eval_prompts=60"),
            f"data.system_prompt={SYSTEM_PROMPT}",
            *("evaluation.samples=1", "evaluation.every=2", "algorithm.prompts_per_step=8", "run.report=true"),
            *("checkpoint.every=1", "rollout.max_new_tokens=16", "run.samples_per_step=8"),
            *("tracking.wandb=project", f"tracking.mlflow={folder / 'mlruns'}"),
            'rewards.functions=[{function: "meine_belohnung:prüfe", weight: 0.9}, '
            '{function: "meine_belohnung:nirgends"}, {function: exact, weight: 0.0}]',
        )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (folder / "output.txt").write_text(ended.stdout)
    return folder


@pytest.fixture(scope="module")
def history(hostile: Path) -> RunHistory:
    return load(hostile / "run")


@pytest.fixture(scope="module")
def expected(history: RunHistory) -> dict[tuple[str, int], float]:
    """Every point of every curve, by tag and step."""
    points = {(tag, e.step): value for e in history.evaluations for tag, value in scalars(e).items()}
    return points | {(tag, s.step): value for s in history.steps for tag, value in scalars(s).items()}


def test_the_run_ends_with_all_of_its_files(hostile: Path, history: RunHistory) -> None:
    output = (hostile / "output.txt").read_text()
    unused, *others = (line for line in output.splitlines() if "warning" in line)
    assert "'meine_belohnung:nirgends' applies to none of 64 ground truths" in unused
    # Whether one of 60 short completions ends depends on the model; there must be no other warning.
    assert ["none of 60 completions ended by itself" in line for line in others] in ([], [True])
    assert "no report" not in output
    assert "\x1b" not in output
    assert [record.step for record in history.steps] == [1, 2, 3]
    assert history.summary is not None
    assert (hostile / "run" / "checkpoints" / "latest").read_text().strip() in {
        path.name for path in (hostile / "run" / "checkpoints").iterdir()
    }
    difficulties = {difficulty for record in history.evaluations for difficulty in record.accuracy_by_difficulty}
    assert difficulties <= set(CLASSES)
    assert len(difficulties) > 20
    for record in history.steps:
        assert record.rewards_mean["meine_belohnung:nirgends"] is None
        assert record.reward is not None
        assert abs(record.reward) > 1e37


def test_tensorboard_has_every_point(hostile: Path, expected: dict[tuple[str, int], float]) -> None:
    events = EventAccumulator(str(hostile / "run" / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    points = {(tag, e.step): e.value for tag in events.Tags()["scalars"] for e in events.Scalars(tag)}
    assert points.keys() == expected.keys()
    assert all(math.isfinite(value) for value in points.values())
    assert points == pytest.approx({key: min(value, 3.4028234e38) for key, value in expected.items()}, rel=1e-6)
    for tag, _ in points:
        if tag.startswith("eval/accuracy_by_difficulty/"):
            name = tag.rpartition("/")[2]
            assert text_of(name) in CLASSES or any(name_of(text) == name for text in CLASSES)


def test_wandb_has_every_point(hostile: Path, expected: dict[tuple[str, int], float]) -> None:
    run = offline_run(hostile / "run")
    rows = {row["_step"]: row for row in run.rows}
    assert {key: rows[key[1]].get(key[0]) for key in expected} == expected
    assert run.exit_code == 0


def test_mlflow_has_every_point(hostile: Path, expected: dict[tuple[str, int], float]) -> None:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        client = MlflowClient((hostile / "mlruns").as_uri())
        (run,) = client.search_runs([client.get_experiment_by_name("adagrpo_ray").experiment_id])
        found: dict[tuple[str, int], float] = {}
        for tag in {tag for tag, _ in expected}:
            points = client.get_metric_history(run.info.run_id, metric_name(tag))
            found |= {(tag, point.step): point.value for point in points}
    assert found == expected
    assert run.info.status == "FINISHED"
    names = {name.rpartition("/")[2] for name in run.data.metrics if name.startswith("eval/accuracy_by_difficulty/")}
    assert names <= {metric_name(name_of(text)) for text in CLASSES}


def test_the_report_and_the_card_hold_no_markup_of_the_data(hostile: Path) -> None:
    page = (hostile / "run" / "report.html").read_text(encoding="utf-8")
    card = (hostile / "run" / "adapter" / "README.md").read_text(encoding="utf-8")
    for text in (page, card):
        assert "<script>alert(1)" not in text
    assert "| &#42;bold&#42; |" in card or "*bold*" not in card
    rows = [line for line in card.splitlines() if line.startswith("| ") and line.endswith(" |")]
    assert rows
    assert all(line.replace("\\|", "").count("|") in (3, 6, 10) for line in rows)


def test_a_resumed_run_reads_everything_back(hostile: Path, history: RunHistory) -> None:
    lines = (hostile / "run" / "metrics.jsonl").read_text("ascii").splitlines()
    assert [json.loads(line) for line in lines] == [record.to_dict() for record in history.steps]
    assert {group.difficulty for group in history.samples} <= set(CLASSES)
