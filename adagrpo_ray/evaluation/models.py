"""Finding the models to measure: the base, and adapters in run folders, checkpoints and PEFT folders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

from safetensors import SafetensorError
from safetensors.torch import load_file

from adagrpo_ray import storage
from adagrpo_ray.adapter import AdapterWeights, as_pairs, pack
from adagrpo_ray.config.tree import Config, LoraSettings
from adagrpo_ray.errors import ConfigError, ModelError
from adagrpo_ray.learner import checkpoint, kept
from adagrpo_ray.model.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, first_line, read_adapter_folder
from adagrpo_ray.model.load import linear_shapes
from adagrpo_ray.resume import FOLDER

if TYPE_CHECKING:
    import torch

OPTION = "--adapter"
BASE = "base"
CONFIG_FILE = "config.yaml"
RANKS: tuple[int, ...] = get_args(LoraSettings.model_fields["r"].annotation)


@dataclass(frozen=True)
class Place:
    """Where an adapter's files are: a PEFT folder or a checkpoint, and the run folder that it is of, if it is."""

    kind: Literal["peft", "checkpoint"]
    folder: Path
    run: Path | None

    @property
    def name(self) -> str:
        """What to call it: by its run where that is known."""
        if self.run is None:
            return self.folder.name
        return self.run.name if self.kind == "peft" else f"{self.run.name}/{self.folder.name}"

    @property
    def config(self) -> Path | None:
        """The configuration of its run, where there is one."""
        file = self.run / CONFIG_FILE if self.run is not None else None
        return file if file is not None and file.is_file() else None


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter as its files have it; `base` is the base model that it names, "" where it names none."""

    place: Place
    tensors: dict[str, torch.Tensor]
    r: int
    alpha: float
    base: str


@dataclass(frozen=True)
class Candidate:
    """A model to measure; `weights` are None for the base. `digest` tells it from all others of the same base."""

    name: str
    folder: str
    digest: str
    weights: AdapterWeights | None


def locate(given: str, tell: Callable[[str], None] = lambda text: None) -> Place:
    """Where the adapter at `given` is: a run folder (its final adapter, or while there is none its newest checkpoint),
    one checkpoint, the file `best` beside checkpoints, or a folder in PEFT's layout. ModelError where it is none."""
    if storage.is_url(given):
        raise ModelError(f"{OPTION}={given!r} is a URL; copy that run's adapter/ to a folder here and give that")
    path = Path(kept.named(storage.plain(given).rstrip("/"))).resolve()
    if not path.is_dir():
        raise ModelError(
            f"{OPTION}={given!r} is no folder; give a run folder, a checkpoint, or a PEFT adapter's folder"
        )
    if checkpoint.is_checkpoint(path):
        return Place("checkpoint", path, path.parents[1])
    if any((path / name).is_file() for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)):
        of_run = path.name == "adapter" and (path.parent / CONFIG_FILE).is_file()
        return Place("peft", path, path.parent if of_run else None)
    if (path / "adapter").is_dir():
        return Place("peft", path / "adapter", path)
    newest = checkpoint.newest(path / FOLDER, tell)
    if newest is None:
        raise ModelError(
            f"{OPTION}={given!r} holds no {ADAPTER_CONFIG}, no adapter/ and no {FOLDER}/; give a run folder, a "
            "checkpoint, or a PEFT adapter's folder"
        )
    return Place("checkpoint", newest, path)


def read(place: Place) -> Adapter:
    """The adapter there; ModelError where it is no plain LoRA in safetensors, CheckpointError for a bad checkpoint."""
    if place.kind == "peft":
        settings = read_adapter_folder(str(place.folder), OPTION)
        r, alpha = settings.get("r"), settings.get("lora_alpha")
        base, file = str(settings.get("base_model_name_or_path") or ""), place.folder / ADAPTER_WEIGHTS
    else:
        checkpoint.check(place.folder)
        settings = checkpoint.progress(place.folder).settings
        r, alpha = settings.get("model.lora.r"), settings.get("model.lora.alpha")
        base, file = str(settings.get("model.path") or ""), place.folder / "adapter.safetensors"
    if not (isinstance(r, int) and isinstance(alpha, int | float) and r > 0 and alpha > 0):
        raise ModelError(f"{OPTION}={str(place.folder)!r} has r={r!r} and alpha={alpha!r}; both must be above 0")
    try:
        return Adapter(place, load_file(file), r, float(alpha), base)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{OPTION}: {file} cannot be read ({first_line(error)}); copy or save it again") from None


def served(config: Config, adapters: Sequence[Adapter]) -> Config:
    """The settings under which engines serve all of these, one after another; ConfigError where a rank is too large."""
    largest = max((adapter.r for adapter in adapters), default=0)
    rank = next((rank for rank in RANKS if rank >= largest), None)
    if rank is None:
        if config.rollout.sync == "adapter":
            name = next(adapter.place.folder for adapter in adapters if adapter.r == largest)
            raise ConfigError(
                f"{OPTION}={str(name)!r} has r={largest}, and vLLM's LoRA kernels serve ranks of up to {RANKS[-1]}; "
                "set rollout.sync=merged"
            )
        rank = RANKS[-1]  # of no account where weights are merged
    lora = config.model.lora.model_copy(update={"r": rank})
    return config.model_copy(update={"model": config.model.model_copy(update={"lora": lora})})


def candidates(
    config: Config, model_path: str, adapters: Sequence[Adapter], base: bool, tell: Callable[[str], None]
) -> tuple[Candidate, ...]:
    """The base where it is asked for, then the adapters, in the form that engines take; equal ones once.

    Raises ModelError where an adapter does not fit the model at `model_path`.
    """
    import torch

    found = [Candidate(BASE, model_path, BASE, None)] if base else []
    shapes = linear_shapes(model_path, config) if adapters else {}
    for adapter in adapters:
        _check_fit(adapter, config, shapes)
        named = {model_path, config.model.path}
        if adapter.base and adapter.base not in named:
            tell(f"warning: {adapter.place.folder} names another base model, {adapter.base}, than {model_path}")
        weights = pack(0, adapter.tensors, adapter.r, adapter.alpha, getattr(torch, config.model.dtype))
        new = Candidate(adapter.place.name, str(adapter.place.folder), weights.digest, weights)
        same = next((other for other in found if other.digest == new.digest), None)
        if same is None:
            found.append(new)
        else:
            tell(f"{new.folder} holds the same weights as {same.folder}: measured once")
    names = [candidate.name for candidate in found]
    return tuple(replace(c, name=c.name if names.count(c.name) == 1 else c.folder) for c in found)


def _check_fit(adapter: Adapter, config: Config, shapes: dict[str, tuple[int, int]]) -> None:
    where = f"{OPTION}={str(adapter.place.folder)!r}"
    try:
        pairs = as_pairs(adapter.tensors)
    except ValueError as error:
        raise ModelError(f"{where} cannot be served: {error}; give plain LoRA") from None
    if not pairs:
        raise ModelError(f"{where} holds no tensors; save it again")
    hint = f"; it was made for {adapter.base!r}" if adapter.base and adapter.base != config.model.path else ""
    for module, (a, b) in sorted(pairs.items()):
        if module not in shapes:
            raise ModelError(
                f"{where} does not fit model.path={config.model.path!r}, which has no linear layer {module}{hint}"
            )
        inputs, outputs = shapes[module]
        if (*a.shape, *b.shape) != (adapter.r, inputs, outputs, adapter.r):
            raise ModelError(
                f"{where} does not fit model.path={config.model.path!r}: {module} has {inputs} inputs and {outputs} "
                f"outputs there, the adapter's A is {_shape(a)} and B {_shape(b)} with r={adapter.r}{hint}"
            )


def _shape(tensor: torch.Tensor) -> str:
    return " x ".join(map(str, cast(Sequence[int], tensor.shape)))
