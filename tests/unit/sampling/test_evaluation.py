"""Results on sets of prompts, also if some of them cannot be generated or scored, and the evaluation of a run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from adagrpo_ray.config import Config
from adagrpo_ray.config.data import FormatSettings
from adagrpo_ray.config.run_settings import EvaluationSettings
from adagrpo_ray.data.benchmark_prompts import BenchmarkPrompts
from adagrpo_ray.data.prompts import PromptSets
from adagrpo_ray.errors import RequestLostError, RewardError
from adagrpo_ray.evaluation.problem_result import problem_result
from adagrpo_ray.rewards import Scores
from adagrpo_ray.rewards.consumption import Consumption, Meter
from adagrpo_ray.sampling import evaluation
from adagrpo_ray.sampling.evaluate import Results, evaluate, evaluation_request, generate_and_score
from adagrpo_ray.sampling.evaluation import Evaluation
from adagrpo_ray.types import Completion, GenerationRequest, Prompt
from tests.support.builders import make_completion, make_prompt


def evaluated(*, stop: bool = False, given_up: bool = False) -> Results:
    """Evaluate an easy prompt, a hard one, and a hard one that cannot be scored or, if `given_up`, generated."""

    async def generate(request: GenerationRequest) -> tuple[Completion, ...]:
        if given_up and request.prompt_id == "bad":
            raise RequestLostError("prompt bad is given up")
        return (make_completion(4),) * request.n

    async def score(prompt: Prompt, group: Sequence[Completion]) -> tuple[Scores, NDArray[np.bool_]]:
        bad = prompt.id == "bad"
        if bad and stop:
            raise RewardError("no score")
        rewards = np.full(len(group), 0.0 if bad else 1.0, np.float32)
        return Scores(rewards, rewards[:, None], "no score" if bad else None), rewards > 0

    prompts = [make_prompt("good", "easy"), make_prompt("bad", "hard"), make_prompt("fine", "hard")]
    settings = EvaluationSettings(samples=2)
    return asyncio.run(evaluate(prompts, settings, generate, score, max_new_tokens=8, seed=0))


def test_completions_that_cannot_be_scored_count_as_wrong_and_as_failed() -> None:
    results = evaluated()
    assert results.accuracy == pytest.approx(2 / 3)
    assert results.accuracy_by_difficulty == {"easy": 1.0, "hard": 0.5}
    assert (results.samples, results.failed, results.mean_length) == (6, 1, 4.0)


def test_evaluation_raises_errors_that_stop_the_run() -> None:
    with pytest.raises(RewardError, match="no score"):
        evaluated(stop=True)


def test_error_cancels_the_other_requests() -> None:
    async def generate(request: GenerationRequest) -> tuple[Completion, ...]:
        if request.prompt_id == "bad":
            raise RewardError("no score")
        await asyncio.Event().wait()
        return ()

    async def score(prompt: Prompt, group: Sequence[Completion]) -> tuple[Scores, NDArray[np.bool_]]:
        pytest.fail("there is nothing to score")

    async def work() -> set[asyncio.Task[Any]]:
        prompts, settings = [make_prompt("fine"), make_prompt("bad")], EvaluationSettings()
        with pytest.raises(RewardError, match="no score"):
            await evaluate(prompts, settings, generate, score, max_new_tokens=8, seed=0)
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert asyncio.run(work()) == set()


def test_a_prompt_that_is_given_up_counts_as_wrong_and_as_failed() -> None:
    results = evaluated(given_up=True)
    assert results.accuracy_by_difficulty == {"easy": 1.0, "hard": 0.5}
    assert (results.samples, results.failed) == (6, 1)
    assert results.mean_length == pytest.approx(8 / 3), "its completions are empty"


def test_completions_of_a_prompt_that_is_given_up_are_empty_and_wrong() -> None:
    """`launch/evaluate.py` stores them as it stores others."""

    async def generate(request: GenerationRequest) -> tuple[Completion, ...]:
        raise RequestLostError("prompt p is given up")

    async def score(prompt: Prompt, group: Sequence[Completion]) -> tuple[Scores, NDArray[np.bool_]]:
        pytest.fail("there is nothing to score")

    prompt, settings = make_prompt("p", "easy"), EvaluationSettings(samples=3)
    request = evaluation_request(prompt, settings, 8, seed=0)
    completions, scores, correct = asyncio.run(generate_and_score(prompt, request, generate, score))
    result = problem_result(FormatSettings(), "model", "settings", prompt, completions, scores, correct)
    assert result.error == "prompt p is given up"
    assert len(result.completions) == 3
    for completion in result.completions:
        assert (completion.text, completion.tokens, completion.cut_off, completion.reward) == ("", 0, False, 0.0)
        assert (completion.correct, completion.correct_format, completion.correct_anywhere) == (False,) * 3


# --- the evaluation of a run


SUMS, LETTERS = ("one", "two"), ("letter",)
"""Ids of the problems of two benchmarks."""


class Scorer:
    """A scorer without processes: the first completion of each group is correct, of "two" none."""

    def __init__(self, settings: Any, format: FormatSettings) -> None:
        self.names, self.closed = settings.names, False

    async def score(self, prompt: Prompt, group: Sequence[Completion]) -> tuple[Scores, NDArray[np.bool_]]:
        correct = np.array([place == 0 and prompt.id != "two" for place in range(len(group))])
        return Scores(correct.astype(np.float32), correct[:, None].astype(np.float32)), correct

    def notices(self) -> tuple[str, ...]:
        return ("a notice",)

    def consumption(self, purpose: str = "") -> dict[str, Consumption]:
        pytest.fail("no judge scores benchmarks")

    def close(self) -> None:
        self.closed = True


class Judged:
    """The scorer of a run, with a judge that is asked for each completion."""

    def __init__(self) -> None:
        self.meter = Meter()

    async def score(self, prompt: Prompt, group: Sequence[Completion]) -> tuple[Scores, NDArray[np.bool_]]:
        self.meter.add(requests=len(group), prompt_tokens=10)
        correct = np.full(len(group), True)
        return Scores(correct.astype(np.float32), correct[:, None].astype(np.float32)), correct

    def consumption(self, purpose: str = "") -> dict[str, Consumption]:
        return {"helpful": replace(self.meter.read(purpose), cost=0.5)}


def sets(*, held_out: bool) -> PromptSets:
    return PromptSets(
        (),
        (make_prompt("mine", "easy"),) if held_out else (),
        {},
        benchmarks=(
            BenchmarkPrompts("gsm8k", tuple(map(make_prompt, SUMS)), 4, 2),
            BenchmarkPrompts("mmlu_pro", tuple(map(make_prompt, LETTERS)), 1, 1),
        ),
    )


def run(monkeypatch: pytest.MonkeyPatch, prompts: PromptSets) -> tuple[Any, dict[str, GenerationRequest], Evaluation]:
    """The record of an evaluation after step 7, the requests by the ids of their prompts, and the evaluation."""
    monkeypatch.setattr(evaluation, "RewardScorer", Scorer)
    requests: dict[str, GenerationRequest] = {}

    async def generate(request: GenerationRequest) -> tuple[Completion, ...]:
        requests[request.prompt_id] = request
        return tuple(make_completion(2 + place) for place in range(request.n))

    async def of_held_out(request: GenerationRequest) -> tuple[Completion, ...]:
        assert request.prompt_id in {prompt.id for prompt in prompts.held_out}, "a benchmark has no episodes"
        return await generate(request)

    config = Config.load(None, ["evaluation.samples=2", "rollout.max_new_tokens=9"])
    made = Evaluation(config, prompts, of_held_out, Judged(), generate)
    return asyncio.run(made.run(7)), requests, made


def test_benchmarks_are_sampled_and_scored_by_their_own_numbers_and_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    record, requests, made = run(monkeypatch, sets(held_out=True))
    assert {name: request.n for name, request in requests.items()} == {"mine": 2, "one": 4, "two": 4, "letter": 1}
    assert {request.max_new_tokens for request in requests.values()} == {9}
    assert (record.step, record.accuracy, record.accuracy_by_difficulty) == (7, 1.0, {"easy": 1.0})
    assert (record.samples, record.failed, record.completions_mean_length) == (2, 0, 2.5)
    assert record.benchmark_accuracy == {"gsm8k": 1 / 8, "mmlu_pro": 1.0}
    assert record.benchmark_pass_at_k == {"gsm8k": 1 / 2, "mmlu_pro": 1.0}
    assert record.benchmark_samples == {"gsm8k": 8, "mmlu_pro": 1}
    assert record.benchmark_failed == {"gsm8k": 0, "mmlu_pro": 0}
    assert record.benchmark_completions_mean_length == {"gsm8k": 3.5, "mmlu_pro": 2.0}
    assert record.benchmark_completions_clipped_ratio == {"gsm8k": 0.0, "mmlu_pro": 0.0}
    scorer: Any = made._scorer
    assert scorer.names == ["adagrpo_ray.rewards.benchmark_answers:correct"]
    assert made.notices() == ("a notice",)
    made.close()
    assert scorer.closed


def test_record_has_the_judges_of_the_evaluation_alone() -> None:
    """A step that is sampled at the same time has its own counts."""
    scorer = Judged()

    async def complete(request: GenerationRequest) -> tuple[Completion, ...]:
        await asyncio.sleep(0)
        return tuple(make_completion() for _ in range(request.n))

    async def work() -> tuple[Any, Any]:
        config = Config.load(None, ["evaluation.samples=2"])
        prompts = PromptSets((), (make_prompt("mine"), make_prompt("too")), {})
        made = Evaluation(config, prompts, complete, scorer, complete)
        step = asyncio.create_task(scorer.score(make_prompt("trained"), [make_completion()] * 5))
        record = await made.run(7)
        await step
        return record, scorer.consumption()

    record, of_steps = asyncio.run(work())
    assert record.judge_requests == {"helpful": 4}
    assert record.judge_prompt_tokens == {"helpful": 20}
    assert record.judge_cost == {"helpful": 0.5}
    assert (of_steps["helpful"].requests, of_steps["helpful"].prompt_tokens) == (5, 10)


def test_without_held_out_prompts_there_is_no_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    record, _, _ = run(monkeypatch, sets(held_out=False))
    assert (record.accuracy, record.completions_mean_length) == (None, None)
    assert (record.samples, record.failed, record.accuracy_by_difficulty) == (0, 0, {})
    assert record.benchmark_accuracy["gsm8k"] == 1 / 8


def test_without_benchmarks_there_are_no_further_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    record, _, made = run(monkeypatch, PromptSets((), (make_prompt("mine"),), {}))
    assert record.accuracy == 1.0
    assert record.benchmark_accuracy == {}
    assert made._scorer is None
    assert made.notices() == ()
    made.close()


# --- results of launch/evaluate.py


@pytest.mark.parametrize(
    ("kind", "text", "extracted", "in_form", "anywhere"),
    [
        ("number", r"It is \boxed{42}.", "42", True, True),
        ("number", "It is 42.", None, False, True),
        ("number", r"Not 42 but \boxed{7}.", "7", True, True),
        ("letter", "Answer: B", "B", True, False),
        ("letter", "42", None, False, False),
        (None, "</think>SOLUTION_START_FLAG7SOLUTION_END_FLAG", "7", True, False),
        (None, "SOLUTION_START_FLAG7SOLUTION_END_FLAG", "7", False, False),
    ],
)
def test_result_has_the_extracted_answer(
    kind: str | None, text: str, extracted: str | None, in_form: bool, anywhere: bool
) -> None:
    columns = {} if kind is None else {"answers": kind}
    prompt = Prompt("p", "?", np.arange(3, dtype=np.int32), answer="42", columns=columns)
    zeros = np.zeros(1, np.float32)
    scores = Scores(zeros, zeros[:, None])
    result = problem_result(FormatSettings(), "m", "s", prompt, [make_completion(text=text)], scores, zeros > 0)
    (completion,) = result.completions
    assert result.judges == {}
    assert (completion.extracted, completion.correct_format) == (extracted, in_form)
    assert (completion.correct, completion.correct_anywhere) == (False, anywhere)
