"""The output of vLLM's processes, and the cause of a failure that is found in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pydantic
import pytest

from adagrpo_ray.errors import first_line
from adagrpo_ray.rollout.output import KEPT_BYTES, EngineOutput, last_exception

CORE = "(EngineCore_DP0 pid=71) "
LOGGED = "(EngineCore_DP0 pid=71) ERROR 11-28 20:01:21 [core.py:846] "
FAILED = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")
LOG = f"""{LOGGED}EngineCore failed to start.
{LOGGED}Traceback (most recent call last):
{LOGGED}  File "core.py", line 3, in run_engine_core
{LOGGED}    engine_core = EngineCoreProc(*args)
{LOGGED}ValueError: To serve at least one request with the model's max seq len (8192), 3.5 GiB KV cache is needed
{CORE}Process EngineCore_DP0:
{CORE}Traceback (most recent call last):
{CORE}  File "process.py", line 314, in _bootstrap
{CORE}    self.run()
{CORE}ValueError: To serve at least one request with the model's max seq len (8192), 3.5 GiB KV cache is needed. \
Decrease max_model_len
Exception ignored in: <function Pool.__del__>
Traceback (most recent call last):
  File "pool.py", line 1, in __del__
AttributeError: 'Pool' object has no attribute '_state'
[rank0]:[W1128 ProcessGroup.cpp:1] Warning: destroy_process_group() was not called
"""
WORKER = """(Worker_TP0 pid=9) ERROR 11-28 20:01:21 [multiproc.py:5] Traceback (most recent call last):
(Worker_TP0 pid=9) ERROR 11-28 20:01:21 [multiproc.py:5]   File "worker.py", line 1, in init_device
(Worker_TP0 pid=9) ERROR 11-28 20:01:21 [multiproc.py:5] torch.AcceleratorError: CUDA error: out of memory
(EngineCore pid=8) Traceback (most recent call last):
(EngineCore pid=8)   File "core.py", line 1, in execute
(EngineCore pid=8) RuntimeError: Worker failed with error, please check the stack trace above for the root cause
"""


def test_the_cause_is_the_last_exception_in_the_output_that_names_one() -> None:
    assert str(last_exception(LOG)).startswith("ValueError: To serve at least one request")
    assert "Decrease max_model_len" in str(last_exception(LOG))
    assert last_exception(WORKER) == "torch.AcceleratorError: CUDA error: out of memory"
    assert last_exception("all is well\n") is None
    assert last_exception("Traceback (most recent call last):\n") is None


def output(*lines: str) -> EngineOutput:
    kept = EngineOutput()
    with kept.captured():
        for line in lines:
            os.write(2, line.encode())
    return kept


def test_an_error_that_refers_to_another_one_gets_its_cause() -> None:
    cause = output(LOG).cause(FAILED)
    assert "3.5 GiB KV cache is needed" in cause
    assert cause.endswith("(max_model_len is rollout.max_model_len here)")
    assert "\n" not in cause


def test_an_error_with_its_own_cause_keeps_it() -> None:
    assert output(LOG).cause(ValueError("no such model")) == "no such model"


@pytest.mark.parametrize(
    ("processes", "lines", "cause"),
    [
        ("{'EngineCore_DP0': -9}", (), "its process was ended by signal 9, which the system sends if memory runs out"),
        ("{'EngineCore_DP0': -11}", (), "its process was ended by signal 11"),
        ("{'EngineCore_DP0': 1}", ("loading\n", "terminate called\n"), "terminate called"),
        ("{}", (), "Engine core initialization failed. See root cause above. Failed core proc(s): {}"),
    ],
)
def test_without_a_traceback_the_cause_is_the_signal_or_the_last_line(
    processes: str, lines: tuple[str, ...], cause: str
) -> None:
    error = RuntimeError(f"Engine core initialization failed. See root cause above. Failed core proc(s): {processes}")
    assert output(*lines).cause(error) == cause


def test_the_cause_of_death_is_the_fatal_error_in_the_output() -> None:
    """Earlier errors, which it survived, do not count."""
    survived = "Traceback (most recent call last):\n  File 'a.py'\nKeyError: 'of a request'\n"
    killed = "its process ended without an error, like a killed process"
    assert output(survived).exit_cause == output().exit_cause == killed
    fatal = f"{LOGGED}EngineCore encountered a fatal error.\n{LOGGED}Traceback (most recent call last):\n"
    died = output(survived, fatal, f"{LOGGED}  File 'core.py'\n{LOGGED}torch.OutOfMemoryError: CUDA out of memory\n")
    assert died.exit_cause == "torch.OutOfMemoryError: CUDA out of memory"


def test_output_of_processes_is_kept_until_they_end_and_forwarded(capfd: pytest.CaptureFixture[str]) -> None:
    kept = EngineOutput()
    with kept.captured():
        os.write(1, b"ours\n")
        child = subprocess.Popen(
            [sys.executable, "-c", "import sys; input(); print('late', file=sys.stderr)"], stdin=subprocess.PIPE
        )
    os.write(1, b"not kept\n")
    child.communicate(b"\n")
    assert sorted(kept.text.splitlines()) == ["late", "ours"]
    passed_on = capfd.readouterr()
    assert "late" in passed_on.err
    assert passed_on.out.splitlines() == ["ours", "not kept"]


def test_only_the_newest_output_is_kept() -> None:
    kept = output("first", *(["x" * 2**14] * 40), "last")
    assert len(kept.text) <= KEPT_BYTES
    assert kept.text.endswith("last")
    assert "first" not in kept.text


def test_the_location_of_the_output_is_reported(tmp_path: Path) -> None:
    code = "from adagrpo_ray.rollout.output import EngineOutput; print(EngineOutput().location)"
    with (tmp_path / "worker.err").open("w") as errors:
        to_file = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=errors, check=True)
    assert to_file.stdout.decode().strip() == f"its output is in {tmp_path / 'worker.err'}"
    to_pipe = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert to_pipe.stdout.decode().strip() == "its output is in the terminal"


def test_first_line_skips_headings() -> None:
    class Model(pydantic.BaseModel):
        size: int

        @pydantic.field_validator("size")
        @classmethod
        def check(cls, value: int) -> int:
            raise ValueError("size is far too large\nfor this")

    with pytest.raises(pydantic.ValidationError) as own:
        Model(size=3)
    assert first_line(own.value) == "size size is far too large for this"
    with pytest.raises(pydantic.ValidationError) as typed:
        Model(size="x")  # type: ignore[arg-type]
    assert first_line(typed.value).startswith("size Input should be a valid integer, unable to parse")
    assert "further information" not in first_line(typed.value)
    sizes = RuntimeError("Error(s) in loading state_dict for Llama:\n\tsize mismatch for head: 3 and 4")
    assert first_line(sizes) == "Error(s) in loading state_dict for Llama: size mismatch for head: 3 and 4"
    assert first_line(OSError("one\ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError()"
