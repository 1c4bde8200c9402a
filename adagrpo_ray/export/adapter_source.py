"""Finds the adapter to export, and provides it as a local folder in PEFT's layout."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from safetensors.torch import save_file

from adagrpo_ray.cards.card import CARD
from adagrpo_ray.checkpoint import files as checkpoint
from adagrpo_ray.checkpoint import kept
from adagrpo_ray.checkpoint.resume import FOLDER
from adagrpo_ray.config import Config
from adagrpo_ray.config.data import PLAIN
from adagrpo_ray.data.template_choice import TEMPLATE_FILE, chosen_template
from adagrpo_ray.errors import AdaGRPOError, CheckpointError, ConfigError, HistoryError, ModelError
from adagrpo_ray.lora.adapters import Adapter, read_adapter
from adagrpo_ray.model.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from adagrpo_ray.runs.history import EVALUATIONS, METRICS, Mark
from adagrpo_ray.runs.summary import Summary, summarize
from adagrpo_ray.storage import places as storage

CONFIG, ADAPTER = "config.yaml", "adapter"


@dataclass(frozen=True)
class Source:
    """An adapter in a folder with PEFT's layout, and the data of the run that trained it; None for unknown data.

    config: the settings of the run.
    card: its model card.
    summary: the totals of the run up to the adapter, for a new card if there is none.
    template: its chat template, as returned by `chosen_template`.
    """

    name: str
    adapter: Adapter
    config: Config | None
    card: str | None
    summary: Summary | None = None
    template: str | None = None


@contextmanager
def opened(place: str) -> Iterator[Source]:
    """Open the adapter at `place`: a run folder, a checkpoint, or the folder of an adapter; a path or a URL.

    Its local files exist within the block. Raises ModelError if there is no adapter, and the errors of `read_adapter`.
    """
    place = kept.named(storage.plain(place).rstrip("/"))
    if not storage.is_url(place):
        place = os.path.abspath(place)
    with storage.scratch() as local:
        try:
            found = _of_checkpoint(place, local) if checkpoint.is_checkpoint(Path(place)) else _of_files(place, local)
            yield found
        except AdaGRPOError as error:
            raise type(error)(str(error).replace(str(local), place.rpartition("/")[0])) from error


def _of_files(place: str, local: Path) -> Source:
    """The adapter in a run folder, or in a folder of its own."""
    names = _names(place)
    if ADAPTER_CONFIG in names:
        folder, run = place, place.rpartition("/")[0]
    elif f"{ADAPTER}/{ADAPTER_CONFIG}" in names:
        folder, run = storage.join(place, ADAPTER), place
        names = {name.removeprefix(f"{ADAPTER}/") for name in names if name.startswith(f"{ADAPTER}/")}
    elif CONFIG in names:
        folders = {PurePath(name).parent for name in names if PurePath(name).name == checkpoint.CHECKSUMS}
        newest = checkpoint.upto((path.name for path in folders if checkpoint.is_checkpoint(path)), "")
        instead = f"; give its newest checkpoint, {storage.join(place, FOLDER, newest[0])}" if newest else ""
        raise ModelError(f"{place} is a run without an {ADAPTER}/ so far{instead}")
    else:
        raise ModelError(
            f"{place} is no run folder, no checkpoint and no adapter: it holds neither {CONFIG} nor {ADAPTER_CONFIG}"
        )
    card = storage.find(folder, CARD)
    config = _config(run, local)
    name = (folder if config is None else run).rpartition("/")[2]
    files = Path(folder)
    if storage.is_url(folder):
        files = local / PurePath(folder).relative_to(PurePath(place).parent)
        storage.pull(folder, files, [name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if name in names])
    return Source(name, read_adapter(files), config, card, template=_template(config, folder))


def _of_checkpoint(place: str, local: Path) -> Source:
    """The adapter of a checkpoint: its float32 weights, written in PEFT's layout."""
    from peft import LoraConfig

    run, _, step = place.rsplit("/", 2)
    path = Path(place)
    if storage.is_url(place):
        path = local / step
        kept.fetch(place, path)
    adapter, progress = read_adapter(path), checkpoint.progress(path)
    folder = local / ADAPTER
    folder.mkdir()
    save_file(adapter.tensors, folder / ADAPTER_WEIGHTS)
    LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=adapter.base,
        r=adapter.r,
        lora_alpha=adapter.alpha,
        target_modules=sorted({module.rpartition(".")[2] for module in adapter.pairs}),
        inference_mode=True,
    ).save_pretrained(str(folder))
    name = f"{run.rpartition('/')[2]}-{step}"
    summary = _summary(run, Mark(progress.step, progress.sizes), name, local)
    config = _config(run, local)
    return Source(name, replace(adapter, folder=folder), config, None, summary, _template(config, f"{run}/{ADAPTER}"))


def _template(config: Config | None, folder: str) -> str | None:
    """The chat template of the run: that in the adapter's folder, else the file that its settings name.

    Raises ModelError if both are missing: prompts of the merged model would differ from those of training.
    """
    if config is None or config.data.chat_template in (None, PLAIN):
        return None if config is None else chosen_template(config.data)
    if (saved := storage.find(folder, TEMPLATE_FILE)) is not None:
        return saved
    try:
        return chosen_template(config.data)
    except ConfigError as error:
        raise ModelError(f"the chat template of the run is not in {folder}, and {error}") from None


def _summary(run: str, mark: Mark, name: str, local: Path) -> Summary | None:
    """The summary of the run up to the mark; None if the records are missing."""
    folder = Path(run)
    if storage.is_url(run):
        folder = local / "records"
        storage.pull(run, folder, sorted({METRICS, EVALUATIONS} & storage.files(run)))
    try:
        steps, evaluations = mark.read(folder)
    except (CheckpointError, HistoryError):
        return None
    before, after = (evaluations[0], evaluations[-1]) if evaluations else (None, None)
    return summarize(steps, before, after, evaluations, name=name, folder=run, adapter=run)


def _config(run: str, local: Path) -> Config | None:
    """The settings of the run in this folder; None if there are none, or another version wrote them."""
    text = storage.find(run, CONFIG) if run else None
    if text is None:
        return None
    storage.leave(str(local), CONFIG, text)
    try:
        return Config.load(local / CONFIG)
    except ConfigError:
        return None


def _names(place: str) -> set[str]:
    """All files below `place`, relative to it. Raises ModelError if there are none."""
    if storage.is_url(place):
        names = storage.files(place)
    else:
        names = set(storage.below(Path(place))) if Path(place).is_dir() else set()
    if not names:
        raise ModelError(f"{place} does not exist or is empty; give a run folder, a checkpoint or an adapter's folder")
    return names
