"""The sampling metrics of a step, from a collection made by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.rewards.consumption import Consumption
from adagrpo_ray.runs.sampling_metrics import SamplingMetrics
from adagrpo_ray.sampling.collection import Failure
from adagrpo_ray.sampling.metrics import sampling_metrics
from adagrpo_ray.types import Attempt
from tests.support.builders import NOTHING, make_attempt, make_group, make_prompt

SETTINGS = AlgorithmSettings()
EASY, HARD = make_prompt("easy", "2 digits"), make_prompt("hard", "5 digits")
# Columns of by_function: format, answer.
SOLVED = make_group(
    make_attempt([3, 1], by_function=[[1, 2], [1, 0]], correct=[True, False], lengths=[4, 6]), prompt=EASY
)
FAILED = make_group(
    make_attempt([1, 1], by_function=[[1, math.nan], [1, 0]], correct=[False, False], lengths=[10, 20]), prompt=HARD
)
RESCUED = FAILED.with_attempt(
    make_attempt([9, 9], rung=0, by_function=[[4, 5], [4, 5]], correct=[True, True], lengths=[30, 50])
)
STUCK = FAILED.with_attempt(
    make_attempt([1, 1], rung=1, by_function=[[1, 0], [1, 0]], correct=[False, False], lengths=[5, 5])
)


def metrics(
    height: int = 3,
    *,
    exhausted_dropped: bool = False,
    settings: AlgorithmSettings = SETTINGS,
    **parts: object,
) -> SamplingMetrics:
    collection = replace(NOTHING, **parts)  # type: ignore[arg-type]
    return sampling_metrics(2, collection, ["format", "answer"], height, settings, exhausted_dropped=exhausted_dropped)


@pytest.fixture
def step() -> SamplingMetrics:
    """One group solved at once, one after a resample, one that failed on the second rung."""
    return metrics(ready=(SOLVED, RESCUED), exhausted=(STUCK,), attempts=(SOLVED, FAILED, RESCUED, STUCK))


def test_rewards_are_of_first_attempts_only(step: SamplingMetrics) -> None:
    assert step.reward == pytest.approx((3 + 1 + 1 + 1) / 4)
    assert step.rewards_mean == {
        "format": pytest.approx(1.0),
        "answer": pytest.approx((2 + 0 + 0) / 3),  # if it applies
    }


def test_accuracy_is_of_first_attempts_only(step: SamplingMetrics) -> None:
    assert step.accuracy == pytest.approx(0.25)
    assert step.accuracy_by_difficulty == {"2 digits": 0.5, "5 digits": 0.0}


def at_version(attempt: Attempt, version: int) -> Attempt:
    """The attempt with completions of a version of the weights."""
    return replace(attempt, completions=tuple(replace(c, weight_version=version) for c in attempt.completions))


@pytest.mark.parametrize(
    ("train_on", "expected"),
    [
        ("last", 0.0),
        ("all", 3 * 4 / 8),
        ("max_variance", 3 * 1 / 4),  # two new successes, the new failure and an old one
    ],
)
def test_staleness_is_that_of_the_completions_trained_on(train_on: str, expected: float) -> None:
    """Step 5 trains version 4; the failed attempt is of version 1."""
    old = at_version(make_attempt([0, 0, 0, 0], by_function=[[0, 0]] * 4), 1)
    new = at_version(make_attempt([1, 1, 1, 0], rung=0, by_function=[[1, 1]] * 4), 4)
    group = make_group(old, new)
    settings = AlgorithmSettings.model_validate({"train_on": train_on, "group_size": 8})
    collection = replace(NOTHING, ready=(group,), attempts=(group,))
    found = sampling_metrics(5, collection, ["format", "answer"], 1, settings, exhausted_dropped=False)
    assert found.staleness == pytest.approx(expected)


def test_groups_are_counted_by_how_they_ended() -> None:
    step = metrics(ready=(SOLVED, RESCUED), exhausted=(STUCK,), waiting=(FAILED,) * 4, aged=(FAILED,) * 5)
    counted = (step.groups_ready, step.groups_exhausted, step.groups_waiting, step.groups_dropped)
    assert counted == (2, 1, 4, 5)


def test_dropped_exhausted_groups_count_as_dropped() -> None:
    step = metrics(exhausted=(STUCK,), aged=(FAILED,) * 5, exhausted_dropped=True)
    assert (step.groups_exhausted, step.groups_dropped) == (1, 6)


def test_groups_that_could_not_be_scored_count_in_tokens_but_not_in_rates() -> None:
    new, old = replace(FAILED, attempts=()), FAILED
    lost = [Failure(group, tokens, dropped=True, error="no") for group, tokens in ((new, 7), (old, 5))]
    step = metrics(ready=(SOLVED,), failed=tuple(lost), aged=(STUCK,), attempts=(SOLVED,))
    assert (step.groups_failed, step.groups_dropped) == (2, 3)
    assert (step.generated_tokens, step.extra_tokens) == (10 + 7 + 5, 5)
    assert (step.accuracy, step.frac_reward_zero_std) == (0.5, 0.0)
    kept = [replace(failure, dropped=False) for failure in lost]  # their attempts are among the attempts
    step = metrics(exhausted=(STUCK,), failed=tuple(kept), attempts=(STUCK,))
    assert (step.groups_failed, step.groups_dropped, step.generated_tokens) == (2, 0, 10)


def test_resamples_are_counted_by_rung_and_difficulty(step: SamplingMetrics) -> None:
    assert step.resamples == (1, 1, 0)
    assert step.resamples_by_difficulty == {"5 digits": 2}


def test_a_rung_above_the_ladder_is_still_counted() -> None:
    assert metrics(height=0, attempts=(STUCK,)).resamples == (0, 1)


def test_zero_std_shares_before_and_after_resampling(step: SamplingMetrics) -> None:
    assert step.frac_reward_zero_std == pytest.approx(1 / 2)  # of two first attempts, the hard one's has zero std
    assert step.frac_reward_zero_std_after == pytest.approx(1 / 3)  # of three groups that ended, the stuck one


def test_tokens_of_all_attempts_count(step: SamplingMetrics) -> None:
    assert step.generated_tokens == 10 + 30 + 80 + 10
    assert step.completions_mean_length == pytest.approx(130 / 8)


def test_the_group_size_is_that_of_first_attempts(step: SamplingMetrics) -> None:
    large = replace(make_group(make_attempt([1] * 6, by_function=[[1, 0]] * 6)), size=6)
    assert step.group_size == 2
    assert metrics(ready=(SOLVED, large), attempts=(SOLVED, large, RESCUED)).group_size == 4


def test_earlier_steps_attempts_do_not_count_again() -> None:
    step = metrics(ready=(RESCUED,), attempts=(RESCUED,))  # its first attempt was an earlier step's
    assert step.generated_tokens == 80
    assert step.accuracy is None
    assert step.reward is None


def test_a_step_without_groups_has_no_rates() -> None:
    step = metrics(height=2)
    assert step.resamples == (0, 0)
    assert (step.generated_tokens, step.groups_ready, step.accuracy_by_difficulty) == (0, 0, {})
    unknown = [step.reward, step.accuracy, step.frac_reward_zero_std, step.frac_reward_zero_std_after]
    unknown += [step.completions_mean_length, step.group_size]
    assert {*unknown, *step.rewards_mean.values()} == {None}


def test_rescued_groups_and_extra_tokens_are_counted(step: SamplingMetrics) -> None:
    assert step.rescued == (1, 0, 0)
    assert step.extra_tokens == 80 + 10
    assert step.informative_groups == 2


def test_a_group_without_advantages_is_not_informative() -> None:
    """The last attempt of the rescued group has equal rewards, and those of all of its attempts differ."""
    groups = {"ready": (SOLVED, RESCUED), "exhausted": (STUCK,)}
    assert metrics(**groups).informative_groups == 2
    last = AlgorithmSettings(train_on="last", advantage_statistics="last")
    assert metrics(**groups, settings=last).informative_groups == 1


def test_a_commit_of_a_rung_above_the_ladder_counts_as_rescued() -> None:
    """Its pilot is of an earlier step, so that no resample of this step has the rung."""
    assert metrics(height=0, ready=(RESCUED_COMMIT,), attempts=(RESCUED_COMMIT,)).rescued == (1,)


def test_a_group_that_began_on_a_rung_was_not_rescued_by_it() -> None:
    began = replace(RESCUED, attempts=RESCUED.attempts[1:], start=1)
    step = metrics(ready=(began,), attempts=(began,))
    assert (step.resamples, step.rescued) == ((0, 0, 0), (0, 0, 0))


def test_zero_std_shares_by_difficulty(step: SamplingMetrics) -> None:
    assert step.frac_reward_zero_std_by_difficulty == {"2 digits": 0.0, "5 digits": 1.0}
    assert step.frac_reward_zero_std_after_by_difficulty == {"2 digits": 0.0, "5 digits": 0.5}


def test_reward_stds_are_over_all_first_completions(step: SamplingMetrics) -> None:
    """As TRL 1.16: `nanstd` of the batch, with n - 1; scores that do not apply are left out."""
    assert step.reward_std == pytest.approx(1.0)  # of 3, 1, 1, 1: mean 1.5, squares 2.25 + 3 x 0.25, of 3
    assert step.rewards_std == {
        "format": 0.0,
        "answer": pytest.approx(math.sqrt(8 / 3 / 2)),  # of 2, 0, 0: mean 2/3, squares 16/9 + 2 x 4/9, of 2
    }


def test_share_of_zero_std_groups_by_function(step: SamplingMetrics) -> None:
    # Format has zero std in both first attempts; the answer of the hard group has one score, which does not count.
    assert step.rewards_frac_zero_std == {"format": 1.0, "answer": 0.0}


def test_a_function_that_never_applies_has_no_metrics() -> None:
    group = make_group(make_attempt([1, 0], by_function=[[1, math.nan], [0, math.nan]]))
    step = metrics(ready=(group,), attempts=(group,))
    assert step.rewards_mean["answer"] is None
    assert step.rewards_std["answer"] is None
    assert step.rewards_frac_zero_std == {"format": 0.0, "answer": None}


def test_truncated_and_terminated_completions_have_separate_metrics() -> None:
    attempt = make_attempt([1, 0, 0], by_function=[[1, 0]] * 3, lengths=[4, 6, 20])
    cut = replace(
        attempt, completions=(*attempt.completions[:2], replace(attempt.completions[2], finish_reason="length"))
    )
    step = metrics(ready=(make_group(cut),), attempts=(make_group(cut), SOLVED))
    assert (step.completions_clipped_ratio, step.completions_mean_length, step.completions_mean_terminated_length) == (
        1 / 5,
        8.0,
        5.0,
    )
    only = replace(attempt, completions=tuple(replace(c, finish_reason="length") for c in attempt.completions))
    step = metrics(attempts=(make_group(only),))
    assert (step.completions_clipped_ratio, step.completions_mean_length, step.completions_mean_terminated_length) == (
        1.0,
        10.0,
        None,
    )


def test_a_step_without_groups_has_no_stds() -> None:
    step = metrics()
    assert (step.reward_std, step.completions_clipped_ratio, step.completions_mean_terminated_length) == (
        None,
        None,
        None,
    )
    assert step.rewards_std == step.rewards_frac_zero_std == {"format": None, "answer": None}


@pytest.mark.filterwarnings("error")
def test_large_rewards_have_a_finite_std() -> None:
    group = make_group(make_attempt([3e38, -3e38], by_function=[[3e38, 0], [-3e38, 0]]))
    step = metrics(ready=(group,), attempts=(group,))
    assert step.reward_std == pytest.approx(3e38 * math.sqrt(2), rel=1e-6)


PILOT = make_group(
    make_attempt([1, 0], by_function=[[1, 1], [0, 0]], correct=[True, False], lengths=[3, 3], part="pilot"), prompt=EASY
)
COMMITTED = PILOT.with_attempt(
    make_attempt([1, 1], by_function=[[1, 1], [1, 1]], correct=[True, True], lengths=[2, 2], part="commit")
)
FAILED_PILOT = make_group(
    make_attempt([0, 0], by_function=[[0, 0], [0, 0]], correct=[False, False], lengths=[1, 1], part="pilot"),
    prompt=HARD,
)
RESCUED_PILOT = FAILED_PILOT.with_attempt(
    make_attempt([1, 0], rung=0, by_function=[[1, 1], [0, 0]], correct=[True, False], lengths=[4, 4], part="pilot")
)
RESCUED_COMMIT = RESCUED_PILOT.with_attempt(
    make_attempt([0, 0], by_function=[[0, 0], [0, 0]], correct=[False, False], lengths=[6, 6], part="commit")
)
SOLVED_PILOT = make_group(
    make_attempt([1, 1], by_function=[[1, 1], [1, 1]], correct=[True, True], lengths=[1, 1], part="pilot"), prompt=EASY
)
PARTS = (PILOT, COMMITTED, FAILED_PILOT, RESCUED_PILOT, RESCUED_COMMIT, SOLVED_PILOT)


def test_pilots_and_commits_are_counted() -> None:
    step = metrics(ready=(COMMITTED, RESCUED_COMMIT, SOLVED_PILOT), attempts=PARTS)
    assert (step.pilots, step.commits, step.solved_pilots) == (4, 2, 1)
    nothing = metrics(ready=(SOLVED,), attempts=(SOLVED,))
    assert (nothing.pilots, nothing.commits, nothing.solved_pilots) == (0, 0, 0)


def test_accuracy_and_reward_are_of_the_pilots_of_first_attempts() -> None:
    step = metrics(ready=(COMMITTED, RESCUED_COMMIT, SOLVED_PILOT), attempts=PARTS)
    assert step.accuracy == pytest.approx((0.5 + 0.0 + 1.0) / 3)
    assert step.reward == pytest.approx((1 + 0 + 0 + 0 + 1 + 1) / 6)
    assert step.frac_reward_zero_std == pytest.approx(2 / 3)


def test_a_commit_is_no_resample_and_belongs_to_the_attempt_of_its_pilot() -> None:
    step = metrics(ready=(COMMITTED, RESCUED_COMMIT, SOLVED_PILOT), attempts=PARTS)
    assert step.resamples == step.rescued == (1, 0, 0)
    assert step.resamples_by_difficulty == {"5 digits": 1}
    assert step.generated_tokens == 6 + 4 + 2 + 8 + 12 + 2
    assert step.extra_tokens == 8 + 12  # of the resample and its commit
    assert step.informative_groups == 2


def test_tokens_of_a_commit_that_could_not_be_scored_are_extra_if_its_pilot_was_a_resample() -> None:
    first = Failure(PILOT, 5, dropped=True, error="no", part="commit")
    later = replace(first, group=RESCUED_PILOT, tokens=7)
    assert metrics(failed=(first,)).extra_tokens == 0
    assert metrics(failed=(later,)).extra_tokens == 7
    assert metrics(failed=(replace(first, part="pilot"),)).extra_tokens == 5


def test_skipped_prompts_are_counted() -> None:
    assert metrics(skipped=3).prompts_skipped == 3
    assert metrics().prompts_skipped == 0


def test_consumption_of_judges_is_counted_by_their_names() -> None:
    consumed = {"helpful": Consumption(5, 100, 9, 2, 1, cost=0.5), "preferred": Consumption(3, 40)}
    step = sampling_metrics(2, NOTHING, ["helpful"], 0, SETTINGS, exhausted_dropped=False, consumption=consumed)
    assert step.judge_requests == {"helpful": 5, "preferred": 3}
    assert (step.judge_prompt_tokens["helpful"], step.judge_completion_tokens["helpful"]) == (100, 9)
    assert (step.judge_cache_hits["helpful"], step.judge_failures["helpful"]) == (2, 1)
    assert step.judge_cost == {"helpful": 0.5}, "no cost without a price"
