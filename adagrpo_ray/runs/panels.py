"""Panels: metrics that are drawn together in the report, in the page of runs and in Grafana."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Panel:
    """A panel.

    name: the name of its image file.
    title: the heading.
    caption: a sentence or two below it.
    """

    name: str
    title: str
    caption: str


REWARD = Panel(
    "reward", "Reward", "Of first attempts: resampling until one completion is correct would raise the reward."
)
REWARDS = Panel("rewards", "Rewards by function", "Of first attempts, before weights.")
ACCURACY = Panel("accuracy", "Accuracy", "Of first attempts in training, and on the held-out prompts (eval).")
ACCURACY_BY_DIFFICULTY = Panel("accuracy-by-difficulty", "Accuracy by difficulty", ACCURACY.caption)
BENCHMARKS = Panel("benchmarks", "Accuracy on benchmarks", "In evaluations during training, by benchmark.")
ZERO_STD = Panel(
    "zero-std",
    "Groups with zero reward std",
    "A group whose completions all have the same reward gives no gradient. The share is of first attempts, before "
    "resampling; `after` is the share of the groups trained on, after resampling.",
)
RESAMPLES = Panel("resamples", "Resamples by rung", "Groups that were sampled again.")
RESCUED = Panel("rescued", "Resamples that met the criterion, by rung", "Groups that resampling rescued.")
PILOTS = Panel(
    "pilots",
    "Pilots and commits",
    "A pilot with correct and wrong completions has a commit; if all are correct it has none; else its group fails.",
)
GROUP_SIZE = Panel("group-size", "Group size", "Completions of an attempt, or of a pilot and its commit together.")
CALIBRATION = Panel(
    "calibration",
    "Errors of expected success rates",
    "Brier scores of first attempts, before their results were learned: 0 is perfect, and a known rate of one half has "
    "0.25. The prior is that of its difficulty class, without own results of a prompt.",
)
GROUPS = Panel("groups", "Groups by outcome", "Waiting groups are resampled in a later step.")
TOKENS = Panel("tokens", "Tokens", "Extra tokens are those of resamples, and a part of the generated ones.")
PACE = Panel("pace", "Generated tokens per second", "Generated tokens of a step, over its time.")
STEP_TIME = Panel(
    "step-time",
    "Time of a step",
    "A step ends when every rollout actor holds the new adapter, or when it is sent if rollouts run ahead. The times "
    "of an evaluation and of a sync are curves of their own.",
)
PHASES = Panel(
    "phases",
    "Time by phase",
    "Rollout and sync are the times that the learner waits for groups and for rollout actors.",
)
SYNC = Panel("sync", "Adapter sync", "Bytes of adapters sent to the rollout actors.")
STALENESS = Panel(
    "staleness",
    "Staleness, in versions",
    "Number of versions by which the completions trained on are older than the weights.",
)
OFF_POLICY = Panel(
    "off-policy",
    "Distance from the policy that sampled",
    "Distance of the learner's log-probabilities from those that tokens were sampled with, and the importance weights "
    "of the rollout correction.",
)
POLICY = Panel("policy", "Policy update", "The update of each step.")
COMPLETIONS = Panel("completions", "Completions", "Length of completions, and the share that the token limit cuts off.")
EPISODES = Panel(
    "episodes",
    "Episodes",
    "Turns and tokens of episodes, and the share that the largest number of turns cuts off.",
)
TOOLS = Panel("tools", "Tools", "Calls of tools by the policy, and errors of tools and of the environment.")
OUTSTANDING = Panel("outstanding-tokens", "Outstanding tokens by rollout actor", "")
REQUESTS = Panel("requests", "Requests by rollout actor", "")
SEQUENCES = Panel("sequences", "Sequences in vLLM", "")
KV_CACHE = Panel("kv-cache", "KV cache in use", "")

PANELS = (
    *(REWARD, REWARDS, ACCURACY, ACCURACY_BY_DIFFICULTY, BENCHMARKS, ZERO_STD, GROUP_SIZE, RESAMPLES, RESCUED, PILOTS),
    CALIBRATION,
    *(GROUPS, TOKENS, PACE, STEP_TIME, PHASES, SYNC, STALENESS, OFF_POLICY, POLICY, COMPLETIONS, EPISODES, TOOLS),
    *(OUTSTANDING, REQUESTS, SEQUENCES, KV_CACHE),
)
"""All panels, in the order of the Grafana dashboard."""
