"""Keeps the newest terminal output of vLLM's processes, from which an error takes its cause.

vLLM runs the model in a separate process. If that fails, the exception in this process is "See root cause above", and
only the output of the other process has the cause.
"""

from __future__ import annotations

import os
import re
import select
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from adagrpo_ray.errors import first_line

KEPT_BYTES = 2**18
"""Bytes of output that are kept: enough for several of vLLM's longest tracebacks (about 20 kB)."""
PREFIXES = re.compile(r"^(?:\([^()]*pid=\d+\) ?)+|^(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) [\d-]+ [\d:.]+ \[[^\]]*\] ?")
"""Prefixes of vLLM's lines: the process, or the level, time and place of its logger."""
TRACEBACK = "Traceback (most recent call last):"
IGNORED = "Exception ignored in"
EXCEPTION = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:: |:?$)")
ELSEWHERE = re.compile(r"root cause|stack trace above|EngineDeadError|Engine core initialization failed|cancelled")
"""Matches exceptions that only refer to another one."""
FATAL = "EngineCore encountered a fatal error"
"""The line that vLLM writes before the traceback of an engine that dies."""
NAMES = {
    "gpu_memory_utilization": "rollout.gpu_memory_utilization or rollout.kv_cache_gib",
    "max_model_len": "rollout.max_model_len",
    "max_num_seqs": "rollout.max_num_seqs",
    "kv_cache_memory_bytes": "rollout.kv_cache_gib",
    "VLLM_CPU_KVCACHE_SPACE": "rollout.kv_cache_gib",
    "tensor_parallel_size": "rollout.tensor_parallel_size",
    "enforce_eager": "rollout.enforce_eager",
    "max_lora_rank": "model.lora.r",
    "max_loras": "algorithm.max_staleness",
    "trust_remote_code": "model.trust_remote_code",
}
"""vLLM's arguments, and the settings that determine them."""


class EngineOutput:
    """Keeps the output of processes that are started within `captured`, and forwards it to its former destination."""

    def __init__(self) -> None:
        self._newest: deque[bytes] = deque()
        self._lock = threading.Lock()
        self._pipes: dict[int, int] = {}  # from the reading end of a pipe to the descriptor that gets its output
        self._file = _error_file()

    @contextmanager
    def captured(self) -> Iterator[None]:
        """Keep the output of this process within the block, and of the processes started in it until they end."""
        _flush()
        before = {descriptor: self._redirect(descriptor) for descriptor in (1, 2)}
        try:
            yield
        finally:
            _flush()
            for descriptor, to in before.items():
                os.dup2(to, descriptor)
            with self._lock:  # forward the output so far before any later output
                self._take_all()

    def _redirect(self, descriptor: int) -> int:
        """Redirect the descriptor into a pipe that a thread empties; returns a copy of the former descriptor."""
        to = os.dup(descriptor)
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        os.dup2(writing, descriptor)
        os.close(writing)
        self._pipes[reading] = to
        threading.Thread(target=self._empty, args=(reading,), name="engine output", daemon=True).start()
        return to

    def _empty(self, reading: int) -> None:
        """Read the pipe until all processes that write to it have ended."""
        waiting = select.poll()
        waiting.register(reading, select.POLLIN)
        ended = False
        while not ended:
            waiting.poll()
            with self._lock:
                ended = self._take(reading)
        with self._lock:
            os.close(self._pipes.pop(reading))
            os.close(reading)

    def _take(self, reading: int) -> bool:
        """Keep and forward the current content of the pipe; returns whether the pipe is closed."""
        while True:
            try:
                data = os.read(reading, 2**16)
            except BlockingIOError:
                return False
            if not data:
                return True
            self._newest.append(data)
            while sum(map(len, self._newest)) > KEPT_BYTES and len(self._newest) > 1:
                self._newest.popleft()
            with suppress(OSError):  # the terminal may be gone, but the pipe must be emptied
                os.write(self._pipes[reading], data)

    def _take_all(self) -> None:
        for reading in self._pipes:
            self._take(reading)

    @property
    def text(self) -> str:
        """The newest output, including all that is in the pipes."""
        with self._lock:
            self._take_all()
            return b"".join(self._newest).decode(errors="replace")

    def cause(self, error: BaseException) -> str:
        """The reason why the engine did not start, in one line.

        It is `error` itself or, if that only refers to another error, the last exception in the output.
        """
        message = first_line(error)
        if ELSEWHERE.search(message):
            message = last_exception(self.text) or _signal(str(error)) or _last_line(self.text) or message
        return _with_settings(message)

    @property
    def exit_cause(self) -> str:
        """The reason why a running engine died, in one line: the exception that vLLM wrote."""
        _, fatal, rest = self.text.rpartition(FATAL)
        message = last_exception(rest) if fatal else None
        return _with_settings(message) if message else "its process ended without an error, like a killed process"

    @property
    def location(self) -> str:
        """A clause for error messages about the place of the whole output."""
        return f"its output is in {self._file}" if self._file else "its output is in the terminal"


def last_exception(text: str) -> str | None:
    """The last exception in the output `text` of a process that does not only refer to another one."""
    found: str | None = None
    lines = [_plain(line) for line in text.splitlines()]
    for number, line in enumerate(lines):
        if line.strip() != TRACEBACK or any(IGNORED in before for before in lines[max(0, number - 1) : number]):
            continue
        after = range(number + 1, len(lines))
        at = next((n for n in after if lines[n] and not lines[n][0].isspace() and EXCEPTION.match(lines[n])), None)
        if at is None:
            continue
        parts = [lines[at]]
        for more in lines[at + 1 : at + 8]:
            if not more.strip() or more.strip() == TRACEBACK:
                break
            parts.append(more)
        message = first_line(RuntimeError("\n".join(parts)))
        if not ELSEWHERE.search(message):
            found = message
    return found


def _plain(line: str) -> str:
    """Remove the prefixes of vLLM from the line."""
    while True:
        shorter = PREFIXES.sub("", line, count=1)
        if shorter == line:
            return line.rstrip()
        line = shorter


def _with_settings(message: str) -> str:
    """A message of vLLM, with the settings that determine the arguments in it."""
    named = [f"{argument} is {setting} here" for argument, setting in NAMES.items() if argument in message]
    return message + (f" ({', '.join(named)})" if named else "")


def _signal(message: str) -> str | None:
    """The signal that ended a process, from vLLM's list of failed processes; None if there is none."""
    ended = re.search(r"'[^']*': -(\d+)", message)
    if ended is None:
        return None
    memory = ", which the system sends if memory runs out" if ended[1] == "9" else ""
    return f"its process was ended by signal {ended[1]}{memory}"


def _last_line(text: str) -> str | None:
    return next((plain[:300] for line in reversed(text.splitlines()) if (plain := _plain(line).strip())), None)


def _error_file() -> str | None:
    """The file that is the standard error of this process; None for a terminal, a pipe or a file without a name."""
    try:
        path = os.readlink("/proc/self/fd/2")
    except OSError:
        return None
    return path if os.path.isfile(path) else None


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
