"""Where a run is shown while it goes on: W&B and MLflow where asked for, Prometheus through Ray.

`session` says which trackers a run has. `tracker` is what each of them does, `relay` keeps the run from waiting for
one, `wandb_run` and `mlflow_run` are the two that there are, with `tables` for samples. `ray_metrics` sets the gauges
and counters that Ray serves to Prometheus.
"""

from adagrpo_ray.tracking.session import check_trackers, tracked

__all__ = ["check_trackers", "tracked"]
