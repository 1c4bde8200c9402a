"""Going on with an earlier run: where it stands, and what it has measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from adagrpo_ray.config.explain import as_yaml
from adagrpo_ray.config.fixed import check_fixed, fixed_settings
from adagrpo_ray.config.tree import Config
from adagrpo_ray.errors import CheckpointError, ConfigError
from adagrpo_ray.learner import checkpoint
from adagrpo_ray.learner.checkpoint import Progress
from adagrpo_ray.observe import EvaluationRecord, RunWriter, StepRecord, retries
from adagrpo_ray.observe.history import Mark, sizes

AUTO = "auto"
FOLDER = "checkpoints"
"""Where a run folder has its checkpoints."""


@dataclass(frozen=True)
class Past:
    """What a run has behind it: `folder` up to `mark`; no `checkpoint` where it died before its first."""

    folder: Path
    mark: Mark
    checkpoint: Path | None = None
    records: tuple[StepRecord, ...] = ()
    evaluations: tuple[EvaluationRecord, ...] = ()

    def writer(self, config: Config) -> RunWriter:
        """The run folder, taken back to the mark: what was written after it is gone, and made again."""
        if self.checkpoint is not None:
            checkpoint.set_latest(self.checkpoint)  # first: no checkpoint may count whose lines are gone
        return RunWriter(self.folder, as_yaml(config), self.mark)


def find_past(where: str, config: Config, tell: Callable[[str], None]) -> Past:
    """The past of the run at `where`: "auto" for that of `run.name`, a run folder, or one of its checkpoints.

    Tells which checkpoint it takes and which it passes over. Raises CheckpointError where there is no good one,
    ConfigError where the settings are not those of the run.
    """
    folder, path = _auto(config, tell) if where == AUTO else _given(Path(where).resolve(), tell)
    if path is None:
        tell(f"no checkpoint in {folder}: beginning with the first step")
        return Past(folder, Mark(-1, {}))
    progress = checkpoint.progress(path)
    check_fixed(config, progress.settings)
    if progress.step > config.run.steps:
        raise ConfigError(f"run.steps={config.run.steps} is less than the {progress.step} steps of {path}; raise it")
    mark = Mark(progress.step, progress.sizes)
    records, evaluations = mark.read(folder)
    tell(f"going on after step {progress.step}, from {path}")
    return Past(folder, mark, path, tuple(records), tuple(evaluations))


def progress_of(config: Config, folder: Path, records: Sequence[StepRecord]) -> Progress:
    """What a checkpoint after the last of `records` says of the run in `folder`."""
    return Progress(
        step=records[-1].step,
        weight_version=records[-1].weight_version,
        sizes=sizes(folder),
        settings=fixed_settings(config),
        retries=retries(records).to_dict(),
    )


def _auto(config: Config, tell: Callable[[str], None]) -> tuple[Path, Path | None]:
    if config.run.name is None:
        raise ConfigError("--resume auto goes on with the run of run.name, which is not set; set it, or give a folder")
    folder = Path(config.run.folder) / config.run.name
    return folder, checkpoint.newest(folder / FOLDER, tell)


def _given(path: Path, tell: Callable[[str], None]) -> tuple[Path, Path]:
    if checkpoint.is_checkpoint(path):
        checkpoint.check(path)
        return path.parents[1], path
    found = checkpoint.newest(path / FOLDER, tell)
    if found is None:
        raise CheckpointError(f"{path} has no {FOLDER}; give --resume a run folder or a checkpoint's folder")
    return path, found
