"""Panels: metrics that are drawn together in the report, in the page of runs and in Grafana."""

from __future__ import annotations

from dataclasses import dataclass

from adagrpo_ray.runs import units
from adagrpo_ray.runs.units import Unit


@dataclass(frozen=True)
class Panel:
    """A panel.

    name: the name of its image file.
    title: the heading.
    caption: a sentence or two below it.
    unit: the unit of all its metrics; None if their units differ.
    """

    name: str
    title: str
    caption: str
    unit: Unit | None = None


REWARD = Panel(
    "reward",
    "Reward",
    "Of first attempts: resampling until one completion is correct would raise the reward.",
    units.REWARD,
)
REWARDS = Panel("rewards", "Rewards by function", "Of first attempts, before weights.", units.REWARD)
ACCURACY = Panel(
    "accuracy", "Accuracy", "Of first attempts in training, and on the held-out prompts (eval).", units.SHARE
)
ACCURACY_BY_DIFFICULTY = Panel("accuracy-by-difficulty", "Accuracy by difficulty", ACCURACY.caption, units.SHARE)
ZERO_STD = Panel(
    "zero-std",
    "Groups with zero reward std",
    "A group whose completions all have the same reward gives no gradient. The share is of first attempts, before "
    "resampling; `after` is the share of the groups trained on, after resampling.",
    units.SHARE,
)
RESAMPLES = Panel("resamples", "Resamples by rung", "Groups that were sampled again.", units.GROUPS)
RESCUED = Panel("rescued", "Resamples that met the criterion, by rung", "Groups that resampling rescued.", units.GROUPS)
GROUP_SIZE = Panel("group-size", "Group size", "Completions of a first attempt.", units.COMPLETIONS)
GROUPS = Panel("groups", "Groups by outcome", "Waiting groups are resampled in a later step.", units.GROUPS)
TOKENS = Panel(
    "tokens", "Tokens", "Extra tokens are those of resamples, and a part of the generated ones.", units.TOKENS
)
PACE = Panel(
    "pace", "Generated tokens per second", "Generated tokens of a step, over its time.", units.TOKENS_PER_SECOND
)
STEP_TIME = Panel(
    "step-time",
    "Time of a step",
    "A step ends when every rollout actor holds the new adapter. The time of an evaluation is a curve of its own.",
    units.SECONDS,
)
PHASES = Panel("phases", "Time by phase", "Rollout is the time that the learner waits for groups.", units.SECONDS)
SYNC = Panel("sync", "Adapter sync", "Bytes of adapters sent to the rollout actors.", units.BYTES)
STALENESS = Panel(
    "staleness",
    "Staleness, in versions",
    "Number of versions by which the completions trained on are older than the weights.",
    units.VERSIONS,
)
OFF_POLICY = Panel(
    "off-policy",
    "Distance from the policy that sampled",
    "Distance of the learner's log-probabilities from those that tokens were sampled with, and the importance weights "
    "of the rollout correction.",
)
POLICY = Panel("policy", "Policy update", "The update of each step.")
COMPLETIONS = Panel("completions", "Completions", "Length of completions, and the share that the token limit cuts off.")
OUTSTANDING = Panel("outstanding-tokens", "Outstanding tokens by rollout actor", "", units.TOKENS)
REQUESTS = Panel("requests", "Requests by rollout actor", "", units.REQUESTS)
SEQUENCES = Panel("sequences", "Sequences in vLLM", "", units.SEQUENCES)
KV_CACHE = Panel("kv-cache", "KV cache in use", "", units.SHARE)

PANELS = (
    *(REWARD, REWARDS, ACCURACY, ACCURACY_BY_DIFFICULTY, ZERO_STD, GROUP_SIZE, RESAMPLES, RESCUED, GROUPS, TOKENS),
    *(PACE, STEP_TIME, PHASES, SYNC, STALENESS, OFF_POLICY, POLICY, COMPLETIONS),
    *(OUTSTANDING, REQUESTS, SEQUENCES, KV_CACHE),
)
"""All panels, in the order of the Grafana dashboard."""
