"""Resuming an earlier run: its newest good checkpoint, and its records so far."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adagrpo_ray.checkpoint import files as checkpoint
from adagrpo_ray.checkpoint import kept
from adagrpo_ray.checkpoint.files import Progress
from adagrpo_ray.config.fixed import check_fixed, fixed_settings
from adagrpo_ray.config.tree import Config
from adagrpo_ray.errors import AdaGRPOError, CheckpointError, ConfigError
from adagrpo_ray.runs import EvaluationRecord, RunWriter, StepRecord, retries
from adagrpo_ray.runs.history import EVALUATIONS, METRICS, SAMPLES, TRACKED, Mark, sizes
from adagrpo_ray.runs.mirror import MirroredWriter
from adagrpo_ray.storage import places as storage

AUTO = "auto"
FOLDER = "checkpoints"
"""Where a run folder has its checkpoints."""


@dataclass(frozen=True)
class Past:
    """What a run has behind it: `folder` up to `mark`; no `checkpoint` where it died before its first.

    Of a run at a URL, which is `home`, `folder` is the copy on this machine.
    """

    folder: Path
    mark: Mark
    checkpoint: Path | None = None
    records: tuple[StepRecord, ...] = ()
    evaluations: tuple[EvaluationRecord, ...] = ()
    home: str | None = None

    @property
    def source(self) -> str:
        """Where each rank reads the checkpoint: a path or a URL."""
        assert self.checkpoint is not None
        return storage.join(self.home, FOLDER, self.checkpoint.name) if self.home else str(self.checkpoint)

    @property
    def place(self) -> str:
        """Where the run folder is kept: a path or a URL."""
        return self.home or str(self.folder)

    def writer(self, config: str, tell: Callable[[str], None]) -> RunWriter:
        """The run folder, taken back to the mark: what was written after it is gone, and made again.

        `config` is the text of its new config.yaml.
        """
        if self.checkpoint is not None:  # first: no checkpoint may count whose lines are gone
            kept.set_latest(self.source) if self.home else checkpoint.set_latest(self.checkpoint)
        if self.home:
            return MirroredWriter(self.folder, config, self.home, tell, self.mark)
        return RunWriter(self.folder, config, self.mark, tell)


def find_past(where: str, config: Config, tell: Callable[[str], None]) -> Past:
    """The past of the run at `where`: "auto" for that of `run.name`, a run folder, one of its checkpoints, or the file
    `best` beside them.

    Tells which checkpoint it takes and which it passes over. Raises CheckpointError if there is no good one,
    ConfigError if the settings are not those of the run, HistoryError if an older version wrote it.
    """
    if where == AUTO:
        return past_of(_of_name(config), config, tell)
    storage.check(where, "--resume")
    place = kept.named(storage.plain(where).rstrip("/"))
    if storage.is_url(place):
        return _find_remote(place, False, config, tell)
    return _find(Path(place).resolve(), False, config, tell, checkpoint.check)


def past_of(home: str, config: Config, tell: Callable[[str], None]) -> Past:
    """The past of the run at `home`, which goes on from its first step where it has no good checkpoint."""
    if storage.is_url(home):
        return _find_remote(home, True, config, tell)
    return _find(Path(home), True, config, tell, checkpoint.check)


def _find(place: Path, auto: bool, config: Config, tell: Callable[[str], None], verify: Callable[[Path], None]) -> Past:
    """`find_past` on this machine's disk; `verify` raises CheckpointError for a checkpoint that is not good."""
    if checkpoint.is_checkpoint(place) and not auto:
        verify(place)
        folder, path = place.parents[1], place
    else:
        folder, found = place, checkpoint.newest(place / FOLDER, tell, verify)
        if found is None and not auto:
            raise CheckpointError(f"{place} has no {FOLDER}; give --resume a run folder or a checkpoint's folder")
        if found is None:
            tell(f"no checkpoint in {folder}: beginning with the first step")
            return Past(folder, Mark(-1, {}))
        path = found
    progress = checkpoint.progress(path)
    mark = Mark(progress.step, progress.sizes)
    records, evaluations = mark.read(folder)  # first: an older version's settings have other names too
    check_fixed(config, progress.settings)
    if progress.step > config.run.steps:
        raise ConfigError(f"run.steps={config.run.steps} is less than the {progress.step} steps of {path}; raise it")
    tell(f"going on after step {progress.step}, from {path}")
    return Past(folder, mark, path, tuple(records), tuple(evaluations))


def _find_remote(place: str, auto: bool, config: Config, tell: Callable[[str], None]) -> Past:
    """`find_past` at a URL: what it needs is copied here, checkpoints one at a time, and looked at here."""
    home, name = place, ""
    if checkpoint.is_checkpoint(Path(place)) and not auto:
        home, _, name = place.rsplit("/", 2)
    folder = storage.fresh(home)
    storage.pull(home, folder, sorted({METRICS, EVALUATIONS, SAMPLES, TRACKED} & storage.files(home)))
    kept.outline(storage.join(home, FOLDER), folder / FOLDER)

    def verify(path: Path) -> None:
        kept.fetch(storage.join(home, FOLDER, path.name), path)
        checkpoint.check(path)
        progress = checkpoint.progress(path)
        Mark(progress.step, progress.sizes).read(folder)  # lines of a step may not have come through

    def named(text: str) -> str:
        return text.replace(str(folder), home)

    try:
        local = folder / FOLDER / name if name else folder
        past = _find(local, auto, config, lambda text: tell(named(text)), verify)
    except AdaGRPOError as error:
        raise type(error)(named(str(error))) from error
    finally:
        shutil.rmtree(folder / FOLDER, ignore_errors=True)
    return replace(past, home=home)


def progress_of(config: Config, folder: Path, records: Sequence[StepRecord]) -> Progress:
    """What a checkpoint after the last of `records` says of the run in `folder`."""
    return Progress(
        step=records[-1].step,
        weight_version=records[-1].weight_version,
        sizes=sizes(folder),
        settings=fixed_settings(config),
        retries=retries(records).to_dict(),
    )


def _of_name(config: Config) -> str:
    if config.run.name is None:
        raise ConfigError("--resume auto goes on with the run of run.name, which is not set; set it, or give a folder")
    return storage.join(config.run.output_dir, config.run.name)
