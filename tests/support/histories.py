"""Invented steps, evaluations and samples, for tests of the code that reads runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from adagrpo_ray.runs.records import EvaluationRecord, StepRecord
from adagrpo_ray.runs.samples import AttemptSample, CompletionSample, GroupSample, TurnSample
from adagrpo_ray.types import Part, SamplingParams

STEP = StepRecord(
    step=1,
    step_time=0.5,
    tokens_per_second=8000.0,
    reward=0.25,
    rewards_mean={"exact": 0.25, "length": None},
    accuracy=0.375,
    groups_ready=6,
    groups_waiting=2,
    groups_late=1,
    groups_exhausted=1,
    groups_failed=0,
    groups_dropped=0,
    resamples=(3, 1),
    resamples_by_difficulty={"2": 1, "5": 3},
    accuracy_by_difficulty={"2": 0.75, "5": 0.0},
    rescued=(2, 0),
    pilots=8,
    commits=3,
    solved_pilots=2,
    frac_reward_zero_std=0.5,
    frac_reward_zero_std_after=0.125,
    frac_reward_zero_std_by_difficulty={"5": 1.0},
    frac_reward_zero_std_after_by_difficulty={"5": 0.25},
    informative_groups=5,
    brier_posterior=0.125,
    brier_prior=0.1875,
    reliability={"0": (12, 0.5, 0), "0.7": (8, 6.0, 7)},
    generated_tokens=4000,
    extra_tokens=1000,
    staleness=0.75,
    judge_requests={"helpful": 9},
    judge_prompt_tokens={"helpful": 900},
    judge_completion_tokens={"helpful": 45},
    judge_cache_hits={"helpful": 7},
    judge_failures={"helpful": 1},
    judge_cost={"helpful": 0.125},
    trained_tokens=3200,
    completions_mean_length=50.0,
    group_size=6.5,
    prompts_skipped=3,
    reward_std=0.5,
    rewards_std={"exact": 0.5, "length": None},
    rewards_frac_zero_std={"exact": 0.5, "length": None},
    completions_clipped_ratio=0.25,
    completions_mean_terminated_length=42.0,
    loss=0.01,
    kl=None,
    grad_norm=None,
    learning_rate=3e-4,
    clip_ratio_region_mean=0.02,
    sampling_logp_difference_mean=0.001,
    importance_sampling_ratio_mean=1.01,
    importance_sampling_ratio_frac_truncated=0.0,
    weight_version=1,
    sync_bytes=1024,
    rollout_actors=2,
    rollout_restarts=0,
    sync_time=0.05,
    passes=2,
    time={"rollout": 0.3, "train": 0.15, "sync": 0.05},
    clip_ratio_low_mean=0.015,
    clip_ratio_high_mean=0.005,
    policy_ratio_min=0.7,
    policy_ratio_mean=1.0,
    policy_ratio_max=1.4,
    sampling_logp_difference_max=0.25,
    importance_sampling_ratio_min=0.9,
    importance_sampling_ratio_max=2.0,
    importance_sampling_ratio_frac_masked=0.0,
    entropy=1.25,
    entropy_by_difficulty={"2": 0.5, "5": 2.0},
    last_update_loss=None,
    last_update_kl=None,
    last_update_entropy=None,
    last_update_grad_norm=None,
    skipped_updates=0,
)

EPISODES: dict[str, Any] = {
    "episodes_turns_mean": 2.5,
    "episodes_length_mean": 120.0,
    "episodes_observed_tokens": 900,
    "episodes_clipped_ratio": 0.125,
    "tools_calls": 12,
    "tools_errors": 3,
}
"""The metrics of a step with an environment."""

BEFORE = EvaluationRecord(
    0, 0.25, {"10": 0.0, "2": 0.5}, samples=128, failed=0, completions_mean_length=40.0, runtime=3.0
)

ON_BENCHMARKS = replace(
    BEFORE,
    benchmark_accuracy={"gsm8k": 0.375, "aime24": 0.0},
    benchmark_pass_at_k={"gsm8k": 0.5, "aime24": 0.0},
    benchmark_samples={"gsm8k": 400, "aime24": 960},
    benchmark_failed={"gsm8k": 0, "aime24": 2},
    benchmark_completions_mean_length={"gsm8k": 120.0, "aime24": 900.5},
    benchmark_completions_clipped_ratio={"gsm8k": 0.25, "aime24": 1.0},
)

JUDGED = {
    "judge_requests": {"helpful": 4},
    "judge_prompt_tokens": {"helpful": 400},
    "judge_completion_tokens": {"helpful": 20},
    "judge_cache_hits": {"helpful": 1},
    "judge_failures": {"helpful": 2},
    "judge_cost": {"helpful": 0.5},
}
"""The metrics of an evaluation with a judge."""

SAMPLE = GroupSample(1, "p", "2+3", "1 digit", "5", "trained", ())

BASE = SamplingParams()
RUNGS = (SamplingParams(temperature=2.0, min_p=0.1), SamplingParams(temperature=1.3, answer=SamplingParams(top_k=20)))


def step(number: int, **changes: Any) -> StepRecord:
    """A training step, whose reward and accuracy grow with its number."""
    better = 1 - 1 / (1 + number / 20)
    record = replace(
        STEP,
        step=number,
        reward=better,
        rewards_mean={"exact": better, "length": None},
        accuracy=better,
        accuracy_by_difficulty={"2 digits": 0.75, "5 digits": 0.0},
        resamples_by_difficulty={"2 digits": 1, "5 digits": 3},
        frac_reward_zero_std_by_difficulty={"5 digits": 1.0},
        frac_reward_zero_std_after_by_difficulty={"5 digits": 0.25},
        grad_norm=0.3,
        weight_version=number,
    )
    return replace(record, **changes)


def evaluation(number: int, accuracy: float) -> EvaluationRecord:
    """An evaluation after step `number`."""
    return EvaluationRecord(
        step=number,
        accuracy=accuracy,
        accuracy_by_difficulty={"2 digits": accuracy},
        samples=128,
        failed=0,
        completions_mean_length=50.0,
        runtime=1.5,
    )


def attempt(
    rewards: Sequence[float], rung: int = -1, *, trained: bool = True, text: str = "12+7=19", part: Part = "whole"
) -> AttemptSample:
    """An attempt of a group; completions with a reward above 0 are correct."""
    mean = sum(rewards) / len(rewards)
    completions = tuple(
        CompletionSample(
            text=f"{text} #{number}",
            tokens=9,
            finish_reason="stop",
            weight_version=1,
            reward=reward,
            rewards={"exact": reward, "length": None},
            correct=reward > 0,
            advantage=reward - mean if trained else None,
        )
        for number, reward in enumerate(rewards)
    )
    return AttemptSample(rung, BASE if rung < 0 else RUNGS[rung], completions, part)


def episode(*turns: TurnSample, **changes: Any) -> AttemptSample:
    """An attempt with one episode; by default its first turn calls a tool and gets an answer."""
    made = turns or (
        TurnSample(0, 4, "add(12, 7)", "the sum is 19", reward=0.25, tool="add"),
        TurnSample(9, 12, "12+7=19"),
    )
    whole = attempt([1.0])
    completion = replace(whole.completions[0], text=made[-1].text, turns=made, observed_tokens=5, **changes)
    return replace(whole, completions=(completion,))


def group(number: int, *attempts: AttemptSample, **changes: Any) -> GroupSample:
    """A group of step `number`; by default it has two attempts, of which the second has a correct completion."""
    sample = GroupSample(
        step=number,
        prompt_id=f"p{number}",
        prompt=f"{number}+7=",
        difficulty="2 digits",
        answer=str(number + 7),
        outcome="trained",
        attempts=attempts or (attempt([0.0, 0.0], trained=False), attempt([1.0, 0.0], 0)),
    )
    return replace(sample, **changes)
