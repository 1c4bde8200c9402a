"""Judges that hang, fail or answer nonsense, behind a server on this machine: they cost their groups only."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from adagrpo_ray.algorithm.methods import make_method
from adagrpo_ray.config.algorithm import AlgorithmSettings
from adagrpo_ray.config.data import FormatSettings
from adagrpo_ray.config.rewards import RewardSettings, RewardsSettings
from adagrpo_ray.data.order import PromptOrder
from adagrpo_ray.errors import ConfigError, RewardError
from adagrpo_ray.rewards import RewardScorer
from adagrpo_ray.sampling.collection import Collection
from adagrpo_ray.sampling.sampler import AdaptiveSampler
from adagrpo_ray.types import Completion, GenerationRequest, Prompt
from tests.support.builders import make_completion
from tests.support.served_models import Body, Server, chat, entry, judge, pooled, reward_model, scored, serving

TIMEOUT_S = 3.0  # of each request, so that only a judge that hangs exceeds it
FAILURES = {
    "hang": "did not answer within timeout_s=3, 1 times",
    "fail": "answered with an error (Error code: 500",
    "nonsense": 'which has no JSON with a number as "score"',
    "too much": "gave the score 99, which is not between low=0 and high=10",
    "no chat": "which is no chat completion",
}


def reply(body: Body) -> tuple[int, Any] | None:
    """Reply to a request in the way that its prompt names."""
    text = body["messages"][0]["content"]
    if "hang" in text:
        return None
    if "fail" in text:
        return 500, {"error": {"message": "out of memory"}}
    if "nonsense" in text:
        return 200, chat("As a language model I cannot judge.")
    if "too much" in text:
        return 200, scored(99)
    if "no chat" in text:
        return 200, "<html></html>"
    if body["model"] == "reward-1":
        return 200, pooled(-0.5)
    return 200, scored(8 if "42" in body["messages"][0]["content"] else 2)


def prompt(text: str, number: int = 0) -> Prompt:
    return Prompt(f"{number} {text}", text, np.zeros(3, np.int32), "42")


def rewards(server: Server, *others: RewardSettings, **settings: Any) -> RewardsSettings:
    asked = judge(base_url=server.url, template="{prompt}: {completion}", timeout_s=TIMEOUT_S, retries=0)
    return RewardsSettings.model_validate({"functions": (*others, entry(asked, weight=0.5)), **settings})


def collect(server: Server, texts: Sequence[str], **settings: Any) -> Collection:
    """Return a step of plain GRPO over one group of two for each of the texts."""
    algorithm = AlgorithmSettings.model_validate({"name": "grpo", "prompts_per_step": len(texts), "group_size": 2})

    async def generate(request: GenerationRequest) -> tuple[Completion, ...]:
        return tuple(make_completion(text=text) for text in ("42", "7"))

    async def work() -> Collection:
        scorer = RewardScorer(rewards(server, **settings), FormatSettings())
        sampler = AdaptiveSampler(
            algorithm,
            make_method(algorithm, ["helpful"]),
            PromptOrder([prompt(text, number) for number, text in enumerate(texts)], seed=0, shuffle=False),
            generate,
            scorer.score,
            max_new_tokens=4,
            seed=0,
            drop_failed=settings.get("on_error", "drop") == "drop",
        )
        try:
            return await sampler.collect(1)
        finally:
            scorer.close()

    return asyncio.run(work())


def test_each_failure_costs_its_group_only() -> None:
    with serving(reply) as server:
        step = collect(server, ["fine", *FAILURES, "well"])
    assert [group.prompt.text for group in step.ready] == ["fine", "well"]
    for group in step.ready:
        assert group.last.rewards.tolist() == pytest.approx([0.4, 0.1])
        assert group.last.rewards_by_function.tolist() == [[pytest.approx(0.8)], [pytest.approx(0.2)]]
    failed = {failure.group.prompt.text: failure for failure in step.failed}
    assert failed.keys() == FAILURES.keys()
    for text, expected in FAILURES.items():
        assert failed[text].dropped
        assert expected in failed[text].error
        assert f"(scoring prompt '{failed[text].group.prompt.id}')" in failed[text].error


def test_on_error_score_gives_the_group_its_score() -> None:
    with serving(reply) as server:
        step = collect(server, ["nonsense", "fine"], on_error="score", error_score=-1.0)
    assert [group.last.rewards.tolist() for group in step.ready] == [[-1.0, -1.0], pytest.approx([0.4, 0.1])]
    assert not step.ready[0].last.correct.any()


def test_on_error_stop_raises() -> None:
    with serving(reply) as server, pytest.raises(RewardError, match=r"'helpful' at .* replied .*scoring prompt '0 non"):
        collect(server, ["nonsense", "fine"], on_error="stop")


def test_run_ends_if_no_group_of_a_step_is_judged() -> None:
    with serving(reply) as server, pytest.raises(RewardError, match="no group of step 1 could be scored"):
        collect(server, ["fail", "nonsense"])


def test_functions_judge_and_reward_model_score_the_same_group() -> None:
    async def work(server: Server) -> tuple[Any, Any, Any, tuple[str, ...]]:
        second = entry(reward_model(base_url=server.url), weight=2.0)
        settings = rewards(server, RewardSettings(function="exact"), second, correct_by="helpful", correct_above=0.5)
        scorer = RewardScorer(settings, FormatSettings())
        group = [make_completion(text=text) for text in ("<SOLUTION>42</SOLUTION>", "7")]
        try:
            scores, correct = await scorer.score(prompt("fine"), group)
            return scores, correct, scorer.consumption(), scorer.notices()
        finally:
            scorer.close()

    with serving(reply) as server:
        scores, correct, consumed, notices = asyncio.run(work(server))
    exact = scores.by_function[:, 0].tolist()
    np.testing.assert_allclose(scores.by_function[:, 1:], [[-0.5, 0.8], [-0.5, 0.2]], rtol=1e-6)
    np.testing.assert_allclose(scores.rewards, [exact[0] - 1 + 0.4, exact[1] - 1 + 0.1], rtol=1e-6)
    assert correct.tolist() == [True, False]
    assert {name: c.requests for name, c in consumed.items()} == {"preferred": 2, "helpful": 2}
    assert notices == ()


def test_run_with_a_judge_alone_starts_no_scoring_process() -> None:
    import multiprocessing

    async def work(server: Server) -> list[float]:
        before = set(multiprocessing.active_children())
        scorer = RewardScorer(rewards(server), FormatSettings())
        try:
            scores, _ = await scorer.score(prompt("fine"), [make_completion(text="42")])
            assert set(multiprocessing.active_children()) == before
            return scores.rewards.tolist()
        finally:
            scorer.close()

    with serving(reply) as server:
        assert asyncio.run(work(server)) == pytest.approx([0.4])


def test_missing_key_leaves_no_scoring_process(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr("adagrpo_ray.rewards.scorer.ScoringPool", lambda *_: started.append(None))
    keyless = entry(judge(api_key_env="NOT_SET_HERE"))
    with pytest.raises(ConfigError, match="NOT_SET_HERE, and this variable is not set"):
        RewardScorer(RewardsSettings(functions=(RewardSettings(function="exact"), keyless)), FormatSettings())
    assert started == []


def test_cancelled_scoring_ends_while_the_judge_hangs() -> None:
    async def work(server: Server) -> None:
        scorer = RewardScorer(rewards(server), FormatSettings())
        try:
            hanging = asyncio.create_task(scorer.score(prompt("hang"), [make_completion(text="42")]))
            while not server.bodies:
                await asyncio.sleep(0.01)
            hanging.cancel()
            with pytest.raises(asyncio.CancelledError):
                await hanging
            scores, _ = await scorer.score(prompt("fine"), [make_completion(text="42")])
            assert scores.error is None
        finally:
            scorer.close()
        with pytest.raises(RewardError, match="the scorer is closed"):
            await scorer.score(prompt("fine"), [make_completion(text="42")])

    with serving(reply) as server:
        asyncio.run(work(server))
    assert "hang" in json.dumps(server.bodies[0])
