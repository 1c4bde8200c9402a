"""Records the length of a run folder's files at a step, and cuts the files back to it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adagrpo_ray.errors import CheckpointError, HistoryError
from adagrpo_ray.runs.record import OlderVersionError
from adagrpo_ray.runs.records import EvaluationRecord, StepRecord

METRICS, EVALUATIONS, SAMPLES = "metrics.jsonl", "evaluations.jsonl", "samples.jsonl"

TRACKED = "tracking.json"
"""The file with the ids of the run in its trackers."""


@dataclass(frozen=True)
class Mark:
    """A position in the JSON-lines files of a run folder.

    step: the last finished step; 0 after the first evaluation, -1 before it.
    sizes: the length of each file at that time, in bytes, by name; 0 for a file without an entry.
    """

    step: int
    sizes: Mapping[str, int]

    def read(self, folder: Path) -> tuple[list[StepRecord], list[EvaluationRecord]]:
        """The steps and evaluations before the mark.

        Raises CheckpointError if lines are lost or unreadable, and HistoryError if an older version wrote them.
        """
        try:
            steps = [StepRecord.from_dict(values) for values in self._lines(folder / METRICS)]
            if len(steps) != self.step:
                raise ValueError(f"{METRICS} has {len(steps)} steps")
            return steps, [EvaluationRecord.from_dict(values) for values in self._lines(folder / EVALUATIONS)]
        except OlderVersionError as error:
            raise HistoryError(
                f"{folder} was written by an older version of adagrpo_ray ({error}); resume it with that version, or "
                "begin a new run from its adapter (model.adapter)"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{folder} does not hold the records up to step {self.step} ({error!r}); bring its "
                f"{METRICS} and {EVALUATIONS} back, or resume from another checkpoint"
            ) from error

    def cut(self, folder: Path) -> None:
        """Remove every line after the mark."""
        for name in (METRICS, EVALUATIONS, SAMPLES):
            if (folder / name).exists():
                # Samples may be shorter than the mark: nothing depends on them.
                os.truncate(folder / name, min(self.sizes.get(name, 0), (folder / name).stat().st_size))

    def _lines(self, path: Path) -> list[Any]:
        size = self.sizes.get(path.name, 0)
        data = path.read_bytes()[:size] if size else b""
        if len(data) < size:
            raise ValueError(f"{path.name} has {len(data)} bytes of {size}")
        return [json.loads(line) for line in data.splitlines()]


def sizes(folder: Path) -> dict[str, int]:
    """The length of each JSON-lines file in `folder`, in bytes. Syncs the files to disk first."""
    found = {}
    for name in (METRICS, EVALUATIONS, SAMPLES):
        if (folder / name).exists():
            with (folder / name).open("rb") as file:
                os.fsync(file.fileno())
                found[name] = os.fstat(file.fileno()).st_size
    return found
