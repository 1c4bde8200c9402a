"""Limits of a process that runs functions of the user: its memory, and its end with the process that started it."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

OUT_OF_MEMORY = 113
"""Exit code of a process that ran out of memory. No signal and few programs use it."""

_PR_SET_PDEATHSIG = 1


def limit_memory(gib: float | None) -> None:
    """Limit the memory of this process, and of those that it starts from now on; None: no limit of its own.

    The limit is for the data segment, which is private writable memory. The address space would also include libraries
    and memory that torch and CUDA reserve and never use.
    """
    if gib is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        size = int(gib * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))


@contextmanager
def limited_memory(gib: float | None) -> Iterator[None]:
    """Limit the memory as `limit_memory` does, within the block."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit_memory(gib)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def die_with_parent(parent: int) -> None:
    """Make the kernel kill this process when the thread of `parent` that started it ends, even if it is busy."""
    _set_death_signal(signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call
        os._exit(1)


def outlive_parent() -> None:
    """Undo `die_with_parent`."""
    _set_death_signal(0)


def _set_death_signal(number: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
