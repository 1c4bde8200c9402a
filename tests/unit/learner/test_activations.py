"""The estimated memory of an update, against the bytes of its tensors: the real policy on meta tensors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from adagrpo_ray.config import Config
from adagrpo_ray.learner.activations import MicroBatch, layer_bytes, shared_bytes, transient_bytes
from adagrpo_ray.learner.dropout import UpdateMode
from adagrpo_ray.learner.layout import Rows, share
from adagrpo_ray.learner.policy import Policy
from adagrpo_ray.lora.peft_model import with_adapter
from adagrpo_ray.model.kernels import Kernels
from adagrpo_ray.model.shape import Shape
from adagrpo_ray.model.shared_attention import share_prompts
from adagrpo_ray.model.wide_attention import use_wide
from adagrpo_ray.training.estimate import learner_memory
from adagrpo_ray.types import TrainSample
from tests.support.allocations import Allocations, like_cuda
from tests.support.row_sizes import sizes_of
from tests.support.shapes import SHAPE

SHAPES = {
    "0.6B": replace(SHAPE, hidden=1024, intermediate=3072),
    "1.7B": SHAPE,
    "4B": replace(SHAPE, hidden=2560, intermediate=9728, heads=32, layers=36),
}
"""The shapes of Qwen3 by their names."""
COMPLETION = 8192
TOLERANCE = 0.04
FLASH = Kernels(flash=True)
META = torch.device("meta")
CHECKPOINTING = "learner.gradient_checkpointing=true"
DROPOUT = "model.lora.dropout=0.1"


@pytest.fixture(autouse=True)
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    like_cuda(monkeypatch)


def tracked(shape: Shape, config: Config, rows: Rows) -> int:
    """The most bytes that tensors of one update have together, without those of the weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    sizes = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied,
    )
    dtype = getattr(torch, config.model.dtype)
    with META:
        base = Qwen3ForCausalLM._from_config(sizes, attn_implementation="sdpa", dtype=dtype)
        if config.learner.packing == "shared":
            assert share_prompts(base)
        elif config.model.dtype == "float32":
            assert use_wide(base)
        model = with_adapter(base, config.model).to(dtype)
        if config.learner.gradient_checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        policy = Policy(model)
        UpdateMode(policy).begin()
        parameters = list(policy.parameters())
        masks = [blocks.mask for group in rows.inputs.get("shared", ()) for blocks in group.completions]
        with Allocations([*parameters, *policy.buffers(), *masks]) as allocations:
            weights = allocations.now - sum(mask.nbytes for mask in masks)
            logprobs, _ = policy(rows)
            torch.autograd.grad(logprobs.sum(), [p for p in parameters if p.requires_grad], allow_unused=True)
        return allocations.peak - weights


def configure(*overrides: str) -> Config:
    return Config.load(None, list(overrides))


def difference(shape: Shape, config: Config, rows: Rows, worst: str) -> float:
    """The share by which the estimate differs from the bytes of the tensors; `worst` names a part of the estimate."""
    estimate = learner_memory(shape, config, kernels=FLASH, batch=sizes_of(rows))
    assert worst in estimate.parts
    return (estimate.peak - estimate.idle) / tracked(shape, config, rows) - 1


@pytest.mark.parametrize(
    ("name", "tokens", "layers", "settings", "worst"),
    [
        ("0.6B", 8592, 2, ["learner.packing=packed", DROPOUT, CHECKPOINTING], "logits"),
        ("1.7B", 16384, 2, ["learner.packing=packed", DROPOUT, CHECKPOINTING], "one layer"),
        ("1.7B", 16384, 2, ["learner.packing=packed", CHECKPOINTING], "one layer"),
        ("1.7B", 8592, 4, ["learner.packing=packed", DROPOUT], "logits"),
        ("4B", 8592, 2, ["learner.packing=packed", DROPOUT, CHECKPOINTING], "one layer"),
        ("1.7B", 8592, 4, ["learner.packing=padded", "model.dtype=float32"], "logits"),
    ],
)
def test_estimate_is_that_of_the_tensors_of_an_update(
    name: str, tokens: int, layers: int, settings: list[str], worst: str
) -> None:
    """Both phases of an update are the worst one in some case; a few layers stand for all, which are alike."""
    row = {"input_ids": torch.zeros(1, tokens, dtype=torch.long, device=META)}
    predicting = torch.arange(tokens - COMPLETION - 1, tokens - 1, device=META)
    rows = Rows(row, predicting, torch.zeros(COMPLETION, dtype=torch.long, device=META))
    shape = replace(SHAPES[name], layers=layers)
    assert difference(shape, configure(*settings), rows, worst) == pytest.approx(0, abs=TOLERANCE)


def shared_rows(prompt: int, lengths: tuple[int, ...]) -> Rows:
    """A group in a row, with its prompt once."""
    tokens, samples = np.zeros(prompt, np.int32), []
    for length in lengths:
        floats = np.zeros(length, np.float32)
        samples.append(TrainSample(tokens, np.zeros(length, np.int32), floats, floats, 0.0))
    return share(samples, META)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    ("prompt", "lengths"),
    [
        (512, (2048, 1792, 1536, 1239)),  # 6,615 tokens, for 15 full chunks of logits; 1,577 of padding
        (1024, (256,) * 24),  # two in a block: 12 copies of the prompt
    ],
)
def test_estimate_of_shared_prompts_is_that_of_the_tensors(dtype: str, prompt: int, lengths: tuple[int, ...]) -> None:
    rows, config = shared_rows(prompt, lengths), configure("learner.packing=shared", f"model.dtype={dtype}")
    assert difference(replace(SHAPE, layers=4), config, rows, "logits") == pytest.approx(0, abs=TOLERANCE)


def test_sizes_of_shared_rows_match_numbers_by_hand() -> None:
    """Blocks of one completion, each of 2048 tokens with a prompt of 512, and of two, each of 256 with one of 1024."""
    assert sizes_of(shared_rows(512, (2048, 1792, 1536, 1239))) == MicroBatch(
        tokens=512 + 6615, pairs=2048 * (512 + 2048), copied=4 * 512, padding=4 * 2048 - 6615
    )
    assert sizes_of(shared_rows(1024, (256,) * 24)) == MicroBatch(
        tokens=1024 + 24 * 256, pairs=512 * (1024 + 512), copied=12 * 1024, padding=0
    )


ALL = tuple(SHAPE.linear)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        # Inputs of LoRA 2 x 2048 + 6144, query and output 2048 each, key and value 1024 each, MLP 3 x 6144, two bytes
        # each: 69,632; norms 2 x 2048 + 2048 + 1024, four bytes each: 28,672.
        ({}, 98_304),
        ({"repeated": True}, 98_304 + 4096),  # key and value for all heads: 2 x 1024 more
        # Seven inputs of their own, 5 x 2048 + 2048 + 6144, of 2 + 1 bytes: 55,296 in place of 20,480.
        ({"dropped": ALL}, 133_120),
        ({"dropped": ALL, "divided": True}, 133_120 + 20_480),
        ({"divided": True}, 98_304),
        ({"dropped": ("q_proj",)}, 98_304 - 20_480 + 3 * 2048),
        ({"liger": True}, 98_304 - 2 * 6144 - 2 * 2 * 2048),
    ],
)
def test_bytes_of_a_layer_match_numbers_by_hand(arguments: dict[str, object], expected: int) -> None:
    assert layer_bytes(SHAPE, 2, **arguments) == expected  # type: ignore[arg-type]


def test_other_bytes_of_a_layer_match_numbers_by_hand() -> None:
    assert transient_bytes(SHAPE, 2, dropped=True) == 2 * (3 * 2048 + 6144)
    assert transient_bytes(SHAPE, 2, dropped=False) == 2 * (2 * 6144 - 2048)
    # Query and output of 10 tokens, key and value of 7, and all four of 3: 20 + 14 + 12 times 2048 numbers.
    assert shared_bytes(SHAPE, 2, MicroBatch(10, copied=7, padding=3)) == 46 * 4096
