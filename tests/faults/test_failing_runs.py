"""Whole runs with steps that have nothing to train on, and with reward functions that fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.program import AHEAD, launch, metrics


@pytest.mark.slow
def test_steps_without_any_group_do_not_stop_a_run_that_samples_ahead(tmp_path: Path) -> None:
    ended = launch(
        "--config",
        "launch/configs/tiny-cpu.yaml",
        *AHEAD,
        f"run.output_dir={tmp_path}",
        "run.name=nothing",
        "run.steps=3",
        "data.eval_prompts=0",
        "algorithm.prompts_per_step=4",
        "algorithm.criterion={kind: any_above, threshold: 99}",
        "algorithm.triggers=[]",
        "algorithm.on_exhausted=drop",
        "algorithm.allocation.enabled=false",  # so that no prompt is left out, and each step drops four groups
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    steps = metrics(tmp_path / "nothing")
    assert [s["groups_dropped"] for s in steps] == [4, 4, 4]
    assert [s["trained_tokens"] for s in steps] == [0, 0, 0]
    assert [s["weight_version"] for s in steps] == [1, 2, 3]


FAILING = """
groups = 0

def score(completions, answer, **context):
    global groups
    groups += 1
    if groups == 2 or groups > 4:
        raise ValueError(f"no score for group {groups}")
    return [float(place % 2) for place, _ in enumerate(completions)]
"""


@pytest.mark.slow
def test_a_failing_reward_function_costs_groups_and_then_ends_the_run_with_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing_rewards.py").write_text(FAILING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    ended = launch(
        "--config",
        "launch/configs/tiny-cpu.yaml",
        f"run.output_dir={tmp_path}",
        "run.name=failing",
        "run.steps=4",
        "data.eval_prompts=0",
        "algorithm.name=grpo",
        "algorithm.prompts_per_step=4",
        "rewards.functions=[{function: 'failing_rewards:score'}]",
        "rewards.check_prompts=0",  # the check of ground truths would report the failure, too
    )
    assert ended.returncode != 0
    output = ended.stdout + ended.stderr
    assert output.count("no score for group 2") == 1, output
    assert "3 ready 0 waiting 1 failed" in output
    assert "no group of step 2 could be scored" in output
    assert f"step 1 is in {tmp_path}/failing/checkpoints: continue with --resume {tmp_path}/failing" in output
    (step,) = metrics(tmp_path / "failing")
    assert (step["groups_ready"], step["groups_failed"], step["groups_dropped"]) == (3, 1, 1)
    assert step["trained_tokens"] > 0
    assert list((tmp_path / "failing" / "checkpoints").iterdir())
