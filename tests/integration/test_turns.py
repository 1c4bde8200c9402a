"""Ends and texts of completions, on a real engine with models that generate scripted tokens."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adagrpo_ray.config import Config
from adagrpo_ray.rewards.registry import BUILTIN
from adagrpo_ray.rollout.streaming import Piece, StreamingEngine
from adagrpo_ray.types import Completion, GenerationRequest, SamplingParams
from tests.support.scripted import byte_tokenizer, scripted_model

pytestmark = pytest.mark.long

MARKERS = ["data.format.answer_start=<answer>", "data.format.answer_end=</answer>"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "</think>", "<answer>", "</answer>"]


async def generated(folder: Path, tokenizer: Any, *samplings: SamplingParams) -> tuple[list[Completion], list[Piece]]:
    """A completion of at most 12 tokens for each of these parameters, and the pieces of a stream for the first."""
    config = Config.load(
        "launch/configs/tiny-cpu.yaml",
        [*MARKERS, "rollout.kv_cache_gib=0.1", "evaluation.sampling={answer: {top_k: 1}}"],
    )
    prompt = tokenizer.encode("?\n", add_special_tokens=False)
    engine = await StreamingEngine.start(str(folder), 64, config)
    try:
        requests = [GenerationRequest("p", np.array(prompt, np.int32), 1, s, 12, seed=0) for s in samplings]
        completions = [(await engine.generate(request))[0] for request in requests]
        async with aclosing(engine.stream(requests[0])) as pieces:
            return completions, [piece async for piece in pieces]
    finally:
        await engine.stop()


def test_completion_ends_at_the_token_of_the_template_and_keeps_markers(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(SPECIAL, eos_token="<|endoftext|>")
    ids = tokenizer.encode("a</think><answer>4</answer><|im_end|>", add_special_tokens=False)
    folder = scripted_model(tmp_path / "model", tokenizer, ids)
    phases = SamplingParams(answer=SamplingParams(temperature=0.0))
    (plain, phased), pieces = asyncio.run(generated(folder, tokenizer, SamplingParams(), phases))
    for completion in (plain, phased):
        assert completion.token_ids.tolist() == ids
        assert (completion.finish_reason, len(completion.logprobs)) == ("stop", len(ids))
        assert completion.text == "a</think><answer>4</answer>"
    # After the marker, which is one special token, sampling is greedy, so that every token has probability 1.
    assert (phased.logprobs[:2] < 0).all()
    assert (phased.logprobs[2:] == 0).all()
    assert (plain.logprobs < 0).all()
    format = Config.load("launch/configs/tiny-cpu.yaml", MARKERS).data.format
    assert BUILTIN["format_exact"](completions=[plain.text], answer="4", format=format) == [3.0]
    assert "".join(piece.text for piece in pieces) == plain.text
    assert sum(piece.tokens for piece in pieces) == len(ids)
    assert pieces[-1].finish_reason == "stop"


@pytest.mark.parametrize(("named", "reason"), [(True, "stop"), (False, "length")])
def test_completion_ends_at_tokens_of_the_generation_configuration(tmp_path: Path, named: bool, reason: str) -> None:
    tokenizer = byte_tokenizer(["<end>", "<other>"], template="{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    first, last = tokenizer.encode("a<end>", add_special_tokens=False)
    other = tokenizer.convert_tokens_to_ids("<other>")
    ends = {"eos_token_id": [other, last]} if named else {}
    folder = scripted_model(tmp_path / "model", tokenizer, [first, last], **ends)
    (completion,), pieces = asyncio.run(generated(folder, tokenizer, SamplingParams()))
    assert completion.finish_reason == pieces[-1].finish_reason == reason
    assert completion.token_ids.tolist() == [first, *[last] * (1 if named else 11)]
    assert completion.text == "a"
