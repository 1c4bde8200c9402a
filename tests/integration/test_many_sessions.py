"""Thousands of episodes at once, in real processes and with a policy that answers at once, which a step abandons."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from adagrpo_ray.config import Config
from adagrpo_ray.environments.episodes import Episodes
from adagrpo_ray.types import Completion, GenerationRequest, Prompt, SamplingParams
from tests.support.held import until
from tests.support.scripted import tokenizer_of

pytestmark = pytest.mark.long

TOKENIZER = tokenizer_of()
TURN = np.array(TOKENIZER.encode("a<|im_end|>", add_special_tokens=False), np.int32)
OPENING = TOKENIZER.apply_chat_template(
    [{"role": "user", "content": "begin"}], tokenize=False, add_generation_prompt=True
)
TOKENS = np.array(TOKENIZER.encode(OPENING, add_special_tokens=False), np.int32)
ANSWERED = 2
"""Turns that an environment answers before it waits."""

# The third turn waits: in a coroutine, or in a thread that nothing can end. Some processes have started another one.
MODULE = f"""
import asyncio, subprocess, time


class Waiting:
    def reset(self, row, seed):
        self.kind, self.turns = row["kind"], 0
        if self.kind == "starts":
            subprocess.Popen(["sleep", "600"])

    async def step(self, message):
        self.turns += 1
        if self.turns > {ANSWERED} and self.kind != "ends":
            await (asyncio.to_thread(time.sleep, 600) if self.kind == "sleeps" else asyncio.Event().wait())
        return "next", 0.5, self.turns > {ANSWERED}, {{}}
"""
KINDS = ("waits", "sleeps", "waits", "starts")


class Policy:
    """Answers each request at once, and counts those of turns after the first one."""

    def __init__(self) -> None:
        self.later: Counter[str] = Counter()

    async def generate(self, request: GenerationRequest) -> tuple[Completion, ...]:
        await asyncio.sleep(0)
        self.later[request.prompt_id] += request.n == 1
        return (Completion(TURN, np.full(len(TURN), -0.5, np.float32), "a", "stop", 0),) * request.n


def prompts(kinds: Sequence[str], label: str) -> list[Prompt]:
    return [Prompt(f"{label}-{i}", "begin", TOKENS, "", columns={"kind": kind}) for i, kind in enumerate(kinds)]


def requests(of: Sequence[Prompt], size: int) -> list[GenerationRequest]:
    return [GenerationRequest(p.id, p.token_ids, size, SamplingParams(), 64, seed=i) for i, p in enumerate(of)]


def descendants() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def proportional_memory(processes: set[psutil.Process]) -> int:
    """Bytes of the processes, with a part of each page that several share."""
    return sum(process.memory_full_info().pss for process in processes)


@pytest.mark.parametrize(("groups", "size", "processes"), [(64, 16, 64), (256, 8, 256)])
def test_thousands_of_sessions_are_aborted_and_leave_no_process(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Any,
    groups: int,
    size: int,
    processes: int,
) -> None:
    """All of them are in a call that would take minutes. The next step then has all its processes."""
    (tmp_path / "waiting_xyz.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    settings = ["environment.name=waiting_xyz:Waiting", f"environment.processes={processes}"]
    config = Config.load(None, [*settings, "rollout.max_new_tokens=64"])
    held, next_step = prompts([KINDS[i % 4] for i in range(groups)], "held"), prompts(["ends"] * groups, "next")
    policy, me, before, figures = Policy(), psutil.Process(), descendants(), dict[str, float]()
    scorer: Any = SimpleNamespace(close=lambda: None)  # nothing is scored
    episodes = Episodes(config, [*held, *next_step], TOKENIZER, "", policy.generate, scorer)
    files, memory = me.num_fds(), me.memory_info().rss

    async def work() -> list[tuple[Completion, ...]]:
        began = time.monotonic()
        tasks = [asyncio.create_task(episodes.generate(request)) for request in requests(held, size)]
        while policy.later.total() < groups * size * ANSWERED:
            assert not any(task.done() for task in tasks)
            await asyncio.sleep(0.01)
        figures["seconds until all are in a call"] = time.monotonic() - began
        forked = descendants() - before
        assert len(forked) >= groups, "a process for each group at the same time"
        figures["MiB of a process"] = proportional_memory(forked) / len(forked) / 2**20
        figures["MiB of the learner"] = (me.memory_info().rss - memory) / 2**20
        began = time.monotonic()
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        figures["seconds to abandon"] = time.monotonic() - began
        assert all(isinstance(each, asyncio.CancelledError) for each in ended)
        following = await asyncio.gather(*map(episodes.generate, requests(next_step, size)))
        figures["seconds until the next step is done"] = time.monotonic() - began
        await episodes._host.ended()
        return following

    try:
        following = asyncio.run(work())
    finally:
        episodes.close()
    until(lambda: not descendants() - before)
    record_property("figures", figures)
    print({name: round(figure, 2) for name, figure in figures.items()})
    assert len(following) == groups
    assert all(e.finish_reason == "stop" and len(e.turns) == ANSWERED + 1 for group in following for e in group)
    assert me.num_fds() <= files + 2, "each connection is closed"
    assert figures["seconds to abandon"] < 30, "nothing waits for the environments"
    assert figures["MiB of a process"] < 64, "the loaded modules are shared"
    assert figures["MiB of the learner"] < 256
