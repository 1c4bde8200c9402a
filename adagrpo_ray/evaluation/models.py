"""Finds the models to evaluate: the base, and adapters in run folders, checkpoints and PEFT folders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adagrpo_ray.checkpoint import files as checkpoint
from adagrpo_ray.checkpoint import kept
from adagrpo_ray.checkpoint.resume import FOLDER
from adagrpo_ray.config.model import ModelSettings
from adagrpo_ray.config.rollout import RolloutSettings
from adagrpo_ray.config.tree import Config
from adagrpo_ray.errors import ConfigError, ModelError
from adagrpo_ray.lora.adapters import RANKS, Adapter, check_fit, served_rank
from adagrpo_ray.lora.payload import AdapterWeights
from adagrpo_ray.model.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from adagrpo_ray.model.pretrained import linear_shapes, read_model_config
from adagrpo_ray.model.quantised import check_unquantised
from adagrpo_ray.storage import places as storage

OPTION = "--adapter"
BASE = "base"
CONFIG_FILE = "config.yaml"


@dataclass(frozen=True)
class Place:
    """The location of an adapter.

    folder: a PEFT folder or a checkpoint.
    run: the folder of the run that trained it; None if it is unknown.
    """

    folder: Path
    run: Path | None

    @property
    def name(self) -> str:
        """The name of its run, if it is known, and of the checkpoint; else the name of the folder."""
        if self.run is None:
            return self.folder.name
        return f"{self.run.name}/{self.folder.name}" if checkpoint.is_checkpoint(self.folder) else self.run.name

    @property
    def config(self) -> Path | None:
        """The configuration file of its run; None if there is none."""
        file = self.run / CONFIG_FILE if self.run is not None else None
        return file if file is not None and file.is_file() else None


@dataclass(frozen=True)
class Candidate:
    """A model to evaluate.

    folder: its files.
    digest: differs between all models of the same base.
    weights: None for the base.
    """

    name: str
    folder: str
    digest: str
    weights: AdapterWeights | None


def locate(given: str, notify: Callable[[str], None] = lambda text: None) -> Place:
    """Find the adapter at `given`.

    That is a run folder (its final adapter, or before there is one its newest checkpoint), a checkpoint, the file
    `best` in a folder of checkpoints, or a folder in PEFT's layout. Raises ModelError if it is none of these.
    `notify` receives warnings about damaged checkpoints.
    """
    if storage.is_url(given):
        raise ModelError(f"{OPTION}={given!r} is a URL; copy that run's adapter/ to a folder here and give that")
    path = Path(kept.named(storage.plain(given).rstrip("/"))).resolve()
    if not path.is_dir():
        raise ModelError(
            f"{OPTION}={given!r} is no folder; give a run folder, a checkpoint, or a PEFT adapter's folder"
        )
    if checkpoint.is_checkpoint(path):
        return Place(path, path.parents[1])
    if any((path / name).is_file() for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)):
        of_run = path.name == "adapter" and (path.parent / CONFIG_FILE).is_file()
        return Place(path, path.parent if of_run else None)
    if (path / "adapter").is_dir():
        return Place(path / "adapter", path)
    newest = checkpoint.newest(path / FOLDER, notify)
    if newest is None:
        raise ModelError(
            f"{OPTION}={given!r} holds no {ADAPTER_CONFIG}, no adapter/ and no {FOLDER}/; give a run folder, a "
            "checkpoint, or a PEFT adapter's folder"
        )
    return Place(newest, path)


def served(config: Config, adapters: Sequence[Adapter]) -> Config:
    """The settings with which engines serve all these adapters, one after another.

    Raises ConfigError if a rank is too large.
    """
    largest = max(adapters, key=lambda adapter: adapter.r, default=None)
    rank = served_rank(largest.r if largest is not None else 0)
    if rank is None and largest is not None and config.rollout.lora_mode == "adapter":
        raise ConfigError(
            f"{OPTION}={str(largest.folder)!r} has r={largest.r}, and vLLM's LoRA kernels serve ranks of up to "
            f"{RANKS[-1]}; set rollout.lora_mode=merged"
        )
    # Without effect if weights are merged.
    lora = config.model.lora.model_copy(update={"r": rank or RANKS[-1]})
    return config.model_copy(update={"model": config.model.model_copy(update={"lora": lora})})


def candidates(
    model: ModelSettings,
    rollout: RolloutSettings,
    model_path: str,
    adapters: Sequence[tuple[str, Adapter]],
    base: bool,
    notify: Callable[[str], None],
) -> tuple[Candidate, ...]:
    """The base if `base`, then the adapters, given with their names. Adapters with equal weights are listed once.

    Raises ModelError if an adapter does not fit the model at `model_path`.
    """
    found = [Candidate(BASE, model_path, BASE, None)] if base else []
    if adapters and rollout.lora_mode == "merged":
        check_unquantised(
            model_path,
            read_model_config(model_path, model).to_dict(),
            f"model.path={model.path!r}",
            "rollout.lora_mode=merged adds to its weights",
            "set rollout.lora_mode=adapter, or ",
        )
    shapes = linear_shapes(model_path, model) if adapters else {}
    for name, adapter in adapters:
        check_fit(adapter, shapes, f"model.path={model.path!r}", OPTION)
        if adapter.base and adapter.base not in (model_path, model.path):
            notify(f"warning: {adapter.folder} names another base model, {adapter.base}, than {model_path}")
        weights = adapter.packed(0, model.dtype)
        new = Candidate(name, str(adapter.folder), weights.digest, weights)
        same = next((other for other in found if other.digest == new.digest), None)
        if same is None:
            found.append(new)
        else:
            notify(f"{new.folder} holds the same weights as {same.folder}: evaluated once")
    names = [candidate.name for candidate in found]
    return tuple(replace(c, name=c.name if names.count(c.name) == 1 else c.folder) for c in found)
