"""What a scoring process does: load the reward functions once, then score group after group.

Only plain values come in and go out, so that a group costs no more than a fraction of a millisecond.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping, Sequence

from adagrpo_ray.config.tree import FormatSettings
from adagrpo_ray.errors import RewardError
from adagrpo_ray.rewards.registry import RewardFunction, load_reward, score_group

# Longest that loading the reward functions may take; then the process is killed.
LOAD_TIMEOUT_S = 120

_PR_SET_PDEATHSIG = 1

_functions: list[tuple[RewardFunction, float]] = []
_format: FormatSettings
_load_error: RewardError | None = None


def start(rewards: Sequence[tuple[str, float]], format: FormatSettings) -> None:
    """Load the functions; an error waits for the first group, since here nobody would hear of it."""
    global _format, _load_error
    _die_with_parent()
    # The alarm's default action is the kernel's and needs no Python: it ends an import that hangs in C too.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(LOAD_TIMEOUT_S)
    _format = format
    try:
        _functions.extend((load_reward(name), weight) for name, weight in rewards)
    except RewardError as error:
        _load_error = error
    signal.alarm(0)


def score(
    completions: Sequence[str], answer: str, prompt: str, level: str, columns: Mapping[str, object]
) -> tuple[list[float], list[list[float]]]:
    """Weighted totals [G] and raw scores [G, F] of one group."""
    if _load_error is not None:
        raise RewardError(str(_load_error))
    scores = score_group(
        _functions,
        completions=completions,
        answer=answer,
        prompt=prompt,
        format=_format,
        level=level,
        columns=columns,
    )
    return scores.rewards.tolist(), scores.by_function.tolist()


def _die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends, even if it is busy."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have died before the call.
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:
        os._exit(1)
