"""Groups of episodes in the adaptive sampler: rungs, seeds, budget and statistics work on them as on completions."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from adagrpo_ray.algorithm.methods import make_method
from adagrpo_ray.algorithm.statistics import statistics_of
from adagrpo_ray.config import Config
from adagrpo_ray.data.order import PromptOrder
from adagrpo_ray.environments import episodes as module
from adagrpo_ray.environments.episodes import Episodes
from adagrpo_ray.extensions.given import give
from adagrpo_ray.rewards.registry import Scores
from adagrpo_ray.sampling.collection import Collection
from adagrpo_ray.sampling.sampler import AdaptiveSampler
from adagrpo_ray.types import Completion, GenerationRequest, Prompt
from tests.support.in_process import InProcess
from tests.support.loops import run
from tests.support.scripted import tokenizer_of

TOKENIZER = tokenizer_of()
HOT = 1.3
SETTINGS = (
    "environment.name=Wants",
    "rewards.functions=[{function: environment}]",
    "algorithm.prompts_per_step=2",
    "algorithm.group_size=4",
    "algorithm.resample=immediate",
    f"algorithm.triggers=[{{from_step: 1, rungs: [{{temperature: {HOT}}}]}}]",
    "rollout.max_new_tokens=16",
)


class Wants:
    """The reward of the second turn is 1 if it has the letter of the row."""

    def reset(self, row: Mapping[str, Any]) -> None:
        self.letter, self.turns = row["letter"], 0

    def step(self, message: Mapping[str, Any]) -> Any:
        self.turns += 1
        return "again", float(self.turns == 2 and message["content"] == self.letter), self.turns == 2, {}


class Policy:
    """Writes "a"; at a high temperature "b" in every second episode."""

    def __init__(self) -> None:
        self.requests: list[GenerationRequest] = []

    async def generate(self, request: GenerationRequest) -> tuple[Completion, ...]:
        self.requests.append(request)
        await asyncio.sleep(0)
        hot = request.sampling.temperature == HOT
        return tuple(self._turn("b" if hot and (request.seed + number) % 2 else "a") for number in range(request.n))

    def _turn(self, text: str) -> Completion:
        ids = np.array(TOKENIZER.encode(f"{text}<|im_end|>", add_special_tokens=False), np.int32)
        return Completion(ids, np.full(len(ids), -0.5, np.float32), text, "stop", 0)


class Inline:
    """A scorer without processes: the score is the reward of the episode."""

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> tuple[Scores, NDArray[np.bool_]]:
        rewards = np.array(prompt.columns["episode_rewards"], np.float32)
        return Scores(rewards, rewards[:, None]), rewards > 0


def prompt(letter: str) -> Prompt:
    text = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": f"Write {letter}."}], tokenize=False, add_generation_prompt=True
    )
    ids = np.array(TOKENIZER.encode(text, add_special_tokens=False), np.int32)
    return Prompt(letter, f"Write {letter}.", ids, letter, columns={"letter": letter})


def collected(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> tuple[Collection, Policy]:
    monkeypatch.setattr(module, "Host", InProcess)
    config, policy = Config.load(None, [*SETTINGS, *overrides]), Policy()
    prompts, scorer = [prompt("a"), prompt("b")], Inline()
    given: Any = give({("environment.name", "Wants"): Wants})
    episodes = Episodes(config, prompts, TOKENIZER, "", policy.generate, scorer, given)  # type: ignore[arg-type]
    sampler = AdaptiveSampler(
        config.algorithm,
        make_method(config.algorithm, config.rewards.names),
        PromptOrder(prompts, seed=0, shuffle=False),
        episodes.generate,
        episodes.score,
        max_new_tokens=16,
        seed=0,
    )
    return run(sampler.collect(1)), policy


def test_group_of_episodes_that_fails_is_sampled_again_on_its_rung(monkeypatch: pytest.MonkeyPatch) -> None:
    collection, policy = collected(monkeypatch)
    groups = {group.prompt.id: group for group in collection.ready}
    assert set(groups) == {"a", "b"}
    solved, rescued = groups["a"], groups["b"]
    assert (len(solved.attempts), len(rescued.attempts), rescued.last.rung) == (1, 2, 0)
    assert [attempt.rewards.max() for attempt in rescued.attempts] == [0.0, 1.0]
    assert statistics_of(rescued).std > 0
    turns = [request for request in policy.requests if request.n == 1]
    assert {request.sampling.temperature for request in turns} == {1.0, HOT}
    assert len({request.seed for request in policy.requests}) == len(policy.requests)
    for attempt in rescued.attempts:
        assert [len(episode.turns) for episode in attempt.completions] == [2] * 4
        assert attempt.generated_tokens == 4 * 2 * 2, "two turns of two tokens each, without observations"
    assert rescued.last.completions[0].policy_tokens < len(rescued.last.completions[0].token_ids)


def test_episodes_of_a_step_are_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def tokens() -> dict[str, list[list[int]]]:
        collection, _ = collected(monkeypatch)
        made = {g.prompt.id: [c for a in g.attempts for c in a.completions] for g in collection.ready}
        return {id: [episode.token_ids.tolist() for episode in of_group] for id, of_group in made.items()}

    assert tokens() == tokens()


def test_budget_counts_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for two groups and no third one, the failed group waits for the next step."""
    collection, _ = collected(monkeypatch, "algorithm.budget=8")
    assert [group.prompt.id for group in collection.ready] == ["a"]
    assert [group.prompt.id for group in collection.waiting] == ["b"]
