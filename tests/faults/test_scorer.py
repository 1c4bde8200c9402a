"""The scorer with real processes, and reward functions that raise, hang, end their process or are killed."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from pebble import ProcessFuture
from pebble.pool.base_pool import PoolStatus

from adagrpo_ray.config.data import FormatSettings
from adagrpo_ray.config.rewards import RewardSettings, RewardsSettings
from adagrpo_ray.errors import RewardError
from adagrpo_ray.rewards import RewardScorer
from adagrpo_ray.types import Completion, Prompt
from tests.support.held import until
from tests.support.places import ROOT
from tests.support.user_module import importable

FORMAT = FormatSettings(think_end="#", answer_start="<", answer_end=">")
TIMEOUT_S = 1.0  # of the function that hangs
PATIENT_S = 120.0  # of all others, however busy the machine is

# One function of the user for all tests: columns of the prompt select its behaviour.
MODULE = """
import ctypes, os, signal, time
from pathlib import Path

LOADED = os.getpid()

def obey(completions, answer, do=None, folder=None, friends=1, **context):
    if do == "raise":
        raise ValueError("no score today")
    if do == "exit":
        os._exit(3)
    if do == "killed":  # as often as there are friends
        if len(os.listdir(folder)) < friends:
            Path(folder, str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
    if do == "hang":  # inside C, with the interpreter lock held, deaf to all but SIGKILL
        Path(folder, str(os.getpid())).touch()
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        ctypes.PyDLL(None).sleep(600)
    if do == "meet":  # wait until as many processes as there are friends are here
        Path(folder, str(os.getpid())).touch()
        while len(os.listdir(folder)) < friends:
            time.sleep(0.01)
    if do == "pid":
        return [os.getpid(), LOADED]
    return [None if c == "skip" else float(len(c)) for c in completions]
"""


def prompt(**columns: object) -> Prompt:
    return Prompt("p-7", "6 x 7?", np.zeros(3, np.int32), "42", "easy", columns)


def completions(*texts: str) -> list[Completion]:
    return [Completion(np.zeros(1, np.int32), np.zeros(1, np.float32), text, "stop", 0) for text in texts]


def rewards(*functions: str, workers: int = 1, timeout_s: float = PATIENT_S, **other: object) -> RewardsSettings:
    named = [RewardSettings(function=name, weight=10.0**-place) for place, name in enumerate(functions)]
    limits = {"workers": workers, "timeout_s": timeout_s, "on_error": "stop"}
    return RewardsSettings.model_validate({"functions": named, **limits, **other})


def score(scorer: RewardScorer, *texts: str, **columns: object) -> list[float]:
    scores, _ = asyncio.run(scorer.score(prompt(**columns), completions(*texts)))
    return scores.rewards.tolist()


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with importable("obedient", MODULE, tmp_path_factory.mktemp("user")) as folder:
        yield folder


@pytest.fixture(scope="module")
def scorer(module: Path) -> Iterator[RewardScorer]:
    """A scorer with two workers, shared by the tests; each test leaves it usable."""
    scorer = RewardScorer(rewards("obedient:obey", workers=2), FORMAT)
    yield scorer
    scorer.close()


def test_scores_and_correctness(module: Path) -> None:
    scorer = RewardScorer(rewards("exact", "obedient:obey", correct_by="exact"), FORMAT)
    try:
        scores, correct = asyncio.run(scorer.score(prompt(), completions("t#<42>", "<41>", "skip")))
    finally:
        scorer.close()
    np.testing.assert_array_equal(scores.by_function, np.array([[1, 6], [0, 4], [0, np.nan]], np.float32))
    np.testing.assert_array_equal(scores.rewards, np.array([1.6, 0.4, 0.0], np.float32))
    assert scores.rewards.dtype == scores.by_function.dtype == np.float32
    assert correct.tolist() == [True, False, False]


def test_last_function_decides_correctness_by_default(module: Path) -> None:
    scorer = RewardScorer(rewards("exact", "obedient:obey", correct_above=4.0), FORMAT)
    try:
        _, correct = asyncio.run(scorer.score(prompt(), completions("t#<42>", "<41>", "skip")))
    finally:
        scorer.close()
    assert correct.dtype == np.bool_
    assert correct.tolist() == [True, False, False]  # lengths 6, 4 (not above), not applicable


def test_groups_are_scored_in_parallel(scorer: RewardScorer, tmp_path: Path) -> None:
    async def both() -> list[list[float]]:
        meet = prompt(do="meet", folder=str(tmp_path), friends=2)
        found = await asyncio.gather(*(scorer.score(meet, completions(text)) for text in ("a", "bb")))
        return [scores.rewards.tolist() for scores, _ in found]

    # One process alone would wait for the other until the time limit.
    assert asyncio.run(both()) == [[1.0], [2.0]]


def test_each_caller_gets_scores_of_its_group(scorer: RewardScorer) -> None:
    async def many() -> list[float]:
        found = await asyncio.gather(*(scorer.score(prompt(), completions("x" * n)) for n in range(200)))
        return [scores.rewards.item() for scores, _ in found]

    assert asyncio.run(many()) == [float(n) for n in range(200)]


def test_modules_are_loaded_once_in_each_scoring_process_only(scorer: RewardScorer) -> None:
    pid, loaded = score(scorer, "a", "b", do="pid")
    assert pid == loaded != os.getpid()
    assert "obedient" not in sys.modules


def test_empty_group_has_no_scores(scorer: RewardScorer) -> None:
    scores, correct = asyncio.run(scorer.score(prompt(), []))
    assert scores.by_function.shape == (0, 1)
    assert correct.shape == (0,)


def test_raising_function_fails_its_group(scorer: RewardScorer) -> None:
    with pytest.raises(RewardError, match=r"'obedient:obey' raised ValueError\('no score today'\).*prompt 'p-7'"):
        score(scorer, "a", do="raise")
    assert score(scorer, "abc") == [3.0]


def test_function_that_ends_its_process_fails_its_group(scorer: RewardScorer) -> None:
    for _ in range(3):  # more often than there are workers
        with pytest.raises(RewardError, match=r"obedient:obey on prompt 'p-7' ended its process with exit code 3"):
            score(scorer, "a", do="exit")
    assert score(scorer, "abc") == [3.0]


def test_hanging_function_hits_time_limit(module: Path, tmp_path: Path) -> None:
    scorer = RewardScorer(rewards("obedient:obey", timeout_s=TIMEOUT_S), FORMAT)
    expected = r"obedient:obey on prompt 'p-7' did not finish within rewards.timeout_s=1;"
    try:
        begin = time.monotonic()
        with pytest.raises(RewardError, match=expected):
            score(scorer, "a", do="hang", folder=str(tmp_path))
        assert time.monotonic() - begin >= TIMEOUT_S
        (pid,) = map(int, os.listdir(tmp_path))
        assert not running(pid), "it was terminated, then killed"
        assert score(scorer, "abc") == [3.0]
    finally:
        scorer.close()


def test_failing_group_does_not_affect_others(scorer: RewardScorer) -> None:
    async def mixed() -> list[object]:
        tasks = [scorer.score(prompt(do=do), completions("ab")) for do in ("exit", None, "raise", None, None)]
        found = await asyncio.gather(*tasks, return_exceptions=True)
        return [type(f) if isinstance(f, BaseException) else f[0].rewards.item() for f in found]

    assert asyncio.run(mixed()) == [RewardError, 2.0, RewardError, 2.0, 2.0]


def test_killed_idle_workers_are_replaced(scorer: RewardScorer) -> None:
    victim, _ = score(scorer, "a", "b", do="pid")
    os.kill(int(victim), signal.SIGKILL)
    until(lambda: all(child.pid != victim for child in multiprocessing.active_children()))
    assert score(scorer, "abc") == [3.0]


def test_group_that_a_breaking_pool_forgets_is_scored_again(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that breaks between `schedule` and the registration of the task never completes its future."""
    scorer = RewardScorer(rewards("obedient:obey", workers=1), FORMAT)
    assert scorer._pool is not None
    pool = scorer._pool._pool

    def schedule(*_: object, **__: object) -> ProcessFuture:
        pool._context.status = PoolStatus.ERROR
        return ProcessFuture()

    monkeypatch.setattr(pool, "schedule", schedule)
    try:
        assert score(scorer, "abc") == [3.0]
        assert scorer._pool._pool is not pool
    finally:
        scorer.close()


def test_ctrl_c_does_not_end_scoring_processes(module: Path) -> None:
    # A separate pool: the shared one may still replace a worker that an earlier test killed.
    scorer = RewardScorer(rewards("obedient:obey", workers=2), FORMAT)
    try:
        workers = {int(score(scorer, "a", "b", do="pid")[0]) for _ in range(20)}
        for worker in workers:
            os.kill(worker, signal.SIGINT)
        after = {int(score(scorer, "a", "b", do="pid")[0]) for _ in range(20)}
        assert workers | after <= {child.pid for child in multiprocessing.active_children()}
        assert score(scorer, "abc") == [3.0]
    finally:
        scorer.close()


def test_group_is_scored_again_after_its_process_was_killed(module: Path, tmp_path: Path) -> None:
    scorer = RewardScorer(rewards("obedient:obey", workers=2), FORMAT)
    try:
        assert score(scorer, "abc", do="killed", folder=str(tmp_path), friends=1) == [3.0]
        with pytest.raises(RewardError, match="exit code -9"):
            score(scorer, "abc", do="killed", folder=str(tmp_path), friends=3)
        assert score(scorer, "abc") == [3.0]
    finally:
        scorer.close()


def test_cancelled_caller_frees_its_process(module: Path, tmp_path: Path) -> None:
    scorer = RewardScorer(rewards("obedient:obey", workers=2), FORMAT)

    async def give_up() -> None:
        # Both workers wait for more friends than there are.
        lonely = prompt(do="meet", folder=str(tmp_path), friends=9)
        tasks = [asyncio.ensure_future(scorer.score(lonely, completions("a"))) for _ in range(2)]
        while len(os.listdir(tmp_path)) < 2:
            await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(f) for f in found] == [asyncio.CancelledError] * 2

    try:
        asyncio.run(give_up())
        assert score(scorer, "abc") == [3.0]
    finally:
        scorer.close()


def test_load_error_is_raised_for_each_group(module: Path) -> None:
    scorer = RewardScorer(rewards("exact", "obedient:obeys"), FORMAT)
    try:
        for _ in range(2):
            with pytest.raises(RewardError, match=r"has no 'obeys'.* did you mean 'obedient:obey'\?"):
                score(scorer, "a")
    finally:
        scorer.close()


def test_module_that_ends_process_on_import_is_reported(module: Path) -> None:
    (module / "deadly.py").write_text("import os; os._exit(5)")
    scorer = RewardScorer(rewards("deadly:f"), FORMAT)
    try:
        with pytest.raises(RewardError, match="deadly:f on prompt 'p-7': the scoring processes die before they score"):
            score(scorer, "a")
    finally:
        scorer.close()


def test_close_ends_processes_and_waiting_calls(module: Path, tmp_path: Path) -> None:
    scorer = RewardScorer(rewards("obedient:obey"), FORMAT)

    async def close_meanwhile() -> None:
        lonely = prompt(do="meet", folder=str(tmp_path), friends=9)
        waiting = asyncio.ensure_future(scorer.score(lonely, completions("a")))
        while not os.listdir(tmp_path):
            await asyncio.sleep(0.01)
        scorer.close()
        with pytest.raises(RewardError, match="the scorer is closed"):
            await waiting

    asyncio.run(close_meanwhile())
    (pid,) = map(int, os.listdir(tmp_path))
    assert pid not in [child.pid for child in multiprocessing.active_children()]
    with pytest.raises(RewardError, match="the scorer is closed"):
        score(scorer, "a")
    scorer.close()


# Without a main guard: scoring processes must not run it again.
SCRIPT = """
import asyncio, sys
from test_scorer import FORMAT, RewardScorer, completions, prompt, rewards

print("script", flush=True)
scorer = RewardScorer(rewards("obedient:obey"), FORMAT)
asyncio.run(scorer.score(prompt(do=sys.argv[1], folder=sys.argv[2]), completions("a")))
"""


def script(module: Path, do: str, folder: Path) -> subprocess.Popen[str]:
    """Start a process that runs SCRIPT; its scoring process writes its id to the folder."""
    (module / "script.py").write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, "script.py", do, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=module,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)])},
    )


def running(pid: int) -> bool:
    """Return whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def hangs(pid: int) -> bool:
    """Return whether the process has blocked SIGTERM, its last action before it hangs, and sleeps since then."""
    blocked = re.search(r"^SigBlk:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.M)
    assert blocked is not None
    return bool(int(blocked[1], 16) >> signal.SIGTERM - 1 & 1) and psutil.Process(pid).status() == "sleeping"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_busy_processes_die_with_killed_parent(module: Path, tmp_path: Path) -> None:
    with script(module, "hang", tmp_path) as parent:
        until(lambda: bool(os.listdir(tmp_path)))
        (pid,) = map(int, os.listdir(tmp_path))
        until(lambda: hangs(pid), parent)
        parent.kill()
    try:
        until(lambda: not running(pid))
        assert not running(pid)
    finally:
        if running(pid):
            os.kill(pid, signal.SIGKILL)


def test_script_may_end_without_close(module: Path, tmp_path: Path) -> None:
    with script(module, "meet", tmp_path) as parent:
        out, err = parent.communicate(timeout=PATIENT_S)
    assert (parent.returncode, out, err) == (0, "script\n", "")  # it ran once
    (pid,) = map(int, os.listdir(tmp_path))
    until(lambda: not running(pid))
