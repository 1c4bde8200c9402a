"""Reads run folders back into records, even while a run is writing them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adagrpo_ray.config.reading import read_tree
from adagrpo_ray.errors import HistoryError
from adagrpo_ray.runs.history import EVALUATIONS, METRICS, SAMPLES
from adagrpo_ray.runs.record import OlderVersionError
from adagrpo_ray.runs.records import EvaluationRecord, StepRecord
from adagrpo_ray.runs.samples import GroupSample
from adagrpo_ray.runs.summary import Summary
from adagrpo_ray.runs.tail import Tail

CONFIG, SUMMARY = "config.yaml", "summary.json"


@dataclass(frozen=True)
class RunHistory:
    """The content of a run folder.

    config: the nested mapping of its settings, all resolved.
    evaluations: in the order of their steps; step 0 is before training.
    summary: None until the run has ended.
    samples: the recorded groups; empty if they were not recorded, or not read.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    steps: tuple[StepRecord, ...]
    evaluations: tuple[EvaluationRecord, ...]
    summary: Summary | None
    samples: tuple[GroupSample, ...]

    def setting(self, key: str) -> Any:
        """The value of a setting by its dotted key; None if the run's config.yaml has none."""
        value: Any = self.config
        for name in key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return value


def find(root: str | Path) -> list[Path]:
    """The run folders in `root`, or `root` itself if it is one, newest first; none if `root` does not exist.

    They are sorted by the time of their config.yaml, which a run writes when it begins and when it is resumed.
    Raises HistoryError if `root` cannot be read.
    """
    root = Path(root)
    if _is_run(root):
        return [root]
    try:
        found = [(_begun(folder), folder.name, folder) for folder in root.iterdir() if _is_run(folder)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise HistoryError(
            f"cannot read {root} ({error.strerror or error}); give a folder that holds run folders"
        ) from error
    return [folder for _, _, folder in sorted(found, reverse=True)]


def load(folder: str | Path, *, samples: bool = True) -> RunHistory:
    """The run in `folder`, without its samples if `samples` is False: they can be many times larger than the rest.

    Raises HistoryError if `folder` is no run folder, or if a complete line has another format than this version writes.
    """
    return Follower(folder, samples=samples).read()


class Follower:
    """Reads a run folder repeatedly, each time only the lines that are new."""

    def __init__(self, folder: str | Path, *, samples: bool = False) -> None:
        self.folder = Path(folder)
        self._steps = Tail(self.folder / METRICS, lambda values, _: StepRecord.from_dict(values))
        self._evaluations = Tail(self.folder / EVALUATIONS, lambda values, _: EvaluationRecord.from_dict(values))
        self._samples = Tail(self.folder / SAMPLES, lambda values, _: GroupSample.from_dict(values))
        self._with_samples = samples

    def read(self) -> RunHistory:
        """The run as it is now. Raises HistoryError as `load` does."""
        if not _is_run(self.folder):
            raise HistoryError(f"{self.folder} holds no {METRICS}; give the folder of a run, such as runs/NAME")
        config = self.folder / CONFIG
        return RunHistory(
            name=self.folder.resolve().name,
            folder=self.folder,
            config=read_tree(config) if config.exists() else {},
            steps=self._steps.read(),
            evaluations=self._evaluations.read(),
            summary=_summary(self.folder / SUMMARY),
            samples=self._samples.read() if self._with_samples else (),
        )


def _is_run(folder: Path) -> bool:
    return os.path.isfile(folder / METRICS)  # Path.is_file raises PermissionError for other users' folders


def _begun(folder: Path) -> float:
    for name in (CONFIG, METRICS):
        try:
            return (folder / name).stat().st_mtime
        except OSError:
            continue
    return 0.0


def _summary(path: Path) -> Summary | None:
    """The summary, or None before it is written; the file is written atomically."""
    try:
        return Summary.from_dict(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except OlderVersionError as error:
        raise HistoryError(
            f"{path} was written by an older version of adagrpo_ray ({error}); read it with that version, or choose "
            "another run"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise HistoryError(
            f"{path} is no summary of this version ({error!r}); remove it, or choose another run"
        ) from error
