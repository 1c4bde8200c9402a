"""Runs of episodes on real Ray, vLLM and DeepSpeed: log-probabilities of turns, and a resumed run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.held import assert_same_run
from tests.support.program import launch, metrics, settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # the tiny model that calls a tool is built first

# One update on samples that were all drawn from the policy itself, so that the engine's log-probabilities are its own.
OVERRIDES = ("algorithm.triggers=[]", "algorithm.num_iterations=1", "learner.learning_rate=0.001", "checkpoint.every=1")


def run(folder: Path, steps: int, *options: str) -> Path:
    config = ("--config", "launch/configs/tiny-calculator.yaml")
    ended = launch(*config, *options, *settings(folder, steps), *OVERRIDES)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps."""
    return run(tmp_path_factory.mktemp("whole"), 3)


def test_engine_and_learner_agree_on_the_tokens_of_turns(whole: Path) -> None:
    """The policy is float32, and moves by each update."""
    steps = metrics(whole)
    assert [step["step"] for step in steps] == [1, 2, 3]
    for step in steps:
        assert step["episodes_observed_tokens"] > 0
        assert step["tools_calls"] > 0
        assert step["sampling_logp_difference_max"] < 1e-4
    assert max(step["grad_norm"] for step in steps) > 0


def test_samples_show_turns_and_the_result_of_the_tool(whole: Path) -> None:
    groups = [json.loads(line) for line in (whole / "samples.jsonl").read_text().splitlines()]
    episodes = [c for group in groups for attempt in group["attempts"] for c in attempt["completions"]]
    called = [episode for episode in episodes if any(turn.get("tool") == "calculator" for turn in episode["turns"])]
    assert called
    for episode in called:
        first = episode["turns"][0]
        assert first["observation"]
        assert episode["observed_tokens"] > 0


def test_a_resumed_run_of_episodes_gives_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    run(tmp_path, 1)
    assert_same_run(run(tmp_path, 3, "--resume", "auto"), whole)
