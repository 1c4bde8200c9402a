"""The functions of a scoring process, which loads the reward functions once and then scores groups.

Only plain values are sent to and from it, so that sending a group takes a fraction of a millisecond.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from adagrpo_ray.config.data import FormatSettings
from adagrpo_ray.errors import RewardError
from adagrpo_ray.extensions.given import NOTHING, Given
from adagrpo_ray.rewards.registry import RewardFunction, load_reward, score_group

# Most seconds to load the reward functions; then the process is killed.
LOAD_TIMEOUT_S = 120

# The exit code of a process that ran out of memory. No signal and few programs use it.
OUT_OF_MEMORY = 113

GroupScores = tuple[list[float], list[list[float]]]
"""Weighted totals [G] and raw scores [G, F] of a group, as plain values."""

_PR_SET_PDEATHSIG = 1

_functions: list[tuple[RewardFunction, float]] = []
_format: FormatSettings
_load_error: RewardError | None = None
_memory: int | None = None  # bytes


def start(
    rewards: Sequence[tuple[str, float]], format: FormatSettings, memory_gib: float | None, given: Given = NOTHING
) -> None:
    """Load the functions. An error is kept for the first group, since it would not be reported from here."""
    global _format, _load_error, _memory
    _die_with_parent()
    # The default action of the alarm is in the kernel and needs no Python, so it also ends an import that hangs in C.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(LOAD_TIMEOUT_S)
    _format = format
    _memory = None if memory_gib is None else int(memory_gib * 2**30)
    try:
        with _limited_memory():
            _functions.extend((load_reward(name, given), weight) for name, weight in rewards)
    except RewardError as error:
        # The program has loaded them before, without a limit.
        hint = "" if memory_gib is None else f"; if it loads elsewhere, rewards.memory_gib={memory_gib} is too small"
        _load_error = RewardError(f"{error}{hint}")
    signal.alarm(0)


def score(
    completions: Sequence[str], answer: str, prompt: str, difficulty: str, columns: Mapping[str, object]
) -> GroupScores:
    """Score one group. Ends the process if memory runs out."""
    if _load_error is not None:
        raise RewardError(str(_load_error))
    try:
        with _limited_memory():
            scores = score_group(
                _functions,
                completions=completions,
                answer=answer,
                prompt=prompt,
                format=_format,
                difficulty=difficulty,
                columns=columns,
            )
    except MemoryError:
        # The module of the function may still hold the memory, and the next groups would fail too.
        os._exit(OUT_OF_MEMORY)
    return scores.rewards.tolist(), scores.by_function.tolist()


@contextmanager
def _limited_memory() -> Iterator[None]:
    """Limit the memory of this process, and of those that it starts in the block, to `rewards.memory_gib`.

    The limit is for the data segment, which is private writable memory. The address space would also include libraries
    and memory that torch and CUDA reserve and never use. There is no limit between groups: if a process dies while it
    takes a group from the pool, the pool loses that group.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if _memory is not None:
        size = _memory if hard == resource.RLIM_INFINITY else min(_memory, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _die_with_parent() -> None:
    """Make the kernel kill this process when the thread that started it ends, even if it is busy."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have died before the call.
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:
        os._exit(1)
