"""Problems of reasoning-gym: which ones are trained on, which ones are held out, and their difficulty classes.

`problem_rows` does its work in a process of its own. Some tasks walk through sets of texts, whose order Python draws
at random for each process; there it is fixed, so that the same settings give the same problems everywhere.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adagrpo_ray.config.reasoning_gym import GymTaskSettings, ReasoningGymSettings
from adagrpo_ray.data.answers import answer_text
from adagrpo_ray.data.gym_tasks import CHUNK, SETTING, make_dataset, missing_package, settings_key
from adagrpo_ray.data.row_id import normalised
from adagrpo_ray.errors import AdaGRPOError, DataError, first_line

MOST_CLASSES = 12
"""Difficulty classes of one task that reports can still show."""

MOST_FAILURES = 50
"""Problems in a row that a task may fail to generate."""

PATIENCE = 200
"""Problems in a row that may be known already, for a task that gave none yet; each one that it gave adds one more."""


@dataclass(frozen=True)
class GymProblem:
    """One generated problem.

    `task` and `config` make the data set that scores answers; `entry` is what it generated: question, answer and
    metadata. The answer is None for a task that accepts many answers and gives none.
    """

    task: str
    config: Mapping[str, Any]
    level: str
    entry: Mapping[str, Any]

    @property
    def columns(self) -> dict[str, Any]:
        """What reward functions get."""
        return {"task": self.task, "task_config": dict(self.config), "entry": dict(self.entry)}


def problem_rows(
    settings: ReasoningGymSettings, train: int, held_out: int
) -> tuple[tuple[GymProblem, ...], tuple[GymProblem, ...]]:
    """`train` problems to train on and `held_out` others, no question twice, each task by its share of the weights.

    The held-out problems depend on the settings alone, not on how many there are to train on. Raises ConfigError if a
    task or one of its settings is wrong, and DataError if a task has too few problems or cannot generate them.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "problems"
        done = subprocess.run(
            [sys.executable, "-P", "-m", "adagrpo_ray.data.gym_process", str(result)],
            input=pickle.dumps((settings, train, held_out)),
            env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdout=subprocess.DEVNULL,  # tasks may print
            stderr=subprocess.PIPE,
            check=False,
        )
        if not result.exists():
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            raise DataError(
                "data.source=reasoning_gym: the process that generates problems ended with exit code "
                f"{done.returncode} ({lines[-1] if lines else 'no message'}); a negative code is a signal: -9 is often "
                "a lack of memory"
            )
        found = pickle.loads(result.read_bytes())
    if isinstance(found, AdaGRPOError):
        raise found
    problems: tuple[GymProblem, ...] = found
    return problems[held_out:], problems[:held_out]


def generate(settings: ReasoningGymSettings, count: int) -> tuple[GymProblem, ...]:
    """The first `count` problems of the settings; those of tasks with a weight of 0 are checked and not generated.

    Whatever the number, the tasks take turns by their weights, so that each beginning has its share of each task.
    """
    streams = [_Stream(settings, number) for number in range(len(settings.tasks))]
    seen: set[str] = set()
    problems = [streams[number].draw(seen) for number in _turns([task.weight for task in settings.tasks], count)]
    for number, task in enumerate(settings.tasks):
        levels = {problem.level for problem in problems if problem.task == task.name}
        if task.level is not None and len(levels) > MOST_CLASSES:
            raise DataError(
                f"{SETTING}.{number}.level={task.level!r} makes {len(levels)} difficulty classes, more than the "
                f"{MOST_CLASSES} that reports can show; name an entry with fewer values, or narrow the task's config"
            )
    return tuple(problems)


def _turns(weights: Sequence[float], count: int) -> Iterator[int]:
    """Places of tasks, so that after each turn every task has its share of the turns so far, but for less than one."""
    total, taken = sum(weights), [0] * len(weights)
    for turn in range(1, count + 1):
        behind = [weight * turn / total - had if weight else -1.0 for weight, had in zip(weights, taken, strict=True)]
        place = behind.index(max(behind))
        taken[place] += 1
        yield place


class _Stream:
    """Problems of one task without end."""

    def __init__(self, settings: ReasoningGymSettings, number: int) -> None:
        self._task = settings.tasks[number]
        self._place, self._seed = f"{SETTING}.{number}", settings.seed
        self._name = _class_name(self._task, settings.tasks)
        self._drawn = self._given = 0
        self._dataset = self._chunk(0)

    def draw(self, seen: set[str]) -> GymProblem:
        """The next problem whose question is not in `seen`, to which it is added."""
        misses = failures = 0
        while True:
            try:
                entry = self._next()
            except ImportError as error:
                raise missing_package(self._task.name, error, self._place) from None
            except Exception as error:  # a task may fail in any way with odd settings
                failures += 1
                if failures > MOST_FAILURES:
                    raise DataError(
                        f"{self._place}: {self._task.name} cannot generate problems with config "
                        f"{self._task.config!r:.200} ({first_line(error)}); change the config"
                    ) from None
                continue
            failures = 0
            question = normalised(entry["question"])
            if question not in seen:
                seen.add(question)
                self._given += 1
                return GymProblem(self._task.name, self._task.config, self._level(entry), entry)
            misses += 1
            if misses > PATIENCE + self._given:
                raise DataError(
                    f"{self._place}: {self._task.name} gave {self._given} different problems in {self._drawn} draws "
                    "and more are asked for; widen its config, or lower its weight, data.train_prompts or "
                    "data.held_out_prompts"
                )

    def _next(self) -> dict[str, Any]:
        chunk, place = divmod(self._drawn, CHUNK)
        if place == 0 and chunk:
            self._dataset = self._chunk(chunk)
        self._drawn += 1
        entry: dict[str, Any] = self._dataset[place]
        return entry

    def _chunk(self, number: int) -> Any:
        """A data set with a seed of its own: the package adds the place of a problem to the seed, so that data sets
        with neighbouring seeds have most problems in common."""
        key = f"{self._seed}\0{self._task.name}\0{settings_key(self._task.config)}\0{number}"
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) % 2**31  # numpy's seeds have 32 bits
        return make_dataset(self._task.name, self._task.config, seed, self._place)

    def _level(self, entry: Mapping[str, Any]) -> str:
        key = self._task.level
        if key is None:
            return self._name
        metadata = entry["metadata"]
        if key not in metadata:
            raise DataError(
                f"{self._place}.level={key!r}: the metadata of {self._task.name} have no such entry; they have "
                f"{', '.join(metadata)}"
            )
        value = answer_text(metadata[key])
        if value is None:
            raise DataError(
                f"{self._place}.level={key!r}: the metadata of {self._task.name} hold a {type(metadata[key]).__name__} "
                "there; name an entry with a text or a number"
            )
        return f"{self._name} {key}={value}"


def _class_name(task: GymTaskSettings, tasks: Sequence[GymTaskSettings]) -> str:
    """The task's name; if the task is listed with other settings too, the settings that make the difference."""
    others = [other.config for other in tasks if other.name == task.name and other is not task]
    told = [
        f"{key}={settings_key({'': value})[5:-1].strip(chr(34))}"
        for key, value in sorted(task.config.items())
        if any(key not in other or other[key] != value for other in others)
    ]
    return " ".join([task.name, ", ".join(told)]).strip()
