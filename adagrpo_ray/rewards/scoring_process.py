"""The functions of a scoring process, which loads the reward functions once and then scores groups.

Only plain values are sent to and from it, so that sending a group takes a fraction of a millisecond. `process_pool`
runs such processes for one group at a time, and `async_host` one for many groups at the same time.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adagrpo_ray.config.data import FormatSettings
from adagrpo_ray.errors import RewardError
from adagrpo_ray.extensions.given import Given
from adagrpo_ray.extensions.loading import is_coroutine_function
from adagrpo_ray.extensions.process_limits import OUT_OF_MEMORY, die_with_parent, limited_memory
from adagrpo_ray.rewards.registry import RewardFunction, await_all, call_each, context, load_reward

# Most seconds to load the reward functions; then the process is killed.
LOAD_TIMEOUT_S = 120

GroupTask = tuple[Sequence[str], str, str, str, Mapping[str, object]]
"""A group: its completions, and the ground truth, text, difficulty and columns of its prompt."""

GroupScores = list[list[float]]
"""Scores of a group [G, F], NaN if a function does not apply."""


@dataclass(frozen=True)
class Functions:
    """The reward functions of a scoring process.

    names: as in the configuration.
    format: `data.format`, which they get as an argument.
    memory_gib: the limit of the memory of the process; None if there is none.
    given: the functions among them that were given as objects.
    """

    names: Sequence[str]
    format: FormatSettings
    memory_gib: float | None
    given: Given


_functions: list[RewardFunction] = []
_format: FormatSettings
_load_error: RewardError | None = None
_memory_gib: float | None = None


def start(functions: Functions) -> None:
    """Load the functions. An error is kept for the first group, since it would not be reported from here."""
    global _format, _load_error, _memory_gib
    parent = multiprocessing.parent_process()
    die_with_parent(os.getppid() if parent is None or parent.pid is None else parent.pid)
    # The default action of the alarm is in the kernel and needs no Python, so it also ends an import that hangs in C.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(LOAD_TIMEOUT_S)
    memory_gib = functions.memory_gib
    _format = functions.format
    _memory_gib = memory_gib
    try:
        with limited_memory(memory_gib):
            _functions.extend(load_reward(name, functions.given) for name in functions.names)
    except RewardError as error:
        # The program has loaded them before, without a limit.
        hint = "" if memory_gib is None else f"; if it loads elsewhere, rewards.memory_gib={memory_gib} is too small"
        _load_error = RewardError(f"{error}{hint}")
    signal.alarm(0)


def coroutine_functions() -> list[int]:
    """Return the places of the coroutine functions in the list of functions. Raises the error of loading."""
    _check_loaded()
    return [place for place, function in enumerate(_functions) if is_coroutine_function(function)]


def score(task: GroupTask, places: Sequence[int]) -> GroupScores:
    """Score one group by the functions at these places. Ends the process if memory runs out."""
    _check_loaded()
    completions, answer, prompt, difficulty, columns = task
    try:
        # Not between groups: if a process dies while it takes a group from the pool, the pool loses that group.
        with limited_memory(_memory_gib):
            known = context(answer, prompt, _format, difficulty, columns)
            raw = call_each([_functions[place] for place in places], completions, known)
    except MemoryError:
        # The module of the function may still hold the memory, and the next groups would fail too.
        os._exit(OUT_OF_MEMORY)
    return _plain(raw)


async def score_awaited(task: GroupTask, places: Sequence[int]) -> GroupScores:
    """Score one group by the coroutine functions at these places. Ends the process if memory runs out."""
    _check_loaded()
    completions, answer, prompt, difficulty, columns = task
    try:
        known = context(answer, prompt, _format, difficulty, columns)
        raw = await await_all([_functions[place] for place in places], completions, known)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    return _plain(raw)


def _plain(raw: NDArray[np.float64]) -> GroupScores:
    scores: GroupScores = raw.tolist()
    return scores


def _check_loaded() -> None:
    if _load_error is not None:
        raise RewardError(str(_load_error))
