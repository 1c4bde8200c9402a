"""The TensorBoard tags of a record. The part before the slash is the group that TensorBoard folds."""

from __future__ import annotations

from collections.abc import Mapping

from adagrpo_ray.observe.measured import measured
from adagrpo_ray.observe.records import EvaluationRecord, StepRecord


def step_scalars(record: StepRecord) -> dict[str, float]:
    """What TensorBoard shows of a step."""
    return measured(
        {
            "reward/mean": record.reward_mean,
            **_tags("reward_by_function", record.reward_by_function),
            "accuracy/first_attempt": record.accuracy,
            **_tags("accuracy_by_level", record.accuracy_by_level),
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
            **_tags("resamples_by_level", record.resamples_by_level),
            **_tags("flat_before_by_level", record.flat_before_by_level),
            **_tags("flat_after_by_level", record.flat_after_by_level),
            "adaptive/informative_groups": record.informative_groups,
            "adaptive/group_size": record.group_size,
            "tokens/extra": record.extra_tokens,
            "policy/loss": record.loss,
            "policy/kl": record.kl,
            "policy/grad_norm": record.grad_norm,
            "policy/learning_rate": record.learning_rate,
            "policy/clip_share": record.clip_share,
            "policy/staleness": record.staleness,
            "policy/behaviour_gap": record.behaviour_gap,
            "policy/correction_mean": record.correction_mean,
            "policy/capped_share": record.capped_share,
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
            **_tags("accuracy_held_out_by_level", record.accuracy_by_level),
            "accuracy/held_out_failed": record.failed,
            "tokens/held_out_completion_length": record.mean_length,
            "time/evaluation": record.seconds,
        }
    )


def _tags(group: str, values: Mapping[str, float | None]) -> dict[str, float | None]:
    """One tag a name, without the nameless level, which has no curve of its own."""
    return {f"{group}/{name}": value for name, value in values.items() if name}
