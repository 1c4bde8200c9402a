"""Lists the models to chat with: base models, the runs that trained them, and the adapters of these runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from adagrpo_ray.checkpoint.files import BEST, is_checkpoint
from adagrpo_ray.config import Config
from adagrpo_ray.errors import ConfigError, HistoryError
from adagrpo_ray.model.folder import ADAPTER_CONFIG
from adagrpo_ray.model.pretrained import TINY
from adagrpo_ray.runs.reader import CONFIG, find
from adagrpo_ray.viewer.store import ChatSettings

FINAL = "end of the run"


@dataclass(frozen=True)
class Run:
    """A run folder; `adapters` maps their names on the page to folders, the last adapter first."""

    name: str
    config: Config
    adapters: dict[str, Path]


@dataclass(frozen=True)
class Base:
    """A base model, the settings with which it is served, and the runs that trained it, the newest first."""

    name: str
    config: Config
    runs: tuple[Run, ...] = ()

    def run(self, name: str) -> Run | None:
        """The run of this name; None if there is none."""
        return next((run for run in self.runs if run.name == name), None)


def default_config(root: str, file: str | None, overrides: Sequence[str], fallback: Path) -> Config:
    """The settings in `file`, else those of the newest run in `root`, else those in `fallback`, with `overrides`.

    Runs whose settings cannot be read by this version are skipped.
    """
    return Config.load(file or next((path / CONFIG for path in find(root) if _known(path)), fallback), overrides)


def offers(root: str, default: Config) -> tuple[Base, ...]:
    """The base models of the runs in `root`, after that of `default`, which is listed even without a run.

    Runs whose settings cannot be read by this version are skipped.
    """
    bases = {_identity(default): (default, list[Run]())}
    for run in _runs(root):
        bases.setdefault(_identity(run.config), (run.config, []))[1].append(run)
    names: dict[str, Base] = {}
    for config, runs in bases.values():
        name = config.model.path
        if name in names:  # tiny models with different settings
            name = f"{name} ({runs[0].name})"
        names[name] = Base(name, _of_base(config), tuple(runs))
    return tuple(names.values())


def other_base(path: str, default: Config) -> Base:
    """A model that no run trained, served with the settings of `default`; code that comes with it is never run."""
    model = default.model.model_copy(update={"path": path, "trust_remote_code": False})
    return Base(path, _of_base(default.model_copy(update={"model": model})))


def _of_base(config: Config) -> Config:
    """The settings without the initial adapter of a run, which is not served and may not exist any more."""
    return config.model_copy(update={"model": config.model.model_copy(update={"adapter": None})})


def adapter_of(settings: ChatSettings, base: Base) -> tuple[Path | None, str]:
    """The folder of the chosen adapter, None if none is chosen, and its name on the page."""
    if settings.folder:
        # Path.expanduser raises for an unknown user, and a name is incomplete while it is typed.
        return Path(os.path.expanduser(settings.folder)), Path(settings.folder).name
    run = base.run(settings.run)
    path = run.adapters.get(settings.checkpoint) if run is not None else None
    return path, f"{settings.run}, {settings.checkpoint}" if path else "no adapter"


def _identity(config: Config) -> str:
    """A text that is equal for equal base models. A tiny model is determined by the settings of its task."""
    if config.model.path != TINY:
        return config.model.path
    return f"{TINY} {config.arithmetic!r} {config.data.format!r}"


def _runs(root: str) -> list[Run]:
    try:
        folders = find(root)
    except HistoryError:
        return []
    runs = []
    for folder in folders:
        config = _known(folder)
        with suppress(OSError):  # files of other users may be unreadable
            if config is not None:
                runs.append(Run(folder.name, config, _adapters(folder)))
    return runs


def _known(folder: Path) -> Config | None:
    """The settings of the run in `folder`; None if there are none, or this version cannot read them."""
    file = folder / CONFIG
    try:
        return _config_as_of(file, file.stat().st_mtime_ns)
    except (ConfigError, OSError):
        return None


@lru_cache(maxsize=1024)
def _config_as_of(file: Path, written: int) -> Config:
    """The settings in a file, cached by its modification time: YAML is slow, and every change reads all runs."""
    return Config.load(file)


def _adapters(folder: Path) -> dict[str, Path]:
    found = {FINAL: folder / "adapter"} if (folder / "adapter" / ADAPTER_CONFIG).is_file() else {}
    checkpoints = folder / "checkpoints"
    best = (checkpoints / BEST).read_text(errors="replace").strip() if (checkpoints / BEST).is_file() else ""
    steps = (path for path in checkpoints.glob("step-*") if is_checkpoint(path))
    for path in sorted(steps, key=lambda path: int(path.name.partition("-")[2]), reverse=True):
        step = int(path.name.partition("-")[2])
        found[f"step {step}{' (best)' if path.name == best else ''}"] = path
    return found
