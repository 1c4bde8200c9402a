"""Functions that are given as objects: they are sent to other processes by value, and have fingerprints."""

from __future__ import annotations

import asyncio
import functools
import importlib
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adagrpo_ray.config.data import FormatSettings
from adagrpo_ray.config.rewards import RewardSettings, RewardsSettings
from adagrpo_ray.errors import ConfigError
from adagrpo_ray.extensions.given import fingerprint, give, name_of
from adagrpo_ray.rewards import RewardScorer
from adagrpo_ray.rewards import functions as built_in
from adagrpo_ray.types import Prompt
from tests.support.builders import make_completion

REWARDS = "rewards.functions"

THERE = """
import pickle, sys
given = pickle.loads(sys.stdin.buffer.read())
print(given.find("rewards.functions", sys.argv[1])(completions=["a", "bbb"], answer=""))
"""


def elsewhere(functions: dict[tuple[str, str], Callable[..., Any]], name: str) -> str:
    """Return the result of a function in a process that has no module of the user."""
    there = subprocess.run(
        [sys.executable, "-c", THERE, name], input=pickle.dumps(give(functions)), capture_output=True
    )
    assert there.returncode == 0, there.stderr.decode()
    return there.stdout.decode().strip()


def test_closure_is_sent_with_its_variables() -> None:
    limit = 2

    def within(completions: list[str], **context: object) -> list[float]:
        return [float(len(text) <= limit) for text in completions]

    assert elsewhere({(REWARDS, "within"): within}, "within") == "[1.0, 0.0]"


def test_module_next_to_program_is_sent_by_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "beside.py").write_text(
        "LIMIT = 2\ndef fits(text): return len(text) <= LIMIT\n"
        "def within(completions, **context): return [float(fits(text)) for text in completions]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "beside", raising=False)
    module = importlib.import_module("beside")
    assert elsewhere({(REWARDS, "within"): module.within}, "within") == "[1.0, 0.0]"


def test_callable_object_keeps_its_state() -> None:
    class Within:
        def __init__(self, limit: int) -> None:
            self.limit = limit

        def __call__(self, completions: list[str], **context: object) -> list[float]:
            return [float(len(text) <= self.limit) for text in completions]

    assert name_of(Within(3), REWARDS) == "Within"
    assert name_of(functools.partial(Within(3), unit="m"), REWARDS) == "Within"
    assert elsewhere({(REWARDS, "Within"): Within(3)}, "Within") == "[1.0, 1.0]"


def test_given_function_scores_in_scoring_processes() -> None:
    wanted = "42"

    def fits(completions: list[str], answer: str, *, unit: str, **context: object) -> list[float | None]:
        return [None if not text else float(text == f"{wanted}{unit}") for text in completions]

    settings = RewardsSettings(
        functions=(RewardSettings(function="exact"), RewardSettings(function="fits", weight=2.0))
    )
    scorer = RewardScorer(settings, FormatSettings(), give({(REWARDS, "fits"): fits}))
    try:
        prompt = Prompt("p", "?", np.zeros(1, np.int32), "1", columns={"unit": "m"})
        completions = [make_completion(text=text) for text in ("42m", "42", "")]
        scores, correct = asyncio.run(scorer.score(prompt, completions))
    finally:
        scorer.close()
    assert scores.error is None
    assert scores.rewards.tolist() == [2.0, 0.0, 0.0]
    assert correct.tolist() == [True, False, False]


def test_error_names_function_that_cannot_be_pickled() -> None:
    lock = threading.Lock()

    def locked(completions: list[str], **context: object) -> list[float]:
        with lock:
            return [0.0 for _ in completions]

    with pytest.raises(
        ConfigError, match=r"rewards\.functions: 'locked' cannot be sent to other processes \(TypeError"
    ):
        give({(REWARDS, "locked"): locked})


def test_error_names_function_that_cannot_be_unpickled() -> None:
    class Shy:
        def __reduce__(self) -> tuple[Any, ...]:
            return int, ("shy",)

        def __call__(self) -> None: ...

    with pytest.raises(ConfigError, match=r"rewards\.functions: 'Shy' cannot be loaded in another process"):
        give({(REWARDS, "Shy"): Shy()}).find(REWARDS, "Shy")


@pytest.mark.parametrize("nameless", [lambda group: True, 7])
def test_function_without_name_is_refused(nameless: Any) -> None:
    with pytest.raises(ConfigError, match="has no name; give"):
        name_of(nameless, "algorithm.criterion.kind")


def made(source: str) -> Any:
    names: dict[str, Any] = {}
    exec(source, names)
    return names["it"]


def test_fingerprint_changes_only_with_code() -> None:
    same = [
        "def it(x):\n    return x in {'a', 'b', 'c'}",
        "# moved\n\n\ndef it(x):\n    # and told\n    return x in {'a', 'b', 'c'}",
    ]
    others = [
        "def it(x):\n    return x in {'a', 'b', 'd'}",
        "def it(x):\n    return x not in {'a', 'b', 'c'}",
        "def it(x):\n    return [y for y in x if y in {'a', 'b', 'c'}]",
        "def it(x):\n    return [y for y in x if y in {'a', 'b', 'e'}]",
        "class it:\n    def __call__(self, x):\n        return x in {'a', 'b', 'c'}",
        "class it:\n    def __call__(self, x):\n        return x in {'a', 'b', 'f'}",
    ]
    prints = [fingerprint(made(source)) for source in [*same, *others]]
    assert prints[0] == prints[1]
    assert len(set(prints)) == len(prints) - 1
    assert fingerprint(made(others[-1])()) == prints[-1]  # an object, by its class


def test_fingerprint_is_the_same_in_every_process() -> None:
    code = (
        "from adagrpo_ray.extensions.given import fingerprint\n"
        "def it(x): return x in {'a', 'b', 'c', 'd', 'e'}\n"
        "print(fingerprint(it))"
    )
    # The order of a set of texts differs by process.
    fingerprints = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(fingerprints) == 1
    assert len(fingerprints.pop().strip()) == 16


def test_functions_of_this_library_are_sent_by_name() -> None:
    """Not by value, as those of a user's module: the other process would get a copy of its own."""
    sent = give({(REWARDS, "answer"): built_in.answer}).functions[REWARDS, "answer"]
    assert pickle.loads(sent) is built_in.answer
