"""A judge and a reward model behind vLLM's own server, on CPU cores: SmolLM2 as the judge, a random reward model."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest
import torch

from adagrpo_ray.config.data import FormatSettings
from adagrpo_ray.config.rewards import RewardsSettings
from adagrpo_ray.config.served_rewards import JudgeSettings, RewardModelSettings
from adagrpo_ray.rewards import RewardScorer
from adagrpo_ray.rewards.consumption import Consumption
from adagrpo_ray.rewards.served_check import check_served_rewards
from adagrpo_ray.types import Prompt
from tests.support.builders import make_completion
from tests.support.held import started, until
from tests.support.real_model import REAL
from tests.support.reserved import reserved_ports
from tests.support.served_models import entry, judge, reward_model

pytestmark = REAL

PROMPT = Prompt("p", "What is the capital of France?", np.zeros(3, np.int32), "Paris")
TEXTS = ("Paris is the capital of France.", "I like cheese.", "Lyon.", "Paris is the capital of France.")
TEMPLATE = "Question: {prompt}\nAnswer: {completion}\nCorrect answer: {answer}\nRate the answer from 0 to 10."
CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


def answers(url: str) -> bool:
    try:
        return urlopen(f"{url}/models", timeout=5).status == 200
    except (URLError, OSError):
        return False


@contextmanager
def vllm(model: Path | str, log: Path, *options: str) -> Iterator[str]:
    """`vllm serve MODEL` within the block; its address."""
    with reserved_ports(1) as (port,), log.open("w") as output:
        fixed = ("--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "512")
        served = ("--served-model-name", "served", "--enforce-eager")
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model), *fixed, *served, *options]
        environment = {**os.environ, **CPU}
        with started(command, env=environment, stdout=output, stderr=subprocess.STDOUT) as running:
            url = f"http://127.0.0.1:{port}/v1"
            try:
                until(lambda: answers(url), running)
                yield url
            finally:
                running.terminate()
                running.wait(60)


@pytest.fixture(scope="module")
def judge_url(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with vllm(model_path, tmp_path_factory.mktemp("vllm") / "log", "--max-num-seqs", "8") as url:
        yield url


def score(model: JudgeSettings | RewardModelSettings) -> tuple[list[float], Consumption]:
    """Check the model as before a run, and score TEXTS by it."""
    rewards = RewardsSettings.model_validate({"functions": [entry(model)], "on_error": "stop"})
    check_served_rewards(rewards, [PROMPT])

    async def work() -> tuple[list[float], Consumption]:
        scorer = RewardScorer(rewards, FormatSettings())
        try:
            scores, _ = await scorer.score(PROMPT, [make_completion(text=text) for text in TEXTS])
            return scores.rewards.tolist(), scorer.consumption()[model.name]
        finally:
            scorer.close()

    return asyncio.run(work())


@pytest.mark.parametrize("reply", ["json", "number"])
def test_judge_scores_completions(judge_url: str, reply: str) -> None:
    # Without a pattern a model of this size may reply without a number.
    extra = {"structured_outputs": {"regex": r"Score: [0-9]"}} if reply == "number" else {}
    settings = judge(base_url=judge_url, model="served", template=TEMPLATE, reply=reply, extra=extra)
    found, consumed = score(settings)
    assert all(0 <= number <= 1 for number in found)
    assert found[0] == found[3]
    assert (consumed.requests, consumed.cache_hits, consumed.failures) == (3, 1, 0)
    assert consumed.prompt_tokens > 3 * 30
    assert 3 <= consumed.completion_tokens <= 3 * settings.max_tokens
    assert score(settings)[0] == found, "temperature 0"


def test_reward_model_has_the_output_of_transformers(model_path: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForSequenceClassification(config).eval()
    torch.nn.init.normal_(model.score.weight)  # far enough from 0 for a comparison
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    expected = []
    for text in TEXTS:
        chat = [{"role": "user", "content": PROMPT.text}, {"role": "assistant", "content": text}]
        ids = tokenizer(tokenizer.apply_chat_template(chat, tokenize=False), add_special_tokens=False).input_ids
        with torch.no_grad():
            expected.append(model(torch.tensor([ids])).logits.item())
    with vllm(tmp_path / "model", tmp_path / "log", "--runner", "pooling") as url:
        found, consumed = score(reward_model(base_url=url, model="served"))
    assert len({round(number, 3) for number in expected}) == 3
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert (consumed.requests, consumed.cache_hits, consumed.completion_tokens) == (3, 1, 0)
