"""Environments in their processes: side by side, and if one raises, hangs, takes memory, is killed or is left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from adagrpo_ray.config.environments import EnvironmentSettings
from adagrpo_ray.environments.fork_server import EpisodeSetup
from adagrpo_ray.environments.host import CallError, Host, Sessions
from adagrpo_ray.errors import ConfigError, ExtensionError
from adagrpo_ray.extensions.given import NOTHING
from tests.support.held import until
from tests.support.places import ROOT
from tests.support.tools import hermes_call

PATIENT_S = 120.0  # the time limit of calls that should end, however busy the machine is

# One environment for all tests: the text of a turn selects its behaviour.
MODULE = '''
import asyncio, ctypes, os, signal, subprocess, threading, time
from pathlib import Path

LOADED = os.getpid()
HELD = []


def double(x: int) -> int:
    """Double a number.

    Args:
        x: a number
    """
    return 2 * x


class Obedient:
    def __init__(self, folder=".", slow=0.0):
        self.folder, self.name = Path(folder), "?"
        time.sleep(slow)

    def rows(self):
        return [{"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": "2"}]

    def reset(self, row, seed):
        self.name = row["name"]
        return None if row.get("silent") else [{"role": "user", "content": f"{row['name']} {seed}"}]

    def step(self, message):
        do, _, what = message["content"].partition(" ")
        if do == "pid":
            return f"{os.getpid()} {LOADED}", 0.0, False, {}
        if do == "raise":
            raise ValueError("no step today")
        if do == "sleep":
            time.sleep(600)
        if do == "hang":  # inside C, with the interpreter lock held, deaf to all but SIGKILL
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
            ctypes.PyDLL(None).sleep(600)
        if do == "memory":
            HELD.append(bytearray(int(what) * 2**20))
        if do == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if do == "exit":
            os._exit(7)
        if do == "start":  # a process of its own, in another group
            started = subprocess.Popen(["sleep", "600"])
            return str(started.pid), 0.0, False, {}
        if do == "meet":  # wait until so many sessions are here
            (self.folder / f"{self.name}").touch()
            while len(list(self.folder.iterdir())) < int(what):
                time.sleep(0.01)
        return f"{self.name}: {message['content']}", 1.0, False, {}

    def close(self):
        if self.name != "?" and self.folder != Path("."):
            (self.folder / f"closed-{self.name}").touch()


class Loud(Obedient):
    def __init__(self):
        raise RuntimeError("not here")
'''


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "obedient_xyz.py").write_text(MODULE)
    (tmp_path / "marks").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


def setup_of(name: str = "obedient_xyz:Obedient", **settings: Any) -> EpisodeSetup:
    values = {"timeout_s": PATIENT_S, "memory_gib": None, **settings}
    return EpisodeSetup(EnvironmentSettings.model_validate({"name": name, **values}), NOTHING, "hermes", "")


def with_host(work: Callable[[Host], Awaitable[Any]], made: EpisodeSetup) -> Any:
    """The result of `work(host)`; checks that no process is left."""
    before = descendants()

    async def whole() -> Any:
        host = Host(made)
        try:
            return await work(host)
        finally:
            host.close()

    found = asyncio.run(whole())
    until(lambda: not descendants() - before)
    return found


def descendants() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


async def say(sessions: Sessions, text: str, number: int = 0) -> str:
    """The first message of the reply to a turn."""
    found = await sessions.call("step", number, text=text, raw=text)
    return str(found["messages"][0]["content"])


async def begin(sessions: Sessions, *names: str) -> None:
    for number, name in enumerate(names):
        await sessions.call("begin", number, row={"name": name}, seed=3)


# Processes


def test_group_has_a_process_of_its_own_with_the_modules_loaded_once(place: Path) -> None:
    async def work(host: Host) -> list[list[str]]:
        async with host.sessions(2) as first, host.sessions(1) as second:
            await begin(first, "a", "b")
            await begin(second, "c")
            return [(await say(*each)).split() for each in ((first, "pid"), (first, "pid", 1), (second, "pid"))]

    a, b, c = with_host(work, setup_of())
    assert a == b
    assert a[0] != c[0]
    assert a[1] == c[1] != a[0], "the module was loaded in the process that forks the others"
    assert str(os.getpid()) not in (*a, *c)


def test_episodes_of_a_group_run_side_by_side(place: Path) -> None:
    """Each waits for all of them, in calls that are no coroutines."""

    async def work(host: Host) -> list[str]:
        async with host.sessions(4) as sessions:
            await begin(sessions, "a", "b", "c", "d")
            return list(await asyncio.gather(*(say(sessions, "meet 4", number) for number in range(4))))

    assert with_host(work, setup_of(arguments={"folder": str(place / "marks")})) == [f"{n}: meet 4" for n in "abcd"]


def test_other_groups_wait_for_a_process(place: Path) -> None:
    async def work(host: Host) -> bool:
        async with host.sessions(1) as sessions:
            await begin(sessions, "a")
            other = asyncio.create_task(host.sessions(1).__aenter__())
            await say(sessions, "hello")
            waited = not other.done()
        await other
        return waited

    assert with_host(work, setup_of(processes=1))


def test_reset_and_rows_reach_the_learner(place: Path) -> None:
    async def work(host: Host) -> list[Any]:
        async with host.sessions(2) as sessions:
            return [
                await sessions.call("begin", 0, row={"name": "Ann"}, seed=3),
                await sessions.call("begin", 1, row={"name": "Bob", "silent": True}, seed=3),
                await sessions.call("rows"),
            ]

    opened, silent, rows = with_host(work, setup_of())
    assert opened == [{"role": "user", "content": "Ann 3"}]
    assert silent is None
    assert rows == [{"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": "2"}]


def test_schemas_of_tools_and_calls(place: Path) -> None:
    made = setup_of(tools=("obedient_xyz:double",))

    async def work(host: Host) -> tuple[list[Any], str]:
        (schema,) = await host.tools()
        async with host.sessions(1) as sessions:
            await begin(sessions, "a")
            return schema["function"]["name"], await say(sessions, hermes_call("double", '{"x": 21}'))

    assert with_host(work, made) == ("double", "42")


# Failures


def failing(text: str, **settings: Any) -> tuple[str, str]:
    """The error of a turn, and the reply to a turn of another episode of the group after it, or its error."""

    async def work(host: Host) -> tuple[str, str]:
        async with host.sessions(2) as sessions:
            await begin(sessions, "a", "b")
            with pytest.raises(CallError) as caught:
                await say(sessions, text)
            try:
                return str(caught.value), await say(sessions, "hello", 1)
            except CallError as error:
                return str(caught.value), str(error)

    found: tuple[str, str] = with_host(work, setup_of(**settings))
    return found


def test_error_costs_its_own_episode(place: Path) -> None:
    error, other = failing("raise")
    assert error.startswith("ValueError('no step today') (")
    assert "obedient_xyz.py, line" in error
    assert other == "b: hello"


def test_sleep_beyond_the_limit_costs_its_own_episode(place: Path) -> None:
    error, other = failing("sleep", timeout_s=1.0)
    assert error == "it did not finish within environment.timeout_s=1"
    assert other == "b: hello"


def test_hang_costs_its_group(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adagrpo_ray.environments.host.GRACE_S", 0.5)
    error, other = failing("hang", timeout_s=1.0)
    assert error == "it did not finish within environment.timeout_s=1, and its process did not answer"
    assert "did not finish" in other


def test_memory_beyond_the_limit_costs_its_group(place: Path) -> None:
    error, other = failing("memory 2000", memory_gib=1.0)
    assert error == other == "its process ran out of memory (environment.memory_gib)"
    assert "a: memory 50" in with_host(within, setup_of(memory_gib=1.0))


async def within(host: Host) -> str:
    async with host.sessions(1) as sessions:
        await begin(sessions, "a")
        return await say(sessions, "memory 50")


@pytest.mark.parametrize(("text", "code"), [("kill", -9), ("exit", 7)])
def test_death_of_the_process_costs_its_group(place: Path, text: str, code: int) -> None:
    error, other = failing(text)
    assert error.startswith(f"its process ended with exit code {code} (")
    assert other.startswith("its process ended")


def test_other_groups_continue_after_a_death(place: Path) -> None:
    async def work(host: Host) -> str:
        async with host.sessions(1) as first, host.sessions(1) as second:
            await begin(first, "a")
            await begin(second, "b")
            with pytest.raises(CallError):
                await say(first, "kill")
            return await say(second, "hello")

    assert with_host(work, setup_of()) == "b: hello"


def test_lost_fork_server_is_replaced(place: Path) -> None:
    async def work(host: Host) -> str:
        async with host.sessions(1) as sessions:
            await begin(sessions, "a")
            fork_server: Any = host._fork_server
            fork_server._process.kill()
            with pytest.raises(CallError, match="its process ended"):
                await say(sessions, "sleep")
        async with host.sessions(1) as sessions:
            await begin(sessions, "b")
            return await say(sessions, "hello")

    assert with_host(work, setup_of()) == "b: hello"


# Loading


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "obedient_xyz:Obedien",
            r"environment\.name: obedient_xyz .* has no 'Obedien'.*did you mean 'obedient_xyz:Obe",
        ),
        ("obedient_abc:E", r"environment\.name: the module of 'obedient_abc:E' is not there"),
        ("obedient_xyz:Loud", r"environment\.name: making 'obedient_xyz:Loud' .* raised RuntimeError\('not here'\)"),
        ("obedient_xyz:os", r"environment\.name: 'obedient_xyz:os' is <module"),
        ("builtins:dict", r"makes a dict, which has no method reset"),
    ],
)
def test_environment_that_cannot_be_made_is_one_error(place: Path, name: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        with_host(lambda host: host.tools(), setup_of(name))


def test_module_that_ends_its_process_is_one_error(place: Path) -> None:
    (place / "ends_xyz.py").write_text("import os\nos._exit(3)\n")
    with pytest.raises(ConfigError, match="the process that loads it ended without a reply"):
        with_host(lambda host: host.tools(), setup_of("ends_xyz:E"))


def test_module_that_takes_too_long_is_one_error(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "slow_xyz.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setattr("adagrpo_ray.environments.host.LOAD_TIMEOUT_S", 3.0)
    with pytest.raises(ConfigError, match="importing its module took more than 3 s"):
        with_host(lambda host: host.tools(), setup_of("slow_xyz:E"))


# The end


def test_environments_are_closed_at_the_end_of_their_group(place: Path) -> None:
    marks = place / "marks"

    async def work(host: Host) -> None:
        async with host.sessions(2) as sessions:
            await begin(sessions, "a", "b")
        await host.ended()

    with_host(work, setup_of(arguments={"folder": str(marks)}))
    assert {path.name for path in marks.iterdir()} == {"closed-a", "closed-b"}


def test_processes_that_an_environment_started_end_with_its_group(place: Path) -> None:
    async def work(host: Host) -> psutil.Process:
        async with host.sessions(1) as sessions:
            await begin(sessions, "a")
            started = psutil.Process(int(await say(sessions, "start")))
            assert started.is_running()
        await host.ended()
        until(lambda: not started.is_running() or started.status() == psutil.STATUS_ZOMBIE)
        return started

    assert with_host(work, setup_of()).pid


def test_hundreds_of_groups_are_abandoned_within_calls_and_leave_no_process(place: Path) -> None:
    """As at the end of a step: 300 groups of four episodes, each in a call that would take minutes."""

    async def work(host: Host) -> int:
        begun = 0

        async def group() -> None:
            nonlocal begun
            async with host.sessions(4) as sessions:
                await begin(sessions, "a", "b", "c", "d")
                begun += 1
                await asyncio.gather(*(say(sessions, "sleep", number) for number in range(4)))

        tasks = [asyncio.create_task(group()) for _ in range(300)]
        while begun < 16:
            await asyncio.sleep(0.01)
        began = time.monotonic()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert time.monotonic() - began < PATIENT_S / 4, "nothing waits for the environments"
        return begun

    assert with_host(work, setup_of(processes=16)) >= 16


def test_closed_host_makes_no_process(place: Path) -> None:
    async def work(host: Host) -> None:
        await host.tools()
        host.close()
        with pytest.raises(ExtensionError, match="have been ended"):
            async with host.sessions(1):
                pass

    with_host(work, setup_of())


LEARNER = """
import asyncio, sys
from adagrpo_ray.config.environments import EnvironmentSettings
from adagrpo_ray.environments.host import Host
from adagrpo_ray.environments.fork_server import EpisodeSetup
from adagrpo_ray.extensions.given import NOTHING

async def main():
    settings = EnvironmentSettings(name="obedient_xyz:Obedient", memory_gib=None)
    host = Host(EpisodeSetup(settings, NOTHING, "hermes", ""))
    async with host.sessions(1) as sessions:
        await sessions.call("begin", 0, row={"name": "a"}, seed=0)
        print((await sessions.call("step", 0, text="start", raw="start"))["messages"][0]["content"], flush=True)
        await sessions.call("step", 0, text=sys.argv[1], raw="")

asyncio.run(main())
"""


@pytest.fixture
def learner(place: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(text: str) -> subprocess.Popen[str]:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(place)])}
        command = [sys.executable, "-c", LEARNER, text]
        started.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, cwd=place))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("text", ["sleep", "hang"])
def test_no_process_is_left_if_the_learner_is_killed(
    learner: Callable[[str], subprocess.Popen[str]], text: str
) -> None:
    running = learner(text)
    assert running.stdout is not None
    of_environment = psutil.Process(int(running.stdout.readline()))
    processes = {*psutil.Process(running.pid).children(recursive=True), of_environment}
    assert len(processes) >= 3, "fork server, group, and the process that the environment has started"
    running.send_signal(signal.SIGKILL)
    _, left = psutil.wait_procs(processes, timeout=60)
    assert [process for process in left if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []


def test_ctrl_c_is_for_the_program_only(learner: Callable[[str], subprocess.Popen[str]]) -> None:
    """Processes of environments are in sessions of their own, which the signal of a terminal does not reach."""
    running = learner("sleep")
    assert running.stdout is not None
    running.stdout.readline()
    processes = psutil.Process(running.pid).children(recursive=True)
    assert all(os.getsid(process.pid) != os.getsid(running.pid) for process in processes)
    running.kill()
    psutil.wait_procs(processes, timeout=60)
