"""What vLLM's processes write to the terminal: kept for a while, so that an error can tell its cause.

vLLM runs the model in a process of its own. If that fails, the exception here says "See root cause above", and the
cause is in the other process's output alone.
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
"""Of the newest output: vLLM's longest traceback (about 20 kB) several times."""
PREFIXES = re.compile(r"^(?:\([^()]*pid=\d+\) ?)+|^(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) [\d-]+ [\d:.]+ \[[^\]]*\] ?")
"""The process that vLLM names before each line, and its logger's place and time."""
TRACEBACK = "Traceback (most recent call last):"
IGNORED = "Exception ignored in"
EXCEPTION = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:: |:?$)")
ELSEWHERE = re.compile(r"root cause|stack trace above|EngineDeadError|Engine core initialization failed|cancelled")
"""What is in exceptions that only say that there was another one."""
FATAL = "EngineCore encountered a fatal error"
"""What vLLM writes before the traceback of an engine that dies."""
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
"""vLLM's arguments, and the settings that they come from."""


class EngineOutput:
    """The output of the processes that are started within `captured`, passed on to its former destination."""

    def __init__(self) -> None:
        self._newest: deque[bytes] = deque()
        self._lock = threading.Lock()
        self._pipes: dict[int, int] = {}  # the end of a pipe to read, and the descriptor to write to
        self._place = _place()

    @contextmanager
    def captured(self) -> Iterator[None]:
        """Within it all output of this process and of those that it starts is kept; of the latter to their end."""
        _flush()
        before = {descriptor: self._redirect(descriptor) for descriptor in (1, 2)}
        try:
            yield
        finally:
            _flush()
            for descriptor, to in before.items():
                os.dup2(to, descriptor)
            with self._lock:  # what was written so far goes out before what is written next
                self._take_all()

    def _redirect(self, descriptor: int) -> int:
        """Let the descriptor write into a pipe that a thread empties; returns a copy of the former one."""
        to = os.dup(descriptor)
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        os.dup2(writing, descriptor)
        os.close(writing)
        self._pipes[reading] = to
        threading.Thread(target=self._empty, args=(reading,), name="engine output", daemon=True).start()
        return to

    def _empty(self, reading: int) -> None:
        """Take what comes through the pipe until all who write there have ended."""
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
        """Keep and pass on all that is in the pipe now; whether nothing can come any more."""
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
            with suppress(OSError):  # the terminal may be gone, and the pipe must be emptied all the same
                os.write(self._pipes[reading], data)

    def _take_all(self) -> None:
        for reading in self._pipes:
            self._take(reading)

    @property
    def text(self) -> str:
        """The newest output, with all that was written before now."""
        with self._lock:
            self._take_all()
            return b"".join(self._newest).decode(errors="replace")

    def cause(self, error: BaseException) -> str:
        """Why the engine did not start, in a line: the last exception in its output, if `error` says only that there
        was one."""
        said = first_line(error)
        if ELSEWHERE.search(said):
            said = last_exception(self.text) or _signal(str(error)) or _last_line(self.text) or said
        return _in_our_words(said)

    @property
    def last_words(self) -> str:
        """Why an engine that had started died, in a line: the exception that vLLM wrote then."""
        _, fatal, rest = self.text.rpartition(FATAL)
        said = last_exception(rest) if fatal else None
        return _in_our_words(said) if said else "its process ended without an error, as one that is killed does"

    @property
    def whereabouts(self) -> str:
        """Where all of the output is, to be put into a message."""
        return f"its output is in {self._place}" if self._place else "the terminal has all that it wrote"


def last_exception(text: str) -> str | None:
    """The last exception in the output `text` of a process that says more than that there was another one."""
    found: str | None = None
    lines = [_plain(line) for line in text.splitlines()]
    for number, line in enumerate(lines):
        if line.strip() != TRACEBACK or any(IGNORED in before for before in lines[max(0, number - 1) : number]):
            continue
        after = range(number + 1, len(lines))
        at = next((n for n in after if lines[n] and not lines[n][0].isspace() and EXCEPTION.match(lines[n])), None)
        if at is None:
            continue
        told = [lines[at]]
        for more in lines[at + 1 : at + 8]:
            if not more.strip() or more.strip() == TRACEBACK:
                break
            told.append(more)
        said = first_line(RuntimeError("\n".join(told)))
        if not ELSEWHERE.search(said):
            found = said
    return found


def _plain(line: str) -> str:
    """The line without what vLLM puts before it."""
    while True:
        shorter = PREFIXES.sub("", line, count=1)
        if shorter == line:
            return line.rstrip()
        line = shorter


def _in_our_words(said: str) -> str:
    """What vLLM said, with the settings that its arguments come from."""
    named = [f"{theirs} is {ours} here" for theirs, ours in NAMES.items() if theirs in said]
    return said + (f" ({', '.join(named)})" if named else "")


def _signal(said: str) -> str | None:
    """What vLLM's list of failed processes says of one that a signal ended."""
    ended = re.search(r"'[^']*': -(\d+)", said)
    if ended is None:
        return None
    memory = ", as the system does if memory runs out" if ended[1] == "9" else ""
    return f"its process was ended by signal {ended[1]}{memory}"


def _last_line(text: str) -> str | None:
    return next((plain[:300] for line in reversed(text.splitlines()) if (plain := _plain(line).strip())), None)


def _place() -> str | None:
    """The file that this process writes its errors to, if it is one."""
    try:
        place = os.readlink("/proc/self/fd/2")
    except OSError:
        return None
    return place if os.path.isfile(place) else None  # neither a terminal nor a pipe nor a file without a name


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
