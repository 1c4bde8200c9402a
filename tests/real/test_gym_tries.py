"""Tasks of reasoning-gym as episodes of several tries, on the package itself."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("reasoning_gym", reason="needs the extra real")

from adagrpo_ray.config import Config
from adagrpo_ray.data.prompts import load_prompts
from adagrpo_ray.environments.episode_session import Session
from adagrpo_ray.environments.episodes import row_of
from adagrpo_ray.environments.fork_server import EpisodeSetup, load
from adagrpo_ray.environments.gym_tries import WRONG
from adagrpo_ray.extensions.given import NOTHING
from adagrpo_ray.toy.tokenizer import build_tokenizer

CONFIG = Config.model_validate(
    {
        "data": {"source": "reasoning_gym", "train_prompts": 4, "eval_prompts": 2},
        "reasoning_gym": {"tasks": [{"name": "chain_sum"}]},
        "environment": {
            "name": "adagrpo_ray.environments.gym_tries:GymTries",
            "arguments": {"price": 0.25},
            "max_turns": 3,
        },
        "rewards": {"functions": [{"function": "environment"}]},
        "algorithm": {"prompts_per_step": 2},
    }
)


def test_verifier_of_the_task_judges_each_try() -> None:
    prompt, *_ = load_prompts(CONFIG, build_tokenizer(CONFIG.data.format)).train
    parts, schemas = load(EpisodeSetup(CONFIG.environment, NOTHING, None, ""))
    answer = f"<answer>{prompt.answer}</answer>"

    async def tries(*texts: str) -> list[Any]:
        session = Session(parts, threads)
        opened = await session.begin(row_of(prompt), seed=0)
        results = [await session.step(text, text) for text in texts]
        return [opened, *((result.messages, result.reward, result.done) for result in results)]

    again = (({"role": "user", "content": WRONG},), 0.0, False)
    with ThreadPoolExecutor(1) as threads:
        assert schemas == []
        assert asyncio.run(tries(answer)) == [None, ((), 1.0, True)]
        assert asyncio.run(tries("no idea", "<answer>x</answer>", answer)) == [None, again, again, ((), 0.5, True)]
