"""Run folders, read back into records: whole ones, and those that a run is still writing."""

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
    """What a run has left so far.

    `config` is the tree of its settings, all of them resolved. `evaluations` are in the order of their steps, step 0
    being before training. `summary` is there once the run has ended; `samples` are none where it kept none.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    steps: tuple[StepRecord, ...]
    evaluations: tuple[EvaluationRecord, ...]
    summary: Summary | None
    samples: tuple[GroupSample, ...]

    def setting(self, key: str) -> Any:
        """The value of a setting by its dotted key; None where the run's config.yaml has none."""
        value: Any = self.config
        for name in key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return value


def find(root: str | Path) -> list[Path]:
    """The run folders in `root`, or `root` itself where it is one, newest first; none where there is no `root`.

    A run is as new as its config.yaml, which it writes when it begins or goes on.
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
    """The run in `folder`. Samples can be many times the rest; `samples=False` leaves them on disk.

    Raises HistoryError if that is no run folder, or a finished line is not what this version writes.
    """
    return Follower(folder, samples=samples).read()


class Follower:
    """A run folder that is read again and again: each time at the cost of its lines that are new."""

    def __init__(self, folder: str | Path, *, samples: bool = False) -> None:
        self.folder = Path(folder)
        self._steps = Tail(self.folder / METRICS, lambda values, _: StepRecord.from_dict(values))
        self._evaluations = Tail(self.folder / EVALUATIONS, lambda values, _: EvaluationRecord.from_dict(values))
        self._samples = Tail(self.folder / SAMPLES, lambda values, _: GroupSample.from_dict(values))
        self._with_samples = samples

    def read(self) -> RunHistory:
        """The run as it stands now; HistoryError as `load` has it."""
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
    return os.path.isfile(folder / METRICS)  # Path's own raises for a folder of somebody else's


def _begun(folder: Path) -> float:
    for name in (CONFIG, METRICS):
        try:
            return (folder / name).stat().st_mtime
        except OSError:
            continue
    return 0.0


def _summary(path: Path) -> Summary | None:
    """The summary, which is written whole or not at all."""
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
