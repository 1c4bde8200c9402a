"""What a scoring process does: load the reward functions once, then score group after group.

Only plain values come in and go out, so that a group costs no more than a fraction of a millisecond.
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

# Longest that loading the reward functions may take; then the process is killed.
LOAD_TIMEOUT_S = 120

# The exit code of a process that ran out of memory, which no signal and few programs use.
OUT_OF_MEMORY = 113

_PR_SET_PDEATHSIG = 1

_functions: list[tuple[RewardFunction, float]] = []
_format: FormatSettings
_load_error: RewardError | None = None
_memory: int | None = None  # bytes


def start(
    rewards: Sequence[tuple[str, float]], format: FormatSettings, memory_gib: float | None, given: Given = NOTHING
) -> None:
    """Load the functions; an error waits for the first group, since here nobody would hear of it."""
    global _format, _load_error, _memory
    _die_with_parent()
    # The alarm's default action is the kernel's and needs no Python: it ends an import that hangs in C too.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(LOAD_TIMEOUT_S)
    _format = format
    _memory = None if memory_gib is None else int(memory_gib * 2**30)
    try:
        with _limited_memory():
            _functions.extend((load_reward(name, given), weight) for name, weight in rewards)
    except RewardError as error:
        # The program has loaded them before, without a limit.
        hint = "" if memory_gib is None else f"; where it loads elsewhere, rewards.memory_gib={memory_gib} is too small"
        _load_error = RewardError(f"{error}{hint}")
    signal.alarm(0)


def score(
    completions: Sequence[str], answer: str, prompt: str, difficulty: str, columns: Mapping[str, object]
) -> tuple[list[float], list[list[float]]]:
    """Weighted totals [G] and raw scores [G, F] of one group; ends the process where memory runs out."""
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
        # What filled the memory may still be held by the function's module, and would cost the next groups too.
        os._exit(OUT_OF_MEMORY)
    return scores.rewards.tolist(), scores.by_function.tolist()


@contextmanager
def _limited_memory() -> Iterator[None]:
    """Refuse this process, and each one that it starts meanwhile, more than `rewards.memory_gib`.

    What counts is the data segment: private memory that can be written. The address space would also count libraries,
    and what torch and CUDA reserve and never use. In between there is no limit, since the pool loses the group that a
    process was about to take from it when it died.
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
    """Have the kernel kill this process when the thread that started it ends, even if it is busy."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have died before the call.
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:
        os._exit(1)
