"""Problems of reasoning-gym: those to train on, those held out, and their difficulty classes.

`problem_rows` works in a process of its own. Some tasks iterate over sets of texts, whose order is random in each
process of Python. There the hash seed is fixed, so the same settings give the same problems everywhere.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from adagrpo_ray.config.reasoning_gym import GymTaskSettings, ReasoningGymSettings
from adagrpo_ray.data.answers import answer_text
from adagrpo_ray.data.gym_tasks import CHUNK, SETTING, make_dataset, missing_package, settings_key
from adagrpo_ray.data.row_id import normalised
from adagrpo_ray.errors import AdaGRPOError, DataError, first_line

MOST_CLASSES = 12
"""Most difficulty classes of one task: reports cannot show more."""

MOST_FAILURES = 50
"""Most problems in a row that a task may fail to generate."""

LONGEST_S = 60
"""Most seconds to generate one problem: with some settings a task searches forever."""

PATIENCE = 200
"""Most known problems in a row that a task may generate, plus one for each new problem that it gave before."""


@dataclass(frozen=True)
class GymProblem:
    """One generated problem.

    `task` and `config` define the data set that scores answers. `entry` is its entry with question, answer and
    metadata. The answer is None if the task accepts many answers and gives none. `examples` are other questions of the
    task with their answers.
    """

    task: str
    config: Mapping[str, Any]
    difficulty: str
    entry: Mapping[str, Any]
    examples: tuple[tuple[str, str], ...] = ()

    @property
    def messages(self) -> list[dict[str, str]]:
        """The chat: one turn for each example, then the question."""
        turns = [(("user", question), ("assistant", answer)) for question, answer in self.examples]
        chat = [*chain.from_iterable(turns), ("user", self.entry["question"])]
        return [{"role": role, "content": text} for role, text in chat]

    @property
    def columns(self) -> dict[str, Any]:
        """The columns for reward functions."""
        return {"task": self.task, "task_config": dict(self.config), "entry": dict(self.entry)}


def problem_rows(
    settings: ReasoningGymSettings, train: int, held_out: int
) -> tuple[tuple[GymProblem, ...], tuple[GymProblem, ...]]:
    """Return `train` problems to train on and `held_out` others, without duplicates, tasks in proportion to weights.

    The held-out problems depend on the settings alone, not on the number to train on. Raises ConfigError if a task or
    one of its settings is wrong, and DataError if a task has too few problems or cannot generate them.
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
    """Return the first `count` problems of the settings. Tasks with a weight of 0 are checked and give none.

    The tasks take turns by their weights, so any first part of the result has about the same shares. Call it in the
    main thread only, since a signal interrupts a task that takes longer than `LONGEST_S`.
    """
    seen: set[str] = set()
    streams = [_Stream(settings, number, seen) for number in range(len(settings.tasks))]
    turns = list(_turns([task.weight for task in settings.tasks], count))
    problems = [streams[number].draw() for number in turns]
    for number, task in enumerate(settings.tasks):
        difficulties = {problem.difficulty for problem, turn in zip(problems, turns, strict=True) if turn == number}
        if task.difficulty is not None and len(difficulties) > MOST_CLASSES:
            raise DataError(
                f"{SETTING}.{number}.difficulty={task.difficulty!r} makes {len(difficulties)} difficulty classes, more "
                f"than the {MOST_CLASSES} that reports can show; name an entry with fewer values, or narrow the task's "
                "config"
            )
    return tuple(problems)


def _turns(weights: Sequence[float], count: int) -> Iterator[int]:
    """Yield indices of tasks. Each turn is that of the task which is furthest behind its share of the turns so far."""
    total, taken = sum(weights), [0] * len(weights)
    for turn in range(1, count + 1):
        behind = [weight * turn / total - had if weight else -1.0 for weight, had in zip(weights, taken, strict=True)]
        place = behind.index(max(behind))
        taken[place] += 1
        yield place


class _TooLong(BaseException):
    """A time limit. It is no Exception, since tasks catch those and try again."""


@contextmanager
def _time_limit() -> Iterator[None]:
    """Raise _TooLong in the block after `LONGEST_S`, and every second from then on."""

    def end(*_: object) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_S, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


class _Stream:
    """An endless stream of problems of one task."""

    def __init__(self, settings: ReasoningGymSettings, number: int, seen: set[str]) -> None:
        """Create the stream; `seen` has the questions of all streams, which none of them repeats."""
        self._task = settings.tasks[number]
        self._place, self._seed = f"{SETTING}.{number}", settings.seed
        self._name = _class_name(self._task, settings.tasks)
        self._drawn = self._given = 0
        self._seen = seen
        self._dataset = self._chunk(0)
        self._examples = tuple(map(self._example, range(settings.examples if self._task.weight else 0)))

    def draw(self) -> GymProblem:
        """Return the next problem whose question is new."""
        entry = self._new()
        return GymProblem(self._task.name, self._task.config, self._difficulty(entry), entry, self._examples)

    def _example(self, _: int) -> tuple[str, str]:
        entry = self._new()
        while entry["answer"] == "":  # no chat template renders it as a turn
            entry = self._new()
        if not isinstance(entry["answer"], str):
            raise DataError(
                f"reasoning_gym.examples: {self._task.name} ({self._place}) gives no answer to show; set it to 0, or "
                "remove the task"
            )
        return entry["question"], entry["answer"]

    def _new(self) -> dict[str, Any]:
        misses = failures = 0
        while True:
            try:
                entry = self._next()
            except ImportError as error:
                raise missing_package(self._task.name, error, self._place) from None
            except _TooLong:
                raise DataError(
                    f"{self._place}: {self._task.name} took more than {LONGEST_S} s for one problem with config "
                    f"{self._task.config!r:.200}, which may allow no problem; change the config"
                ) from None
            except Exception as error:  # a task may raise anything with unusual settings
                failures += 1
                if failures > MOST_FAILURES:
                    raise DataError(
                        f"{self._place}: {self._task.name} cannot generate problems with config "
                        f"{self._task.config!r:.200} ({first_line(error)}); change the config"
                    ) from None
                continue
            failures = 0
            question = normalised(entry["question"])
            if question not in self._seen:
                self._seen.add(question)
                self._given += 1
                return entry
            misses += 1
            if misses > PATIENCE + self._given:
                raise DataError(
                    f"{self._place}: {self._task.name} gave {self._given} different problems in {self._drawn} draws, "
                    "and more are needed; widen its config, or lower its weight, data.train_prompts or "
                    "data.eval_prompts"
                )

    def _next(self) -> dict[str, Any]:
        chunk, place = divmod(self._drawn, CHUNK)
        if place == 0 and chunk:
            self._dataset = self._chunk(chunk)
        self._drawn += 1
        with _time_limit():
            entry: dict[str, Any] = self._dataset[place]
        return entry

    def _chunk(self, number: int) -> Any:
        """Return a data set with a seed of its own.

        The package adds the index of a problem to the seed, so data sets with neighbouring seeds share most problems.
        """
        key = f"{self._seed}\0{self._task.name}\0{settings_key(self._task.config)}\0{number}"
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) % 2**31  # numpy's seeds have 32 bits
        return make_dataset(self._task.name, self._task.config, seed, self._place)

    def _difficulty(self, entry: Mapping[str, Any]) -> str:
        key = self._task.difficulty
        if key is None:
            return self._name
        metadata = entry["metadata"]
        if key not in metadata:
            raise DataError(
                f"{self._place}.difficulty={key!r}: the metadata of {self._task.name} have no such entry; they have "
                f"{', '.join(metadata)}"
            )
        value = answer_text(metadata[key])
        if value is None:
            raise DataError(
                f"{self._place}.difficulty={key!r}: the metadata of {self._task.name} hold a "
                f"{type(metadata[key]).__name__} there; name an entry with a text or a number"
            )
        return f"{self._name} {key}={value}"


def _class_name(task: GymTaskSettings, tasks: Sequence[GymTaskSettings]) -> str:
    """Return the name of the task, and the settings that differ if the task is listed more than once."""
    others = [other.config for other in tasks if other.name == task.name and other is not task]
    differing = [
        f"{key}={settings_key({'': value})[5:-1].strip(chr(34))}"
        for key, value in sorted(task.config.items())
        if any(key not in other or other[key] != value for other in others)
    ]
    return " ".join([task.name, ", ".join(differing)]).strip()
