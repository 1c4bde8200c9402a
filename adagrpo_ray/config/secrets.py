"""No secret may stand in a configuration, which goes to config.yaml, to checkpoints, logs and dashboards."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from adagrpo_ray.config.tree import Config
from adagrpo_ray.errors import ConfigError

_SECRET = re.compile(r"://[^/\s?#]*@|://\S*[?&][^\s=&]+=")
_USER, _QUERY = re.compile(r"://[^/\s?#]*@"), re.compile(r"(://[^\s?]*)\?[^\s=&]+=\S*")
_NAMES = r"[\w.-]*(?:token|secret|password|passwd|api[_-]?key|access[_-]?key|credentials?)"
_ASSIGNED = re.compile(rf"(?i)(\b{_NAMES}\s*[=:]\s*).*", re.DOTALL)
_OPTION = re.compile(rf"(?i)--?{_NAMES}")
_TOKEN = re.compile(r"\b(?:hf_|sk-|gh[pousr]_|github_pat_|glpat-|xox[abp]-|AKIA)[A-Za-z0-9_-]{8,}")


def holds_secret(text: str) -> bool:
    """Whether a URL in `text` holds a user, a password, or a query with values, as signed URLs do."""
    return _SECRET.search(text) is not None


def refuse_secrets(config: Config) -> None:
    """ConfigError, without the value, where a setting that names a place holds a secret."""
    run, model, data = config.run, config.model, config.data
    for key, place in (
        ("run.output_dir", run.output_dir),
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


def shown_command(arguments: Sequence[str]) -> str:
    """A command line as it may be shown and typed again: what is or may hold a secret is `***`."""
    shown, hide = [], False
    for argument in arguments:
        shown.append("***" if hide else _shown(argument))
        hide = _OPTION.fullmatch(argument) is not None
    return shlex.join(shown)


def _shown(argument: str) -> str:
    for pattern, kept in ((_ASSIGNED, r"\1***"), (_USER, "://***@"), (_QUERY, r"\1?***"), (_TOKEN, "***")):
        argument = pattern.sub(kept, argument)
    return argument
