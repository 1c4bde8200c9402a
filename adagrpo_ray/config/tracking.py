"""Settings of the trackers, which get the metrics of a run in addition to its folder."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from adagrpo_ray.config.section import Location, Section


class TrackingSettings(Section):
    """Trackers that get the metrics of a run, in addition to its folder and TensorBoard."""

    wandb: str | None = Field(
        None,
        pattern=r"^[^/\\#?%:\s]{1,128}(/[^/\\#?%:\s]{1,128})?$",
        max_length=256,
        description="Weights & Biases: PROJECT or ENTITY/PROJECT; the key is in the environment (docs/tracking.md)",
    )
    mlflow: Location | None = Field(None, description="MLflow: a tracking server's URI, or a folder (docs/tracking.md)")
    tags: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._/-]*$", max_length=64)], ...] = Field(
        (), description="tags of the run in W&B and MLflow"
    )
    upload_adapter: bool = Field(False, description="upload the trained adapter to W&B and MLflow")
    prometheus_port: Annotated[int, Field(ge=1024, le=65535)] | None = Field(
        None,
        description="port for Prometheus on a Ray that the run starts; a cluster has `ray start --metrics-export-port`",
    )
