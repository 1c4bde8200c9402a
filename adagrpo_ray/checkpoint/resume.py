"""Resuming an earlier run from its newest good checkpoint, with its records up to there."""

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
from adagrpo_ray.runs import EvaluationRecord, RunWriter, StepRecord
from adagrpo_ray.runs.history import EVALUATIONS, METRICS, SAMPLES, TRACKED, Mark, sizes
from adagrpo_ray.runs.mirror import MirroredWriter
from adagrpo_ray.storage import places as storage

AUTO = "auto"
FOLDER = "checkpoints"
"""Name of the folder of checkpoints in a run folder."""


@dataclass(frozen=True)
class Past:
    """The past of a run that is resumed: its folder up to `mark`.

    `checkpoint` is None if the run died before its first one. `home` is the URL of a run that is kept at one; then
    `folder` is the copy on this machine.
    """

    folder: Path
    mark: Mark
    checkpoint: Path | None = None
    records: tuple[StepRecord, ...] = ()
    evaluations: tuple[EvaluationRecord, ...] = ()
    home: str | None = None

    @property
    def source(self) -> str:
        """Path or URL of the checkpoint, from which each rank reads it."""
        assert self.checkpoint is not None
        return storage.join(self.home, FOLDER, self.checkpoint.name) if self.home else str(self.checkpoint)

    @property
    def place(self) -> str:
        """Path or URL of the run folder."""
        return self.home or str(self.folder)

    def writer(self, config: str, notify: Callable[[str], None]) -> RunWriter:
        """Return a writer for the run folder, and remove the lines after the mark, which the run writes again.

        `config` is the text of the new config.yaml.
        """
        if self.checkpoint is not None:  # first: a checkpoint in force must have its lines
            kept.set_latest(self.source) if self.home else checkpoint.set_latest(self.checkpoint)
        if self.home:
            return MirroredWriter(self.folder, config, self.home, notify, self.mark)
        return RunWriter(self.folder, config, self.mark, notify)


def find_past(given: str, config: Config, notify: Callable[[str], None]) -> Past:
    """Return the past of the run that `--resume` names.

    `given` is "auto" for the run of `run.name`, a run folder, one of its checkpoints, or the file `best` next to them.
    `notify` gets notices of the checkpoint that is used and of those that are passed over. Raises CheckpointError if
    there is no good checkpoint, ConfigError if the settings are not those of the run, HistoryError if an older version
    wrote it.
    """
    if given == AUTO:
        return past_of(_of_name(config), config, notify)
    storage.check(given, "--resume")
    place = kept.named(storage.plain(given).rstrip("/"))
    if storage.is_url(place):
        return _find_remote(place, False, config, notify)
    return _find(Path(place).resolve(), False, config, notify, checkpoint.check)


def past_of(home: str, config: Config, notify: Callable[[str], None]) -> Past:
    """Return the past of the run at `home`; it begins with the first step if the run has no checkpoint.

    Raises the errors of `find_past`.
    """
    if storage.is_url(home):
        return _find_remote(home, True, config, notify)
    return _find(Path(home), True, config, notify, checkpoint.check)


def _find(
    place: Path, auto: bool, config: Config, notify: Callable[[str], None], verify: Callable[[Path], None]
) -> Past:
    """Do `find_past` for a local path; `verify` raises CheckpointError if a checkpoint is not good."""
    if checkpoint.is_checkpoint(place) and not auto:
        verify(place)
        folder, path = place.parents[1], place
    else:
        folder, found = place, checkpoint.newest(place / FOLDER, notify, verify)
        if found is None and not auto:
            raise CheckpointError(f"{place} has no {FOLDER}; give --resume a run folder or a checkpoint's folder")
        if found is None:
            notify(f"no checkpoint in {folder}: beginning with the first step")
            return Past(folder, Mark(-1, {}))
        path = found
    progress = checkpoint.progress(path)
    mark = Mark(progress.step, progress.sizes)
    records, evaluations = mark.read(folder)  # before the settings: those of an older version have other names too
    check_fixed(config, progress.settings)
    if progress.step > config.run.steps:
        raise ConfigError(f"run.steps={config.run.steps} is less than the {progress.step} steps of {path}; raise it")
    notify(f"resuming after step {progress.step}, from {path}")
    return Past(folder, mark, path, tuple(records), tuple(evaluations))


def _find_remote(place: str, auto: bool, config: Config, notify: Callable[[str], None]) -> Past:
    """Do `find_past` for a URL: copy the files that it needs to this machine, one checkpoint at a time."""
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
        Mark(progress.step, progress.sizes).read(folder)  # lines of a step may be missing at the URL

    def named(text: str) -> str:
        return text.replace(str(folder), home)

    try:
        local = folder / FOLDER / name if name else folder
        past = _find(local, auto, config, lambda text: notify(named(text)), verify)
    except AdaGRPOError as error:
        raise type(error)(named(str(error))) from error
    finally:
        shutil.rmtree(folder / FOLDER, ignore_errors=True)
    return replace(past, home=home)


def progress_of(config: Config, folder: Path, records: Sequence[StepRecord]) -> Progress:
    """Return the trainer's part of a checkpoint after the last of `records`, for the run in `folder`."""
    return Progress(
        step=records[-1].step,
        sizes=sizes(folder),
        settings=fixed_settings(config),
    )


def _of_name(config: Config) -> str:
    if config.run.name is None:
        raise ConfigError("--resume auto resumes the run of run.name, which is not set; set it, or give a folder")
    return storage.join(config.run.output_dir, config.run.name)
