"""Reward functions that fail in different ways, in real processes, with each policy, and hostile completions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest

from adagrpo_ray.algorithm.methods import make_method
from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.config.data import FormatSettings
from adagrpo_ray.config.rewards import RewardSettings, RewardsSettings
from adagrpo_ray.data.order import PromptOrder
from adagrpo_ray.errors import RewardError
from adagrpo_ray.rewards import RewardScorer, Scores
from adagrpo_ray.rewards.registry import BUILTIN
from adagrpo_ray.sampling.collection import Collection
from adagrpo_ray.sampling.sampler import AdaptiveSampler
from adagrpo_ray.types import Completion, GenerationRequest, Prompt
from tests.support.builders import make_completion
from tests.support.user_module import importable

FORMAT = FormatSettings()
T, S, E = FORMAT.think_end, FORMAT.answer_start, FORMAT.answer_end

# One function for all tests: a column of the prompt selects its behaviour.
MODULE = """
import os, signal

class Odd(BaseException):  # an error that the other process cannot unpickle
    def __init__(self, first, second):
        super().__init__("odd")

kept = []

def score(completions, answer, do="", **context):
    if do == "raise":
        raise ValueError("no score today")
    if do == "raise oddly":
        raise Odd(1, 2)
    if do == "be short":
        return [1.0]
    if do in ("nan", "inf"):
        return [1.0, float(do)]
    if do == "text":
        return [1.0, "good"]
    if do == "loop":
        while True:
            try:
                pass
            except BaseException:
                pass
    if do == "fill memory":
        while True:
            kept.append(bytes(2**26))
    if do == "exit":
        os._exit(3)
    if do == "exit well":
        os._exit(0)
    if do == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    return [1.0 if text == "42" else 0.0 for text in completions]
"""

PATIENT_S = 120.0  # limit for calls that end or fail by themselves, also on a busy machine
FAILURES = {
    "raise": "'failing:score' raised ValueError('no score today')",
    "raise oddly": "'failing:score' raised Odd('odd')",
    "be short": "'failing:score' returned 1 scores for 2 completions",
    "nan": "'failing:score' returned the score nan",
    "inf": "'failing:score' returned the score inf",
    "text": "'failing:score' returned the score 'good'",
    "loop": "did not finish within rewards.timeout_s=1",
    "fill memory": "ran out of memory with rewards.memory_gib=1.0",
    "exit": "ended its process with exit code 3",
    "exit well": "did not finish within rewards.timeout_s=1",  # the pool does not see such an end
    "crash": "ended its process with exit code -11",
}


@pytest.fixture(scope="module", autouse=True)
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with importable("failing", MODULE, tmp_path_factory.mktemp("user")) as folder:
        yield folder


def rewards(*functions: str, **settings: object) -> RewardsSettings:
    named = [RewardSettings(function=name) for name in functions or ("failing:score",)]
    return RewardsSettings.model_validate({"functions": named, "timeout_s": PATIENT_S, "memory_gib": 1.0, **settings})


def prompt(do: str = "", id: str = "p") -> Prompt:
    return Prompt(id, "6 x 7?", np.zeros(3, np.int32), "42", columns={"do": do})


def score(scorer: RewardScorer, do: str, *texts: str) -> tuple[Scores, list[bool]]:
    completions = [make_completion(text=text) for text in texts]
    scores, correct = asyncio.run(scorer.score(prompt(do), completions))
    return scores, correct.tolist()


@pytest.fixture(scope="module")
def scorer(request: pytest.FixtureRequest) -> Iterator[RewardScorer]:
    """One process, so that each test shows that a process still scores after the earlier failures."""
    scorer = RewardScorer(rewards(error_score=-2.5, on_error="score", timeout_s=request.param), FORMAT)
    yield scorer
    scorer.close()


LATE = [do for do, expected in FAILURES.items() if "timeout_s=1" in expected]


@pytest.mark.parametrize(
    ("scorer", "do"),
    [(1.0 if do in LATE else PATIENT_S, do) for do in sorted(FAILURES, key=LATE.__contains__)],
    indirect=["scorer"],
)
def test_failing_function_fails_only_its_group(scorer: RewardScorer, do: str) -> None:
    async def both() -> list[tuple[Scores, object]]:
        group = [make_completion(text="42"), make_completion(text="43")]
        return await asyncio.gather(scorer.score(prompt(do), group), scorer.score(prompt(), group))

    (failed, wrong), (good, right) = asyncio.run(both())
    assert failed.error is not None
    assert FAILURES[do] in failed.error
    assert failed.rewards.tolist() == [-2.5, -2.5]
    assert failed.rewards.dtype == failed.by_function.dtype == np.float32
    assert np.isnan(failed.by_function).all()
    assert failed.by_function.shape == (2, 1)
    assert np.array_equal(np.asarray(wrong), [False, False])
    assert (good.error, good.rewards.tolist()) == (None, [1.0, 0.0])
    assert np.array_equal(np.asarray(right), [True, False])


def test_only_first_failure_is_reported() -> None:
    scorer = RewardScorer(rewards(), FORMAT)
    try:
        assert scorer.notices() == ()
        for do in ("raise", "be short"):
            score(scorer, do, "42", "43")
        (notice,) = scorer.notices()
        assert "no score today" in notice
        assert "rewards.on_error=drop" in notice
        score(scorer, "nan", "42", "43")
        assert scorer.notices() == ()
    finally:
        scorer.close()


def test_error_names_memory_limit_too_small_for_module() -> None:
    Path("large.py").write_text("held = [bytes(2**26) for _ in range(20)]\ndef score(**context): return []")
    scorer = RewardScorer(rewards("large:score"), FORMAT)
    try:
        scores, _ = score(scorer, "", "42")
    finally:
        scorer.close()
    assert scores.error is not None
    assert "raised MemoryError()" in scores.error
    assert "rewards.memory_gib=1.0 is too small" in scores.error


def test_memory_limit_follows_setting_and_may_be_null() -> None:
    Path("limit.py").write_text(
        "import resource\n"
        "def score(completions, **context):\n"
        "    return [resource.getrlimit(resource.RLIMIT_DATA)[0] / 2**30 for _ in completions]\n"
    )
    found = []
    for limit in (1.5, None):
        scorer = RewardScorer(rewards("limit:score", memory_gib=limit), FORMAT)
        try:
            found += score(scorer, "", "42")[0].rewards.tolist()
        finally:
            scorer.close()
    assert found[0] == 1.5
    assert found[1] != 1.5


# --- the policies, from the sampler's side


def collect(dos: Sequence[str], on_error: str) -> Collection:
    """Return a step of plain GRPO over one group of two for each of `dos`."""
    settings = AlgorithmSettings.model_validate({"name": "grpo", "prompts_per_step": len(dos), "group_size": 2})

    async def generate(request: GenerationRequest) -> tuple[Completion, ...]:
        return tuple(make_completion(text=text) for text in ("42", "43"))

    scorer = RewardScorer(rewards(on_error=on_error, error_score=-1.0), FORMAT)
    sampler = AdaptiveSampler(
        settings,
        make_method(settings, ["failing:score"]),
        PromptOrder([prompt(do, f"{number} {do}") for number, do in enumerate(dos)], seed=0, shuffle=False),
        generate,
        scorer.score,
        max_new_tokens=4,
        seed=0,
        drop_failed=on_error == "drop",
    )
    try:
        return asyncio.run(sampler.collect(1))
    finally:
        scorer.close()


def test_on_error_drop_drops_the_group() -> None:
    step = collect(["", "raise", "exit", ""], "drop")
    assert [g.prompt.id for g in step.ready] == ["0 ", "3 "]
    assert [(f.group.prompt.id, f.dropped) for f in step.failed] == [("1 raise", True), ("2 exit", True)]
    with pytest.raises(RewardError, match=r"no score today.*no group of step 1 could be scored"):
        collect(["raise", "nan"], "drop")


def test_on_error_score_gives_error_score() -> None:
    step = collect(["", "raise"], "score")
    assert [g.last.rewards.tolist() for g in step.ready] == [[1.0, 0.0], [-1.0, -1.0]]
    assert [(f.group.prompt.id, f.dropped) for f in step.failed] == [("1 raise", False)]


def test_on_error_stop_raises() -> None:
    with pytest.raises(RewardError, match=r"raised ValueError\('no score today'\).*scoring prompt '1 raise'"):
        collect(["", "raise"], "stop")


# --- completions that are meant to make the built-in functions fail

ANSWERS = {
    "a power tower": "9^9^9^9",
    "a power tower in LaTeX": "9^{9^{9^{9}}}",
    "factorials": "1000000!!!!",
    "parentheses": "(" * 50_000 + "1" + ")" * 50_000,
    "fractions without an end": r"\frac{" * 20_000,
    "boxes": r"\boxed{" * 500 + "42" + "}" * 500,
    "closing braces": "}" * 100_000,
    "signs": "-" * 100_000 + "42",
    "digits": "9" * 100_000,
    "an exponent": "1e999999999",
    "NUL": "4\x002\x00" * 100,
    "surrogates": "\ud800\udfff42\udc00",
    "matrices": r"\begin{pmatrix}" * 200,
    "dollars": "$" * 100_000,
}
# Texts that may take math-verify and sympy longer than the time limit.
ENDLESS = {
    "parentheses that are parsed": "(" * 900 + "1" + ")" * 900,
    "roots": r"\sqrt{" * 500 + "2" + "}" * 500,
    "a long sum": r"\sum_{i=1}^{10^{12}} \frac{1}{i!}",
    "a binomial": r"\binom{10^{9}}{10^{8}}",
    "an integral": r"\int_0^1 x^{x^{x}} \, dx",
}


LIMIT_S = 2.0


def built_in(timeout_s: float) -> Iterator[RewardScorer]:
    """Return a scorer with all built-in functions for any data, after a first group, which imports sympy."""
    names = sorted(set(BUILTIN) - {"reasoning_gym", "environment"})
    scorer = RewardScorer(rewards(*names, timeout_s=timeout_s, correct_by="latex"), FORMAT)
    try:
        while (result := score(scorer, "", f"{T}{S}42{E}"))[0].error is not None:
            assert "timeout_s" in result[0].error
        assert result[1] == [True]
        yield scorer
    finally:
        scorer.close()


@pytest.fixture(scope="module")
def patient() -> Iterator[RewardScorer]:
    yield from built_in(PATIENT_S)


@pytest.fixture(scope="module")
def impatient() -> Iterator[RewardScorer]:
    yield from built_in(LIMIT_S)


def written(text: str) -> tuple[str, ...]:
    """Return the completions of a group, the last one correct."""
    return text, f"{T}{S}{text}{E}", f"{S}{text}", f"{T}{S}42{E}"


def used() -> float:
    """Return the CPU seconds of the children of this process so far."""
    return sum(sum(process.cpu_times()[:2]) for process in psutil.Process().children())


@pytest.mark.parametrize("kind", ANSWERS)
def test_hostile_completion_is_scored_quickly(patient: RewardScorer, kind: str) -> None:
    before = used()
    scores, correct = score(patient, "", *written(ANSWERS[kind]))
    assert used() - before < LIMIT_S
    assert scores.error is None
    assert np.isfinite(scores.rewards).all()
    assert correct[-1]


@pytest.mark.parametrize("kind", ENDLESS)
def test_endless_completion_is_scored_or_hits_time_limit(impatient: RewardScorer, kind: str) -> None:
    scores, correct = score(impatient, "", *written(ENDLESS[kind]))
    assert np.isfinite(scores.rewards).all()
    if scores.error is None:
        assert correct[-1]
    else:
        assert f"rewards.timeout_s={LIMIT_S:g}" in scores.error
        assert correct == [False] * 4
