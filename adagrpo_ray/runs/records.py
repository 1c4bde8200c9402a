"""The registry of metrics: records of a run's steps and evaluations, and of a rollout actor's load.

The annotation of a field declares its metric: name, unit, how the values of ranks and micro-batches are combined,
description, panel. A metric that was not measured is None, and null in JSON; no record takes infinity or NaN. Prompts
without a difficulty are counted under the difficulty "". The metrics of sampling, which a step has too, are in
`sampling_metrics`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Self

from adagrpo_ray.runs import panels, units
from adagrpo_ray.runs.metric import Metric
from adagrpo_ray.runs.record import Record
from adagrpo_ray.runs.sampling_metrics import SamplingMetrics

# fmt: off
# A metric in three lines: its type; its name, unit and combination; its description and panel.


@dataclass(frozen=True, kw_only=True)
class StepRecord(SamplingMetrics):
    """One training step.

    If a step makes several passes over its batch, metrics of the update are those of the first one, which is on fresh
    data. `clip_ratio_...` and `policy_ratio_...` are those of the last one, since the ratio is 1 in the first.
    `last_update_...` are those of the last one too, and None if a step makes one pass.
    """

    step: Annotated[int, Metric(
        "step", units.STEPS, "last",
        "training steps done")]
    step_time: Annotated[float, Metric(
        "step_time", units.SECONDS, "last",
        "time of the step", panels.STEP_TIME)]
    time: Annotated[Mapping[str, float], Metric(
        "time/{phase}", units.SECONDS, "last",
        "time that the step waited for its phases rollout, train and sync", panels.PHASES, counter=True)]
    tokens_per_second: Annotated[float | None, Metric(
        "adaptive/tokens_per_second", units.TOKENS_PER_SECOND, "last",
        "generated tokens over the time of the step", panels.PACE)]
    trained_tokens: Annotated[int, Metric(
        "adaptive/trained_tokens", units.TOKENS, "sum",
        "tokens trained on", panels.TOKENS, counter=True)]
    loss: Annotated[float | None, Metric(
        "loss", units.LOSS, "sum",
        "loss whose gradient is taken", panels.POLICY)]
    kl: Annotated[float | None, Metric(
        "kl", units.NATS, "mean over tokens",
        "estimate of the KL divergence from the reference policy", panels.POLICY)]
    entropy: Annotated[float | None, Metric(
        "entropy", units.NATS, "mean over tokens",
        "entropy of the policy at the tokens trained on", panels.POLICY)]
    entropy_by_difficulty: Annotated[Mapping[str, float | None], Metric(
        "entropy_by_difficulty/{difficulty}", units.NATS, "mean over tokens",
        "entropy of the policy at the tokens trained on, by difficulty")]
    grad_norm: Annotated[float | None, Metric(
        "grad_norm", units.NORM, "last",
        "norm of the gradient before it is clipped", panels.POLICY)]
    learning_rate: Annotated[float | None, Metric(
        "learning_rate", units.RATE, "last",
        "learning rate of the last update", panels.POLICY)]
    clip_ratio_low_mean: Annotated[float | None, Metric(
        "clip_ratio/low_mean", units.SHARE, "mean over tokens",
        "share of tokens without a gradient, since their ratio is below the clip range", panels.POLICY)]
    clip_ratio_high_mean: Annotated[float | None, Metric(
        "clip_ratio/high_mean", units.SHARE, "mean over tokens",
        "share of tokens without a gradient, since their ratio is above the clip range", panels.POLICY)]
    clip_ratio_region_mean: Annotated[float | None, Metric(
        "clip_ratio/region_mean", units.SHARE, "mean over tokens",
        "share of tokens without a gradient, since their ratio is outside of the clip range", panels.POLICY)]
    policy_ratio_min: Annotated[float | None, Metric(
        "adaptive/policy_ratio/min", units.RATIO, "min",
        "smallest ratio of a token's probability to that before the updates on its mini-batch")]
    policy_ratio_mean: Annotated[float | None, Metric(
        "adaptive/policy_ratio/mean", units.RATIO, "mean over tokens",
        "ratio of a token's probability to that before the updates on its mini-batch")]
    policy_ratio_max: Annotated[float | None, Metric(
        "adaptive/policy_ratio/max", units.RATIO, "max",
        "largest ratio of a token's probability to that before the updates on its mini-batch")]
    skipped_updates: Annotated[int, Metric(
        "adaptive/skipped_updates", units.UPDATES, "last",
        "updates skipped on all ranks, since a loss, log-probability or gradient was not finite",
        panels.POLICY, counter=True)]
    last_update_loss: Annotated[float | None, Metric(
        "adaptive/last_update/loss", units.LOSS, "sum",
        "loss of the last of several passes over the batch")]
    last_update_kl: Annotated[float | None, Metric(
        "adaptive/last_update/kl", units.NATS, "mean over tokens",
        "KL divergence in the last of several passes")]
    last_update_entropy: Annotated[float | None, Metric(
        "adaptive/last_update/entropy", units.NATS, "mean over tokens",
        "entropy in the last of several passes")]
    last_update_grad_norm: Annotated[float | None, Metric(
        "adaptive/last_update/grad_norm", units.NORM, "last",
        "norm of the gradient in the last of several passes")]
    sampling_logp_difference_mean: Annotated[float | None, Metric(
        "sampling/sampling_logp_difference/mean", units.NATS, "mean over tokens",
        "absolute difference of a token's log-probabilities in the learner and in sampling", panels.OFF_POLICY)]
    sampling_logp_difference_max: Annotated[float | None, Metric(
        "sampling/sampling_logp_difference/max", units.NATS, "max",
        "largest absolute difference of a token's log-probabilities in the learner and in sampling",
        panels.OFF_POLICY)]
    importance_sampling_ratio_min: Annotated[float | None, Metric(
        "sampling/importance_sampling_ratio/min", units.RATIO, "min",
        "smallest weight of the rollout correction, after its bounds", panels.OFF_POLICY)]
    importance_sampling_ratio_mean: Annotated[float | None, Metric(
        "sampling/importance_sampling_ratio/mean", units.RATIO, "mean over tokens",
        "weight of the rollout correction, after its bounds; one a completion if the correction is by sequence",
        panels.OFF_POLICY)]
    importance_sampling_ratio_max: Annotated[float | None, Metric(
        "sampling/importance_sampling_ratio/max", units.RATIO, "max",
        "largest weight of the rollout correction, after its bounds", panels.OFF_POLICY)]
    importance_sampling_ratio_frac_truncated: Annotated[float | None, Metric(
        "sampling/importance_sampling_ratio/frac_truncated", units.SHARE, "mean over tokens",
        "share of tokens whose weight was moved to a bound", panels.OFF_POLICY)]
    importance_sampling_ratio_frac_masked: Annotated[float | None, Metric(
        "sampling/importance_sampling_ratio/frac_masked", units.SHARE, "mean over tokens",
        "share of tokens whose weight is 0, since it was outside of the bounds", panels.OFF_POLICY)]
    weight_version: Annotated[int, Metric(
        "adaptive/weight_version", units.VERSIONS, "last",
        "version of the adapter that the step sends to the rollout actors")]
    sync_bytes: Annotated[int, Metric(
        "adaptive/sync_bytes", units.BYTES, "last",
        "bytes of the adapter sent to the rollout actors", panels.SYNC, counter=True)]
    rollout_actors: Annotated[int, Metric(
        "adaptive/rollout_actors", units.ACTORS, "last",
        "rollout actors at work when the step was sampled")]
    rollout_restarts: Annotated[int, Metric(
        "adaptive/rollout_restarts", units.ACTORS, "last",
        "rollout actors replaced since the program started")]
    sync_time: Annotated[float | None, Metric(
        "adaptive/sync_time", units.SECONDS, "last",
        "time until all rollout actors had the adapter of the step, or that of the step before if rollouts run ahead",
        panels.STEP_TIME)] = None
    passes: Annotated[int | None, Metric(
        "adaptive/passes", units.PASSES, "last",
        "passes over the batch of the step; 0: nothing was trained on")] = None


@dataclass(frozen=True)
class EvaluationRecord(Record):
    """The evaluation on the held-out prompts, and on benchmarks, after `step` training steps.

    Without held-out prompts there is no accuracy, and the numbers of samples and failed prompts are 0.
    """

    step: int
    accuracy: Annotated[float | None, Metric(
        "eval/accuracy", units.SHARE, "mean over prompts",
        "share of correct completions of held-out prompts", panels.ACCURACY)]
    accuracy_by_difficulty: Annotated[Mapping[str, float], Metric(
        "eval/accuracy_by_difficulty/{difficulty}", units.SHARE, "mean over prompts",
        "share of correct completions of held-out prompts, by difficulty", panels.ACCURACY_BY_DIFFICULTY)]
    samples: Annotated[int, Metric(
        "eval/samples", units.COMPLETIONS, "sum",
        "completions of held-out prompts")]
    failed: Annotated[int, Metric(
        "eval/failed", units.PROMPTS, "sum",
        "held-out prompts that could not be generated or scored, and count as wrong")]
    completions_mean_length: Annotated[float | None, Metric(
        "eval/completions/mean_length", units.TOKENS, "mean over prompts",
        "length of the completions of held-out prompts", panels.COMPLETIONS)]
    runtime: Annotated[float, Metric(
        "eval/runtime", units.SECONDS, "last",
        "time of the evaluation", panels.STEP_TIME)]
    benchmark_accuracy: Annotated[Mapping[str, float], Metric(
        "eval/{benchmark}/accuracy", units.SHARE, "mean over prompts",
        "share of correct completions of a benchmark", panels.BENCHMARKS)] = field(default_factory=dict)
    benchmark_pass_at_k: Annotated[Mapping[str, float], Metric(
        "eval/{benchmark}/pass_at_k", units.SHARE, "mean over prompts",
        "share of a benchmark's problems with a correct completion")] = field(default_factory=dict)
    benchmark_samples: Annotated[Mapping[str, int], Metric(
        "eval/{benchmark}/samples", units.COMPLETIONS, "sum",
        "completions of a benchmark")] = field(default_factory=dict)
    benchmark_failed: Annotated[Mapping[str, int], Metric(
        "eval/{benchmark}/failed", units.PROMPTS, "sum",
        "problems of a benchmark that could not be generated or scored, and count as wrong")] = field(
        default_factory=dict)
    benchmark_completions_mean_length: Annotated[Mapping[str, float], Metric(
        "eval/{benchmark}/completions/mean_length", units.TOKENS, "mean over prompts",
        "length of the completions of a benchmark")] = field(default_factory=dict)
    benchmark_completions_clipped_ratio: Annotated[Mapping[str, float], Metric(
        "eval/{benchmark}/completions/clipped_ratio", units.SHARE, "mean over prompts",
        "share of a benchmark's completions that the token limit cut off")] = field(default_factory=dict)
    judge_requests: Annotated[Mapping[str, int], Metric(
        "eval/judge_requests/{function}", units.REQUESTS, "sum",
        "requests of the evaluation to a judge or reward model, repeated ones included", counter=True)] = field(
        default_factory=dict)
    judge_prompt_tokens: Annotated[Mapping[str, int], Metric(
        "eval/judge_prompt_tokens/{function}", units.TOKENS, "sum",
        "tokens of prompts that a judge or reward model counted in the evaluation", counter=True)] = field(
        default_factory=dict)
    judge_completion_tokens: Annotated[Mapping[str, int], Metric(
        "eval/judge_completion_tokens/{function}", units.TOKENS, "sum",
        "tokens of replies that a judge counted in the evaluation", counter=True)] = field(default_factory=dict)
    judge_cache_hits: Annotated[Mapping[str, int], Metric(
        "eval/judge_cache_hits/{function}", units.COMPLETIONS, "sum",
        "completions of the evaluation that had the score of an equal request", counter=True)] = field(
        default_factory=dict)
    judge_failures: Annotated[Mapping[str, int], Metric(
        "eval/judge_failures/{function}", units.COMPLETIONS, "sum",
        "completions of the evaluation that got no score from a judge or reward model", counter=True)] = field(
        default_factory=dict)
    judge_cost: Annotated[Mapping[str, float], Metric(
        "eval/judge_cost/{function}", units.COST, "sum",
        "price of the tokens of a judge or reward model in the evaluation; none without its prices",
        counter=True)] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The evaluation whose `to_dict` returned `values`; the label that a line of the run folder adds is ignored."""
        return super().from_dict({name: value for name, value in values.items() if name != "label"})


@dataclass(frozen=True)
class RolloutLoad(Record):
    """The load of a rollout actor; None for a metric that the source of the record does not measure.

    It changes within a step, and so only Prometheus gets it.
    """

    outstanding_tokens: Annotated[int | None, Metric(
        "rollout/outstanding_tokens/{actor}", units.TOKENS, "last",
        "upper bound of the tokens that the rollout actor still has to generate", panels.OUTSTANDING)] = None
    outstanding_requests: Annotated[int | None, Metric(
        "rollout/outstanding_requests/{actor}", units.REQUESTS, "last",
        "requests, one for each group, that the rollout actor has not answered", panels.REQUESTS)] = None
    sequences_running: Annotated[int | None, Metric(
        "rollout/sequences_running/{actor}", units.SEQUENCES, "last",
        "sequences that the rollout actor's engine decodes", panels.SEQUENCES)] = None
    sequences_waiting: Annotated[int | None, Metric(
        "rollout/sequences_waiting/{actor}", units.SEQUENCES, "last",
        "sequences that wait for room in the rollout actor's engine", panels.SEQUENCES)] = None
    kv_cache_usage: Annotated[float | None, Metric(
        "rollout/kv_cache_usage/{actor}", units.SHARE, "last",
        "share of the engine's KV cache in use", panels.KV_CACHE)] = None


# fmt: on

RECORDS: tuple[type[Record], ...] = (StepRecord, EvaluationRecord, RolloutLoad)
"""All kinds of records that declare metrics."""
