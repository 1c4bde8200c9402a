"""The TensorBoard tags of a record. The part before the slash is the group that TensorBoard folds."""

from __future__ import annotations

from collections.abc import Mapping

from adagrpo_ray.runs.measured import measured
from adagrpo_ray.runs.names import name_of
from adagrpo_ray.runs.records import EvaluationRecord, StepRecord


def step_scalars(record: StepRecord) -> dict[str, float]:
    """What TensorBoard shows of a step."""
    return measured(
        {
            "reward/mean": record.reward_mean,
            **_tags("reward_by_function", record.reward_by_function),
            "reward_std": record.reward_std,
            "frac_reward_zero_std": record.flat_before,
            **_tags("rewards", record.reward_by_function, "/mean"),
            **_tags("rewards", record.reward_std_by_function, "/std"),
            **_tags("rewards", record.flat_by_function, "/frac_zero_std"),
            "completions/mean_length": record.completion_length,
            "completions/clipped_ratio": record.clipped_ratio,
            "completions/mean_terminated_length": record.mean_terminated_length,
            "accuracy/first_attempt": record.accuracy,
            **_tags("accuracy_by_difficulty", record.accuracy_by_difficulty),
            "adaptive/groups_ready": record.groups_ready,
            "adaptive/groups_waiting": record.groups_waiting,
            "adaptive/groups_late": record.groups_late,
            "adaptive/groups_exhausted": record.groups_exhausted,
            "adaptive/groups_failed": record.groups_failed,
            "adaptive/groups_dropped": record.groups_dropped,
            "adaptive/flat_before": record.flat_before,
            "adaptive/flat_after": record.flat_after,
            **{f"adaptive/resamples_rung_{rung}": count for rung, count in enumerate(record.resamples)},
            **{f"adaptive/rescued_rung_{rung}": count for rung, count in enumerate(record.rescued)},
            **_tags("resamples_by_difficulty", record.resamples_by_difficulty),
            **_tags("flat_before_by_difficulty", record.flat_before_by_difficulty),
            **_tags("flat_after_by_difficulty", record.flat_after_by_difficulty),
            "adaptive/informative_groups": record.informative_groups,
            "adaptive/group_size": record.group_size,
            "tokens/extra": record.extra_tokens,
            "policy/loss": record.loss,
            "policy/kl": record.kl,
            "policy/grad_norm": record.grad_norm,
            "policy/learning_rate": record.learning_rate,
            "policy/skipped_updates": record.skipped_updates,
            "policy/clip_share": record.clip_share,
            "policy/staleness": record.staleness,
            "policy/behaviour_gap": record.behaviour_gap,
            "policy/correction_mean": record.correction_mean,
            "policy/capped_share": record.capped_share,
            "policy/ratio_min": record.ratio_min,
            "policy/ratio_mean": record.ratio_mean,
            "policy/ratio_max": record.ratio_max,
            "policy/masked_share": record.masked_share,
            "clip_ratio/low_mean": record.clip_low,
            "clip_ratio/high_mean": record.clip_high,
            "sampling/importance_sampling_ratio/min": record.correction_min,
            "sampling/importance_sampling_ratio/mean": record.correction_mean,
            "sampling/importance_sampling_ratio/max": record.correction_max,
            "sampling/sampling_logp_difference/mean": record.behaviour_gap,
            "sampling/sampling_logp_difference/max": record.behaviour_gap_max,
            "entropy": record.entropy,
            **_tags("entropy_by_difficulty", record.entropy_by_difficulty),
            "policy/last_loss": record.last_loss,
            "policy/last_kl": record.last_kl,
            "policy/last_entropy": record.last_entropy,
            "policy/last_grad_norm": record.last_grad_norm,
            "tokens/generated": record.generated_tokens,
            "tokens/trained": record.trained_tokens,
            "tokens/completion_length": record.completion_length,
            "sync/weight_version": record.weight_version,
            "sync/bytes": record.sync_bytes,
            "rollout/actors": record.rollout_actors,
            "rollout/restarts": record.rollout_restarts,
            "time/step": record.seconds,
            **_tags("time", record.seconds_by_phase),
        }
    )


def evaluation_scalars(record: EvaluationRecord) -> dict[str, float]:
    """What TensorBoard shows of a measurement on the held-out prompts."""
    return measured(
        {
            "accuracy/held_out": record.accuracy,
            **_tags("accuracy_held_out_by_difficulty", record.accuracy_by_difficulty),
            "accuracy/held_out_failed": record.failed,
            "tokens/held_out_completion_length": record.mean_length,
            "time/evaluation": record.seconds,
        }
    )


def _tags(group: str, values: Mapping[str, float | None], figure: str = "") -> dict[str, float | None]:
    """One tag a text, by its name there; without the nameless difficulty, which has no curve of its own."""
    return {f"{group}/{name_of(text)}{figure}": value for text, value in values.items() if text}
