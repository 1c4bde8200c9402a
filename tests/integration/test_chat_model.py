"""The engine of the chat on the tiny model: base and adapter answer at the same time, independently."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adagrpo_ray.config import Config
from adagrpo_ray.lora.peft_model import load_policy
from adagrpo_ray.types import SamplingParams
from adagrpo_ray.viewer.chat_model import ChatModel
from adagrpo_ray.viewer.conversation import Message, Side, render
from adagrpo_ray.viewer.offers import Base

pytestmark = pytest.mark.slow


@pytest.fixture
def adapters(tiny_model: Path, tmp_path: Path) -> list[Path]:
    """Three adapters with random weights."""
    policy = load_policy(str(tiny_model), Config.load("launch/configs/tiny-cpu.yaml"))
    folders = [tmp_path / f"noise-{seed}" for seed in range(3)]
    for seed, folder in enumerate(folders):
        policy.save_pretrained(folder)
        noise = torch.Generator().manual_seed(seed)
        tensors = load_file(folder / "adapter_model.safetensors")
        drawn = {name: 0.3 * torch.randn(t.shape, generator=noise) for name, t in tensors.items()}
        save_file(drawn, folder / "adapter_model.safetensors")
    return folders


async def answer(model: ChatModel, side: Side) -> str:
    prompt = render(model.tokenizer, (Message(role="user", text="12+34"),), "", True, "</think>")
    async with aclosing(model.stream(side, prompt, SamplingParams(temperature=0.0), 40)) as pieces:
        return "".join([piece.text async for piece in pieces])


def test_base_answers_are_independent_of_the_adapter(adapters: list[Path]) -> None:
    base = Base("tiny", Config.load("launch/configs/tiny-cpu.yaml"))

    async def talk() -> tuple[str, list[tuple[str, str]]]:
        model = ChatModel()
        try:
            await model.serve(base, 16)
            alone, pairs = await answer(model, "base"), []
            for path in (*adapters, adapters[0]):
                await model.use(path, base)
                pairs.append(tuple(await asyncio.gather(answer(model, "base"), answer(model, "adapter"))))
            return alone, pairs
        finally:
            await model.stop()

    alone, pairs = asyncio.run(talk())
    assert [of_base for of_base, _ in pairs] == [alone] * 4
    others = [of_adapter for _, of_adapter in pairs]
    assert len({alone, *others}) == 4
    assert others[0] == others[3]
