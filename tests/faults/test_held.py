"""Helpers of the tests of faults: programs that wait at given points, and numbers that belong to one process."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.held import NAME, Gate, plain, started
from tests.support.reserved import reserved, reserved_ports

SCORE = """
from held import exact
from adagrpo_ray.config.data import FormatSettings

for number in range(5):
    score = exact(["SOLUTION_START_FLAG1SOLUTION_END_FLAG"], answer="1", format=FormatSettings())
    print(number, score, flush=True)
"""


def test_a_program_waits_at_its_points_in_order(gate: Gate, tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("one\ntwo\n")
    gate.close(tmp_path / "lines", (2, 1), (2, 2), (3, 0))
    with started([sys.executable, "-c", SCORE], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        gate.wait(running, 0)
        assert running.stdout.readline().startswith("0 ")
        assert not gate.holds(1)
        gate.open(0)
        gate.wait(running, 1)
        lines = [running.stdout.readline() for _ in range(3)]
        assert [line.split()[0] for line in lines] == ["1", "2", "3"]
        gate.open(1)
        assert running.stdout.readline().startswith("4 ")
    assert running.returncode == 0
    assert not gate.holds(2), "there are no three lines"


def test_a_waiting_program_ends_with_a_failing_test(gate: Gate, tmp_path: Path) -> None:
    (tmp_path / "lines").touch()
    gate.close(tmp_path / "lines", (0, 0))
    programs = []

    def fail() -> None:
        with started([sys.executable, "-c", SCORE], stdout=subprocess.PIPE, text=True) as running:
            programs.append(running)
            gate.wait(running)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fail()
    assert programs[0].returncode == -signal.SIGKILL


def test_the_name_of_the_function_is_the_only_difference() -> None:
    assert plain(f'{{"rewards_mean": {{"{NAME}": 1.0}}}}') == '{"rewards_mean": {"exact": 1.0}}'


def test_a_reserved_number_belongs_to_one_process() -> None:
    with reserved("test", range(2)) as one, reserved("test", range(2)) as other:
        assert {one, other} == {0, 1}
        with pytest.raises(OSError, match="no test is free"), reserved("test", range(2)):
            pass
        with reserved("test", range(3)) as third:
            assert third == 2
    with reserved("test", range(2), lambda number: number > 0) as usable:
        assert usable == 1
    with reserved_ports(3) as ports, reserved_ports(3) as others:
        assert len({*ports, *others}) == 6
