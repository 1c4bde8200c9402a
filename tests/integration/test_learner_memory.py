"""The memory of a learner: a model is divided while it loads, buffers have the adapter's size, an engine is freed."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from adagrpo_ray.config import Config
from adagrpo_ray.learner.deepspeed_setup import deepspeed_config, join_ranks
from adagrpo_ray.learner.packing import pack_batches
from adagrpo_ray.lora.peft_model import load_policy
from tests.support.batches import make_samples
from tests.support.engine_states import made, one_rank


def configure(*overrides: str) -> Config:
    return Config.load(
        "launch/configs/tiny-cpu.yaml",
        ["algorithm.num_iterations=1", "algorithm.num_mini_batches=1", "run.steps=2", *overrides],
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_divided_model_has_the_weights_and_buffers_of_a_whole_one(model_path: str, dtype: str) -> None:
    import deepspeed

    config = configure("learner.zero_stage=3", f"model.dtype={dtype}")
    join_ranks(0, 1, ("127.0.0.1", 0))
    whole, divided = load_policy(model_path, config), load_policy(model_path, config, deepspeed_config(config))
    base = {name: p for name, p in divided.named_parameters() if "lora_" not in name}
    assert len(base) > 10
    assert all(parameter.numel() == 0 and hasattr(parameter, "ds_tensor") for parameter in base.values())
    with deepspeed.zero.GatheredParameters(list(base.values())):
        for name, parameter in whole.named_parameters():
            assert torch.equal(divided.get_parameter(name), parameter), name
    buffers = dict(whole.named_buffers())
    assert any(name.endswith("inv_freq") for name in buffers)
    for name, buffer in buffers.items():
        assert divided.get_buffer(name).dtype == buffer.dtype == torch.float32, name
        assert torch.equal(divided.get_buffer(name), buffer), name


def test_a_model_loaded_later_is_whole(model_path: str) -> None:
    config = configure("learner.zero_stage=3")
    join_ranks(0, 1, ("127.0.0.1", 0))
    load_policy(model_path, config, deepspeed_config(config))
    assert all(parameter.numel() > 0 for parameter in load_policy(model_path, config).parameters())


@pytest.mark.parametrize("stage", range(4))
def test_a_closed_engine_leaves_no_weights_and_its_buffer_had_the_size_of_the_adapter(
    model_path: str, stage: int
) -> None:
    config = configure(f"learner.zero_stage={stage}", "model.dtype=bfloat16")
    engine = one_rank(model_path, config)
    made(engine.train(pack_batches(1, make_samples(), 1, 100_000, engine.packing)[0]))
    assert engine._engine.zero_reduce_bucket_size() == sum(shape.numel() for shape in engine._shapes)
    weights = [weakref.ref(parameter) for parameter in engine._policy.parameters()]
    assert len(weights) > 10
    engine.close()
    del engine
    gc.collect()
    left = [parameter for weight in weights if (parameter := weight()) is not None]
    assert stage == 3 or not left
    assert sum(tensor.untyped_storage().nbytes() for p in left for tensor in (p.data, p.ds_tensor.data)) == 0
    assert torch.nn.functional.linear is torch._C._nn.linear


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_notices_of_an_engine_have_the_reason_why_ligers_kernels_do_not_run(model_path: str) -> None:
    engine = one_rank(model_path, configure("learner.liger_kernels=true"))
    assert engine.notices == ("learner.liger_kernels=true has no effect: the learner has no GPU",)
    assert one_rank(model_path, configure()).notices == ()
