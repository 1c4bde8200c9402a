"""The metrics of sampling a step: of rewards, of resampling, of judges and reward models, and of episodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from adagrpo_ray.runs import panels, units
from adagrpo_ray.runs.metric import Metric
from adagrpo_ray.runs.record import Record

# fmt: off
# A metric in three lines: its type; its name, unit and combination; its description and panel.


@dataclass(frozen=True, kw_only=True)
class SamplingMetrics(Record):
    """Result of sampling one step, measured on rank 0.

    Rewards and accuracy count first attempts only: resampling until one completion is correct would bias them upwards.
    Of a first attempt with a pilot they count the pilot, since only some pilots have a commit.
    Rewards are computed as in TRL 1.16: `reward_std` and `rewards/{function}/std` divide by n - 1 and are taken over
    all completions of the step. Tokens of aborted requests are not counted. Lengths and numbers of tokens count
    those that the policy wrote, except in metrics of episodes. Metrics of judges and reward models are empty without
    them; metrics of episodes and tools are None without an environment.

    `reliability` is data of the report and no metric, so that trackers do not get it. By the success rate that was
    expected of first attempts, in tenths from "0" to "0.9", it has three numbers of completions: all of them, those
    that were expected to be correct, and those that were.
    """

    reward: Annotated[float | None, Metric(
        "reward", units.REWARD, "mean over completions",
        "reward of first attempts", panels.REWARD)]
    reward_std: Annotated[float | None, Metric(
        "reward_std", units.REWARD, "std over completions",
        "standard deviation of the rewards of first attempts", panels.REWARD)]
    rewards_mean: Annotated[Mapping[str, float | None], Metric(
        "rewards/{function}/mean", units.REWARD, "mean over completions",
        "score of first attempts by a function, over the completions that it applies to", panels.REWARDS)]
    rewards_std: Annotated[Mapping[str, float | None], Metric(
        "rewards/{function}/std", units.REWARD, "std over completions",
        "standard deviation of the scores of first attempts by a function")]
    rewards_frac_zero_std: Annotated[Mapping[str, float | None], Metric(
        "rewards/{function}/frac_zero_std", units.SHARE, "mean over groups",
        "share of first attempts whose scores by a function are all equal, of those with at least two scores")]
    frac_reward_zero_std: Annotated[float | None, Metric(
        "frac_reward_zero_std", units.SHARE, "mean over groups",
        "share of first attempts whose rewards are all equal: before resampling", panels.ZERO_STD)]
    frac_reward_zero_std_by_difficulty: Annotated[Mapping[str, float], Metric(
        "frac_reward_zero_std_by_difficulty/{difficulty}", units.SHARE, "mean over groups",
        "share of first attempts whose rewards are all equal, by difficulty")]
    frac_reward_zero_std_after: Annotated[float | None, Metric(
        "adaptive/frac_reward_zero_std_after", units.SHARE, "mean over groups",
        "share of the groups trained on whose rewards, of all attempts, are all equal: after resampling",
        panels.ZERO_STD)]
    frac_reward_zero_std_after_by_difficulty: Annotated[Mapping[str, float], Metric(
        "adaptive/frac_reward_zero_std_after_by_difficulty/{difficulty}", units.SHARE, "mean over groups",
        "share of the groups trained on whose rewards are all equal, by difficulty")]
    accuracy: Annotated[float | None, Metric(
        "accuracy", units.SHARE, "mean over groups",
        "share of correct completions in first attempts", panels.ACCURACY)]
    accuracy_by_difficulty: Annotated[Mapping[str, float], Metric(
        "accuracy_by_difficulty/{difficulty}", units.SHARE, "mean over groups",
        "share of correct completions in first attempts, by difficulty", panels.ACCURACY_BY_DIFFICULTY)]
    completions_mean_length: Annotated[float | None, Metric(
        "completions/mean_length", units.TOKENS, "mean over completions",
        "length of the completions of all attempts", panels.COMPLETIONS)]
    completions_mean_terminated_length: Annotated[float | None, Metric(
        "completions/mean_terminated_length", units.TOKENS, "mean over completions",
        "length of the completions that ended by themselves", panels.COMPLETIONS)]
    completions_clipped_ratio: Annotated[float | None, Metric(
        "completions/clipped_ratio", units.SHARE, "mean over completions",
        "share of completions that the token limit cut off", panels.COMPLETIONS)]
    resamples: Annotated[tuple[int, ...], Metric(
        "adaptive/resamples/rung_{rung}", units.GROUPS, "sum",
        "groups that were sampled again on a rung of the ladder", panels.RESAMPLES, counter=True)]
    resamples_by_difficulty: Annotated[Mapping[str, int], Metric(
        "adaptive/resamples_by_difficulty/{difficulty}", units.GROUPS, "sum",
        "groups that were sampled again, by difficulty", counter=True)]
    rescued: Annotated[tuple[int, ...], Metric(
        "adaptive/rescued/rung_{rung}", units.GROUPS, "sum",
        "resamples that met the criterion", panels.RESCUED, counter=True)]
    pilots: Annotated[int | None, Metric(
        "adaptive/pilots", units.GROUPS, "sum",
        "pilots sampled, of first attempts and of resamples", panels.PILOTS, counter=True)] = None
    commits: Annotated[int | None, Metric(
        "adaptive/commits", units.GROUPS, "sum",
        "groups whose pilot was followed by a commit", panels.PILOTS, counter=True)] = None
    solved_pilots: Annotated[int | None, Metric(
        "adaptive/solved_pilots", units.GROUPS, "sum",
        "pilots whose completions are all correct, so that no commit follows", panels.PILOTS, counter=True)] = None
    groups_ready: Annotated[int, Metric(
        "adaptive/groups_ready", units.GROUPS, "sum",
        "groups that met the criterion", panels.GROUPS, counter=True)]
    groups_waiting: Annotated[int, Metric(
        "adaptive/groups_waiting", units.GROUPS, "last",
        "groups that wait for a resample in a later step", panels.GROUPS)]
    groups_late: Annotated[int, Metric(
        "adaptive/groups_late", units.GROUPS, "sum",
        "groups that were still being sampled when the step ended", panels.GROUPS, counter=True)]
    groups_exhausted: Annotated[int, Metric(
        "adaptive/groups_exhausted", units.GROUPS, "sum",
        "groups that failed the criterion on the last rung", panels.GROUPS, counter=True)]
    groups_failed: Annotated[int, Metric(
        "adaptive/groups_failed", units.GROUPS, "sum",
        "groups that could not be generated or scored", panels.GROUPS, counter=True)]
    groups_dropped: Annotated[int, Metric(
        "adaptive/groups_dropped", units.GROUPS, "sum",
        "groups that were dropped: exhausted, failed or too old", panels.GROUPS, counter=True)]
    informative_groups: Annotated[int, Metric(
        "adaptive/informative_groups", units.GROUPS, "sum",
        "groups trained on whose advantages are not all 0", panels.GROUPS, counter=True)]
    group_size: Annotated[float | None, Metric(
        "adaptive/group_size", units.COMPLETIONS, "mean over groups",
        "size of groups at their first attempt: its completions or, with pilots, those of pilot and commit",
        panels.GROUP_SIZE)]
    prompts_skipped: Annotated[int | None, Metric(
        "adaptive/prompts_skipped", units.PROMPTS, "sum",
        "prompts left out, since they are solved or hopeless by earlier results", counter=True)] = None
    brier_posterior: Annotated[float | None, Metric(
        "adaptive/brier/posterior", units.BRIER, "mean over groups",
        "Brier score of the success rates that posteriors expected of first attempts", panels.CALIBRATION)] = None
    brier_prior: Annotated[float | None, Metric(
        "adaptive/brier/prior", units.BRIER, "mean over groups",
        "Brier score without own results of the prompts, by the difficulty class", panels.CALIBRATION)] = None
    reliability: Mapping[str, tuple[int, float, int]] = field(default_factory=dict)
    generated_tokens: Annotated[int, Metric(
        "adaptive/generated_tokens", units.TOKENS, "sum",
        "tokens generated", panels.TOKENS, counter=True)]
    extra_tokens: Annotated[int, Metric(
        "adaptive/extra_tokens", units.TOKENS, "sum",
        "tokens generated by resamples and their commits", panels.TOKENS, counter=True)]
    staleness: Annotated[float | None, Metric(
        "adaptive/staleness", units.VERSIONS, "mean over completions",
        "versions by which the completions trained on are older than the weights", panels.STALENESS)]
    judge_requests: Annotated[Mapping[str, int], Metric(
        "adaptive/judge_requests/{function}", units.REQUESTS, "sum",
        "requests to a judge or reward model since the step before, repeated ones included, without evaluations",
        counter=True)] = field(default_factory=dict)
    judge_prompt_tokens: Annotated[Mapping[str, int], Metric(
        "adaptive/judge_prompt_tokens/{function}", units.TOKENS, "sum",
        "tokens of prompts that a judge or reward model counted", counter=True)] = field(default_factory=dict)
    judge_completion_tokens: Annotated[Mapping[str, int], Metric(
        "adaptive/judge_completion_tokens/{function}", units.TOKENS, "sum",
        "tokens of replies that a judge counted", counter=True)] = field(default_factory=dict)
    judge_cache_hits: Annotated[Mapping[str, int], Metric(
        "adaptive/judge_cache_hits/{function}", units.COMPLETIONS, "sum",
        "completions that had the score of an equal request", counter=True)] = field(default_factory=dict)
    judge_failures: Annotated[Mapping[str, int], Metric(
        "adaptive/judge_failures/{function}", units.COMPLETIONS, "sum",
        "completions whose request got no score from a judge or reward model, after its retries",
        counter=True)] = field(default_factory=dict)
    judge_cost: Annotated[Mapping[str, float], Metric(
        "adaptive/judge_cost/{function}", units.COST, "sum",
        "price of the tokens of a judge or reward model; none without its prices",
        counter=True)] = field(default_factory=dict)
    episodes_turns_mean: Annotated[float | None, Metric(
        "episodes/turns/mean", units.TURNS, "mean over completions",
        "turns of an episode", panels.EPISODES)] = None
    episodes_length_mean: Annotated[float | None, Metric(
        "episodes/length/mean", units.TOKENS, "mean over completions",
        "length of an episode with its observations, without the prompt", panels.EPISODES)] = None
    episodes_observed_tokens: Annotated[int | None, Metric(
        "episodes/observed_tokens", units.TOKENS, "sum",
        "tokens of episodes that the environment wrote", panels.EPISODES, counter=True)] = None
    episodes_clipped_ratio: Annotated[float | None, Metric(
        "episodes/clipped_ratio", units.SHARE, "mean over completions",
        "share of episodes that the largest number of turns cut off", panels.EPISODES)] = None
    tools_calls: Annotated[int | None, Metric(
        "tools/calls", units.CALLS, "sum",
        "calls of tools by the policy", panels.TOOLS, counter=True)] = None
    tools_errors: Annotated[int | None, Metric(
        "tools/errors", units.CALLS, "sum",
        "turns that ended in an error of a tool or of the environment", panels.TOOLS, counter=True)] = None
