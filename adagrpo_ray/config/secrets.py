"""No secret may stand in a configuration, which goes to config.yaml, to checkpoints, logs and dashboards."""

from __future__ import annotations

import re

from adagrpo_ray.config.tree import Config
from adagrpo_ray.errors import ConfigError

_SECRET = re.compile(r"://[^/\s?#]*@|://\S*[?&][^\s=&]+=")


def holds_secret(text: str) -> bool:
    """Whether a URL in `text` holds a user, a password, or a query with values, as signed URLs do."""
    return _SECRET.search(text) is not None


def refuse_secrets(config: Config) -> None:
    """ConfigError, without the value, where a setting that names a place holds a secret."""
    run, model, data = config.run, config.model, config.data
    for key, place in (
        ("run.folder", run.folder),
        ("run.ray_address", run.ray_address),
        ("model.path", model.path),
        ("model.adapter", model.adapter),
        ("data.source", data.source),
        ("tracking.mlflow", config.tracking.mlflow),
    ):
        if place is not None and holds_secret(place):
            raise ConfigError(
                f"{key} holds a user, a password or a query in its URL, which config.yaml and logs would show; leave "
                "them to the environment"
            )
