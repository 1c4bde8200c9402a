"""Metrics of parts that a run may have: judges and reward models behind servers, and environments."""

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
class OptionalMetrics(Record):
    """Metrics of judges by their names, empty without them; metrics of episodes are None without an environment."""

    judge_requests: Annotated[Mapping[str, int], Metric(
        "adaptive/judge_requests/{function}", units.REQUESTS, "sum",
        "requests to a judge or reward model since the step before, repeated ones and those of evaluations included",
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
