"""Writes the run folder: each record goes to disk at once."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType

from adagrpo_ray.errors import ConfigError, ResourceError, first_line
from adagrpo_ray.runs.events import EventFile
from adagrpo_ray.runs.history import EVALUATIONS, METRICS, SAMPLES, Mark
from adagrpo_ray.runs.metric import scalars
from adagrpo_ray.runs.observer import Observer
from adagrpo_ray.runs.records import EvaluationRecord, StepRecord
from adagrpo_ray.runs.sample_text import group_text
from adagrpo_ray.runs.samples import GroupSample
from adagrpo_ray.runs.summary import Summary
from adagrpo_ray.storage.places import leave, writing

_writing = partial(writing, otherwise="set run.output_dir to another")


class RunWriter(Observer):
    """Creates the folder of a new run, or continues that of an earlier one, and writes into it.

    The files are `config.yaml` (the text given), `metrics.jsonl` (one line for each step), `samples.jsonl` (one for
    each recorded group), `evaluations.jsonl` (one for each evaluation), `summary.json` and `tensorboard/`. A run that
    dies leaves all its finished steps; one that fails before its first record leaves no folder.
    """

    def __init__(
        self, folder: Path, config: str, mark: Mark | None = None, notify: Callable[[str], None] = lambda text: None
    ) -> None:
        """Create `folder`, or cut its files back to `mark` and continue there; `notify` receives warnings.

        Raises ConfigError if a new folder is not empty, and ResourceError if it cannot be written.
        """
        self.folder, self.home = folder, str(folder)  # `home` is the URL in MirroredWriter
        self._has_records, self._notify, self._tensorboard = mark is not None, notify, True
        with _writing(folder):
            if mark is None:
                self._begin(config)
            else:
                folder.mkdir(parents=True, exist_ok=True)
                leave(str(folder), "config.yaml", config)
                mark.cut(folder)
            try:
                (folder / METRICS).touch()
                self._events = EventFile(folder / "tensorboard", None if mark is None else mark.step + 1)
            except OSError:
                if mark is None:
                    shutil.rmtree(folder, ignore_errors=True)  # so that its name is free again
                raise

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        with suppress(ResourceError):  # a failed close must not replace the first error
            self.close()
        if not self._has_records:
            shutil.rmtree(self.folder, ignore_errors=True)  # so that its name is free again

    def step(self, record: StepRecord) -> None:
        """Append the step to `metrics.jsonl` and to TensorBoard."""
        self._append(METRICS, record.to_dict())
        self._show(lambda: self._events.add(scalars(record), record.step))

    def samples(self, groups: Sequence[GroupSample]) -> None:
        """Append the groups to `samples.jsonl`, and show the first in TensorBoard if it was resampled."""
        if groups:
            self._append(SAMPLES, *(group.to_dict() for group in groups))
        if groups and groups[0].resampled:
            self._show(lambda: self._events.add_text("samples/resampled", group_text(groups[0]), groups[0].step))

    def evaluation(self, label: str, record: EvaluationRecord) -> None:
        """Append the evaluation and its label to `evaluations.jsonl` and to TensorBoard."""
        self._append(EVALUATIONS, {"label": label, **record.to_dict()})
        self._show(lambda: self._events.add(scalars(record), record.step))

    def summary(self, summary: Summary) -> None:
        """Write `summary.json` atomically."""
        path = self.folder / "summary.json"
        aside = self.folder / "summary.json.part"
        with _writing(path):
            with aside.open("w", encoding="utf-8") as file:
                file.write(json.dumps(summary.to_dict(), indent=2, allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)

    def close(self) -> None:
        """Close TensorBoard's file. It may be closed twice."""
        with _writing(self.folder / "tensorboard"):
            self._events.close()

    def _begin(self, config: str) -> None:
        if self.folder.exists() and not (self.folder.is_dir() and _is_empty(self.folder)):
            raise folder_not_empty(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            # Exclusive, so that one of two runs is refused if they start with the same name at the same time.
            with (self.folder / "config.yaml").open("x", encoding="utf-8") as file:
                file.write(config)
        except FileExistsError:
            raise folder_not_empty(self.folder) from None
        except OSError:
            (self.folder / "config.yaml").unlink(missing_ok=True)
            raise

    def _append(self, name: str, *records: Mapping[str, object]) -> None:
        path, self._has_records = self.folder / name, True
        # Opened for each record, so that no buffer is lost when the run dies.
        with _writing(path), path.open("a", encoding="utf-8") as file:
            # ASCII only, so that no character of a text is taken for the end of a line.
            file.write("".join(json.dumps(record, allow_nan=False) + "\n" for record in records))

    def _show(self, add: Callable[[], None]) -> None:
        """Add to TensorBoard's file, or disable it after any error but one of the disk: other files have the data."""
        if not self._tensorboard:
            return
        try:
            with _writing(self.folder / "tensorboard"):
                add()
        except ResourceError:
            raise
        except (Exception, SystemExit) as error:
            self._tensorboard = False
            self._notify(f"warning: TensorBoard is disabled, the run continues without it: {first_line(error)}")


def _is_empty(folder: Path) -> bool:
    return next(folder.iterdir(), None) is None


def folder_not_empty(folder: Path | str) -> ConfigError:
    """The error for the folder of a new run that is not empty."""
    return ConfigError(
        f"run.name={str(folder).rpartition('/')[2]!r}: {folder} exists already and is not empty; "
        "choose another run.name, or move that folder away"
    )
