"""Trackers: W&B and MLflow if they are configured, and Prometheus through Ray.

`session` creates the trackers of a run. `tracker` is their interface, and `wandb_run` and `mlflow_run` implement it,
with `sample_tables` for samples. `relay` calls a tracker in a thread of its own, so that the run never waits for it.
`ray_metrics` sets the gauges and counters that Ray serves to Prometheus; `grafana` makes the dashboard.
"""

from adagrpo_ray.tracking.session import check_trackers, tracked

__all__ = ["check_trackers", "tracked"]
