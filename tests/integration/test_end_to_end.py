"""The whole program as a user starts it: launch/train.py on real Ray, vLLM, DeepSpeed and PEFT."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from adagrpo_ray.config import Config
from tests.support.program import AHEAD, OUTPUT, launch, metrics

STEPS = 4


@pytest.fixture(scope="module")
def ahead(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run with two actors of each kind whose rollouts run one step ahead; its folder and output."""
    folder = tmp_path_factory.mktemp("runs")
    ended = launch(
        "--config",
        "launch/configs/tiny-cpu.yaml",
        f"run.output_dir={folder}",
        "run.name=ahead",
        f"run.steps={STEPS}",
        "data.eval_prompts=16",
        "algorithm.resample=immediate",
        *AHEAD,
        # The first rung draws as first attempts do, so that only the second one filters anything.
        "algorithm.triggers=[{from_step: 1, rungs: [{temperature: 1.0}, {temperature: 1.1, top_p: 0.99}]}]",
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder / "ahead", ended.stdout


@pytest.fixture(params=["in turn", pytest.param("ahead", marks=pytest.mark.long)])
def run(request: pytest.FixtureRequest) -> tuple[Path, str]:
    """That run, or the fixture `whole`, whose actors, one of each kind, take turns; its folder and output."""
    if request.param == "ahead":
        return request.getfixturevalue("ahead")  # type: ignore[no-any-return]
    whole = request.getfixturevalue("whole")
    return whole, (whole.parent / OUTPUT).read_text()


def test_summary_describes_the_run(run: tuple[Path, str]) -> None:
    folder, _ = run
    summary, steps = json.loads((folder / "summary.json").read_text()), metrics(folder)
    assert summary["steps"] == STEPS == len(steps)
    assert 0 <= summary["eval_accuracy_before"] <= 1
    assert 0 <= summary["eval_accuracy_after"] <= 1
    assert summary["generated_tokens"] == sum(s["generated_tokens"] for s in steps) > 0
    assert summary["trained_tokens"] == sum(s["trained_tokens"] for s in steps) > 0
    assert summary["resamples"] == [sum(rung) for rung in zip(*(s["resamples"] for s in steps), strict=True)]
    assert summary["seconds"] > 0


@pytest.mark.long
def test_a_run_without_held_out_prompts_is_evaluated_on_benchmarks(tmp_path: Path) -> None:
    rows = [{"question": f"{i}+{i}?", "answer": f"#### {2 * i}"} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    benchmark = f"{{name: gsm8k, path: {tmp_path / 'rows.jsonl'}, samples: 2}}"
    ended = launch(
        *("--config", "launch/configs/tiny-cpu.yaml", f"run.output_dir={tmp_path}", "run.name=mine", "run.steps=1"),
        *("data.eval_prompts=0", "algorithm.prompts_per_step=2", f"evaluation.benchmarks=[{benchmark}]"),
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "benchmark gsm8k, 4 problems with 2 completions each" in ended.stdout
    assert ended.stdout.count("gsm8k accuracy ") == 2
    records = [json.loads(line) for line in (tmp_path / "mine" / "evaluations.jsonl").read_text().splitlines()]
    assert [record["label"] for record in records] == ["before", "after"]
    assert [record["accuracy"] for record in records] == [None, None]
    assert [record["benchmark_samples"] for record in records] == [{"gsm8k": 8}] * 2


@pytest.mark.long
def test_failing_groups_were_resampled_and_hard_classes_more_often(ahead: tuple[Path, str]) -> None:
    steps = metrics(ahead[0])
    assert sum(sum(s["resamples"]) for s in steps) > 0
    by_difficulty = [sum(s["resamples_by_difficulty"].get(f"{digits} digits", 0) for s in steps) for digits in (2, 5)]
    assert by_difficulty[0] < by_difficulty[1]


def test_every_step_sent_one_new_version(run: tuple[Path, str]) -> None:
    steps = metrics(run[0])
    assert [s["weight_version"] for s in steps] == [1, 2, 3, 4]
    assert all(s["sync_bytes"] > 100_000 for s in steps)


def test_learner_and_rollout_agree_without_filters(whole: Path) -> None:
    """First attempts are drawn at temperature 1, so only resampled groups may show a difference."""
    plain = [s for s in metrics(whole) if not sum(s["resamples"]) and s["trained_tokens"]]
    assert plain
    assert all(step["sampling_logp_difference_mean"] < 1e-4 for step in plain)
    assert all(step["sampling_logp_difference_mean"] < 0.5 for step in metrics(whole))


@pytest.mark.long
def test_learner_and_rollout_stay_close_if_rollouts_run_ahead(ahead: tuple[Path, str]) -> None:
    steps = metrics(ahead[0])
    for step in steps:
        if not sum(step["resamples"][1:]) and step["trained_tokens"] and not step["staleness"]:
            assert step["sampling_logp_difference_mean"] < 1e-4
    assert all(step["sampling_logp_difference_mean"] < 0.5 for step in steps)


def test_rollouts_run_ahead_up_to_the_maximum_staleness(run: tuple[Path, str]) -> None:
    folder, _ = run
    most = yaml.safe_load((folder / "config.yaml").read_text())["algorithm"]["max_staleness"]
    steps = metrics(folder)
    assert steps[0]["staleness"] == 0
    if most:
        assert all(0 < step["staleness"] <= most for step in steps[1:])
    else:  # only a group that waited may have completions of an earlier step
        assert all(step["staleness"] == 0 for step in steps if not sum(step["resamples"]))


@pytest.mark.long
def test_configuration_is_saved_and_can_be_loaded(ahead: tuple[Path, str]) -> None:
    kept = yaml.safe_load((ahead[0] / "config.yaml").read_text())
    assert kept["run"]["steps"] == STEPS
    assert kept["data"]["eval_prompts"] == 16
    decided = {"rollout.sleep": False}
    assert (kept["run"]["name"], kept["rollout"]["sleep"], kept["decided"]) == ("ahead", False, decided)
    assert Config.load(ahead[0] / "config.yaml").rollout.sleep is None


def test_adapter_loads_with_peft_and_is_not_the_initial_one(run: tuple[Path, str]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = run[0] / "adapter"
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter))
    moved = [p.abs().sum().item() for n, p in model.named_parameters() if "lora_B" in n]
    assert moved
    assert all(size > 0 for size in moved)


def test_output_without_a_terminal_is_plain_lines(run: tuple[Path, str]) -> None:
    folder, output = run
    held_out = yaml.safe_load((folder / "config.yaml").read_text())["data"]["eval_prompts"]
    assert "\x1b" not in output
    assert f"run folder: {folder}" in output
    assert f"2000 prompts to train on, {held_out} held out" in output
    assert "held-out accuracy" in output


def test_a_run_folder_is_never_overwritten(whole: Path) -> None:
    before = (whole / "summary.json").read_bytes()
    ended = launch("--config", "launch/configs/tiny-cpu.yaml", f"run.output_dir={whole.parent}", "run.name=run")
    assert ended.returncode != 0
    assert "run.name" in ended.stderr
    assert (whole / "summary.json").read_bytes() == before
