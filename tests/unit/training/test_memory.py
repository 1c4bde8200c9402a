"""The memory estimate, against numbers worked out by hand for Qwen3-1.7B."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import NoReturn

import pytest
import transformers

from adagrpo_ray.cluster.placement import Hardware, place
from adagrpo_ray.config import Config
from adagrpo_ray.errors import ModelError
from adagrpo_ray.training.memory import (
    Shape,
    decide_sleep,
    describe,
    device_memory,
    estimate,
    read_shape,
    shape_of,
    takes_turns,
)
from tests.support.shapes import SHAPE

GIB = 2**30
# A layer: q and o 2048 x 2048 each, k and v 2048 x 1024 each, three times 2048 x 6144: 50,331,648. 28 of them and
# the embeddings, 151,936 x 2048 = 311,164,928:
PARAMETERS = 1_720_451_072
# A layer's inputs + outputs: q 4096, k 3072, v 3072, o 4096, gate, up and down 8192 each: 38,912. x 16 x 28:
ADAPTER = 17_432_576
# Bytes of the attention mask of two rows of 8192 tokens; each of 28 layers makes two bytes of one: 57 in all.
MASK = 2 * 8192 * 8192


def qwen3() -> transformers.Qwen3Config:
    return transformers.Qwen3Config(
        hidden_size=2048,
        num_hidden_layers=28,
        intermediate_size=6144,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
        tie_word_embeddings=True,
    )


def config(*overrides: str) -> Config:
    return Config.load(None, ["rollout.max_new_tokens=8192", "learner.packing=padded", *overrides])


def described(gpus: int, memory: float | None, *overrides: str) -> list[str]:
    settings = config(*overrides)
    placement = place(settings.rollout, settings.learner, Hardware(8, gpus), ours=True)
    return describe(SHAPE, settings, placement, None if memory is None else int(memory * GIB))


def test_shape_and_parameters_of_a_config() -> None:
    shape = shape_of(qwen3())
    assert shape == SHAPE
    assert shape.parameters == PARAMETERS


def test_untied_embeddings_count_twice() -> None:
    untied = qwen3()
    untied.tie_word_embeddings = False
    assert shape_of(untied).parameters == PARAMETERS + 311_164_928


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("GPT2Config", "the config of gpt2 has no intermediate_size"),
        ("Qwen3MoeConfig", "the shape of a mixture of experts (qwen3_moe) is not known"),
    ],
)
def test_unknown_shapes_are_refused(model: str, message: str) -> None:
    with pytest.raises(ModelError) as refused:
        shape_of(getattr(transformers, model)())
    assert str(refused.value) == message


def test_parameters_of_the_adapter() -> None:
    assert SHAPE.adapter_parameters(16, tuple(SHAPE.linear)) == ADAPTER
    assert SHAPE.adapter_parameters(1, ("q_proj", "v_proj")) == 28 * (4096 + 3072)
    with pytest.raises(ModelError, match=r"model\.lora\.targets 'c_attn'"):
        SHAPE.adapter_parameters(16, ("c_attn",))


@pytest.mark.parametrize(
    ("tensor_parallel", "expected"),
    [
        (1, 114_688),  # 2 x 28 layers x 8 heads x 128 x 2 bytes
        (4, 28_672),
        (16, 14_336),  # eight heads on sixteen GPUs: one on each
    ],
)
def test_kv_bytes_of_a_token(tensor_parallel: int, expected: int) -> None:
    assert SHAPE.kv_token(2, tensor_parallel) == expected


@pytest.mark.parametrize(
    ("dtype", "stage", "weights", "optimizer"),
    [
        # bfloat16: 2 + 2 + 4 bytes for weight, gradient and the sum of gradients, 4 for the float32 copy and 8 for
        # the moments; buffer 4e7. Gradients are whole at every stage.
        ("bfloat16", 0, 2 * PARAMETERS, 20 * ADAPTER),
        ("bfloat16", 1, 2 * PARAMETERS, 8 * ADAPTER + 12 * ADAPTER // 4 + 40_000_000),
        ("bfloat16", 2, 2 * PARAMETERS, 8 * ADAPTER + 12 * ADAPTER // 4 + 40_000_000),
        ("bfloat16", 3, 2 * PARAMETERS // 4 + 2 * 10**9, 6 * ADAPTER + 14 * ADAPTER // 4 + 40_000_000),
        # float32: 4 + 4 + 4 bytes, and a copy from stage 1 on only; buffer 8e7
        ("float32", 0, 4 * PARAMETERS, 20 * ADAPTER),
        ("float32", 1, 4 * PARAMETERS, 12 * ADAPTER + 12 * ADAPTER // 4 + 80_000_000),
    ],
)
def test_zero_stages_divide_the_state_over_four_ranks(dtype: str, stage: int, weights: int, optimizer: int) -> None:
    e = estimate(SHAPE, config("learner.ranks=4", f"learner.zero_stage={stage}", f"model.dtype={dtype}"))
    assert e.learner_weights == weights
    assert (e.optimizer, e.offloaded) == (optimizer, 0)


def test_an_offloaded_optimizer_is_in_host_memory() -> None:
    settings = ["learner.ranks=4", "learner.zero_stage=2", "learner.offload_optimizer=true"]
    e = estimate(SHAPE, config(*settings))
    assert e.optimizer == 8 * ADAPTER + 40_000_000
    # The float32 copy, its gradient, 8 bytes for the moments, and 2 for the buffer in which weights go back.
    assert e.offloaded == 18 * ADAPTER // 4
    assert described(5, 80, *settings)[0].endswith(" GiB, and 0.1 GiB of host memory")


def test_without_gpus_an_offloaded_optimizer_counts_with_all_else() -> None:
    settings = ["learner.zero_stage=1", "learner.offload_optimizer=true"]
    line = described(0, 100, *settings)[0]
    assert "adapter and optimizer 0.5 + " in line  # 8 + 18 bytes and the buffer: 0.45 GiB
    assert "host memory" not in line


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # A layer and token: inputs of LoRA 2 x 2048 + 2048 + 6144, attention 4 x 2048 and MLP 3 x 6144, two bytes
        # each: 77,824; norms 2 x 2048 + 3072, four bytes each: 28,672. Together 106,496.
        ([], 16384 * 28 * 106_496 + 57 * MASK),
        (["learner.gradient_checkpointing=true"], 16384 * (28 * 2048 * 2 + 106_496) + 3 * MASK),
        # A single sample may be longer; samples that share a micro-batch have at most 50 tokens.
        (["learner.micro_batch_tokens=100"], 8192 * 28 * 106_496 + 57 * 100 * 50),
        # Seven inputs of their own, 5 x 2048 + 2048 + 6144, of 2 + 1 bytes: 55,296; and 53,248 + 28,672 as before.
        (["model.lora.dropout=0.1"], 16384 * 28 * 137_216 + 57 * MASK),
        (
            ["model.lora.dropout=0.1", "model.lora.targets=[q_proj]"],
            16384 * 28 * (2048 * 3 + 53_248 + 28_672) + 57 * MASK,
        ),
        # Each token of a packed row sees all of the row through its mask, not only its own 8192.
        (["learner.packing=packed"], 16384 * 28 * 106_496 + 57 * 2 * MASK),
        # With shared prompts, attention keeps nine more of 2048 numbers a token.
        (["learner.packing=null"], 16384 * 28 * (106_496 + 36_864) + 57 * MASK),
        (["learner.packing=shared"], 16384 * 28 * (106_496 + 36_864) + 57 * MASK),
    ],
)
def test_activations_match_numbers_by_hand(settings: list[str], expected: int) -> None:
    assert estimate(SHAPE, config(*settings)).activations == expected


def test_flash_attention_needs_no_mask_of_a_packed_row() -> None:
    plain = 16384 * 28 * 106_496
    assert estimate(SHAPE, config("learner.packing=null"), flash=True).activations == plain
    assert estimate(SHAPE, config("learner.packing=packed"), flash=True).activations == plain
    assert estimate(SHAPE, config("learner.packing=padded"), flash=True).activations == plain + 57 * MASK


def test_logits_are_those_of_a_chunk() -> None:
    assert estimate(SHAPE, config()).logits == 441 * 151_936 * 4 * 4  # 2**26 / 151,936 is 441.7
    short = estimate(SHAPE, config("learner.micro_batch_tokens=100", "rollout.max_new_tokens=90"))
    assert short.logits == 100 * 151_936 * 4 * 4


def test_kv_cache_by_size_and_by_share() -> None:
    assert estimate(SHAPE, config("rollout.kv_cache_gib=2")).kv_cache == 2 * GIB
    assert estimate(SHAPE, config()).kv_cache is None
    half = estimate(SHAPE, config("rollout.gpu_memory_utilization=0.5", "rollout.tensor_parallel_size=2"), 16 * GIB)
    assert half.rollout_weights == PARAMETERS  # two bytes a number, on two GPUs
    assert half.kv_cache == 8 * GIB - PARAMETERS - GIB
    assert estimate(SHAPE, config(), 4 * GIB).kv_cache == 0


def test_lines_for_a_shared_gpu() -> None:
    assert described(1, 24, "learner.gradient_checkpointing=true") == [
        "a learner rank: weights 3.2 + adapter and optimizer 0.3 + activations 3.8 + logits 1.0 + process 1.0 "
        "= 9.3 GiB",
        "a GPU of a rollout actor: weights 3.2 + process 1.0 + KV cache 6.6 = 10.8 GiB",
        "KV cache: 114688 bytes a token, room for 61748 tokens, or 7 sequences of 8192 at a time",
        "both, on one GPU of this machine: 20.1 GiB fits in 24.0 GiB",
    ]


def test_lines_without_a_known_memory() -> None:
    lines = described(2, None)
    assert len(lines) == 3
    assert lines[1:] == [
        "a GPU of a rollout actor: weights 3.2 + process 1.0 = 4.2 GiB",
        "KV cache: 114688 bytes a token, in the rest of rollout.gpu_memory_utilization=0.45 of a GPU",
    ]


def test_all_actors_share_a_machine_without_gpus() -> None:
    lines = described(
        0, 100, "learner.ranks=2", "rollout.actors=3", "rollout.kv_cache_gib=2", "learner.gradient_checkpointing=true"
    )
    assert lines[1].startswith("a rollout actor: ")
    assert lines[3:] == ["all actors, on this machine: 37.2 GiB fits in 100.0 GiB"]  # 2 x 9.28 + 3 x 6.20


@pytest.mark.parametrize(
    ("gpus", "memory", "settings", "line"),
    [
        (
            1,
            16,
            ["learner.gradient_checkpointing=true", "rollout.sleep=false"],
            "both, on one GPU of this machine: 16.5 GiB does not fit in 16.0 GiB: lower learner.micro_batch_tokens",
        ),
        (
            1,
            8,
            ["learner.gradient_checkpointing=true", "rollout.sleep=false"],
            "both, on one GPU of this machine: 13.5 GiB does not fit in 8.0 GiB: take a smaller model.path",
        ),
        (
            2,
            48,
            [],
            "a learner rank's GPU: 58.2 GiB does not fit in 48.0 GiB: "
            "lower learner.micro_batch_tokens or set learner.gradient_checkpointing=true",
        ),
        (
            2,
            7,
            ["learner.gradient_checkpointing=true", "learner.micro_batch_tokens=4096"],
            "a learner rank's GPU: 7.2 GiB does not fit in 7.0 GiB: lower rollout.max_new_tokens",
        ),
        (
            2,
            80,
            ["rollout.kv_cache_gib=100"],
            "a rollout actor's GPU: 104.2 GiB does not fit in 80.0 GiB: lower rollout.kv_cache_gib",
        ),
        (
            1,
            24,
            ["learner.gradient_checkpointing=true", "rollout.gpu_memory_utilization=0.9", "rollout.sleep=false"],
            "both, on one GPU of this machine: 30.9 GiB does not fit in 24.0 GiB: lower rollout.gpu_memory_utilization",
        ),
        (
            2,
            80,
            ["rollout.gpu_memory_utilization=0.05"],
            "a rollout actor's GPU: no sequence fits in the KV cache: "
            "lower rollout.max_new_tokens or raise rollout.gpu_memory_utilization",
        ),
    ],
)
def test_a_run_that_does_not_fit_gets_a_remedy(gpus: int, memory: float, settings: list[str], line: str) -> None:
    assert line in described(gpus, memory, *settings)


def turns(gpus: int, memory: float, *overrides: str) -> bool:
    settings = config("learner.gradient_checkpointing=true", *overrides)
    placement = place(settings.rollout, settings.learner, Hardware(8, gpus), ours=True)
    return takes_turns(settings, placement, SHAPE, int(memory * GIB))


def test_vllm_sleeps_if_both_do_not_fit_on_one_gpu() -> None:
    assert turns(1, 16)  # 16.5 GiB together
    assert not turns(1, 24)
    assert not turns(2, 16)


def test_the_setting_decides_whether_vllm_sleeps() -> None:
    assert turns(1, 24, "rollout.sleep=true")
    assert not turns(1, 16, "rollout.sleep=false")


def test_vllm_never_sleeps_if_rollouts_run_ahead() -> None:
    assert not turns(1, 16, "algorithm.max_staleness=1")


def test_with_sleep_each_must_fit_alone() -> None:
    # While vLLM generates, the learner keeps its weights, optimizer and process: 4.5 GiB, and 7.2 of vLLM. While it
    # trains, vLLM keeps only a process: 1.0 GiB, and 9.3 of the learner.
    assert described(1, 16, "learner.gradient_checkpointing=true")[3:] == [
        "both, on one GPU of this machine, while vLLM generates: 11.7 GiB fits in 16.0 GiB",
        "the same while the learner trains and vLLM sleeps: 10.3 GiB fits in 16.0 GiB",
    ]


def test_without_a_gpu_nothing_sleeps() -> None:
    settings = config()
    assert decide_sleep(settings, place(settings.rollout, settings.learner, Hardware(8, 0), ours=True)) is False


@pytest.mark.parametrize(("memory", "sleeps"), [(16, True), (24, False)])
def test_the_local_gpu_decides_an_open_sleep_setting(
    monkeypatch: pytest.MonkeyPatch, memory: int, sleeps: bool
) -> None:
    monkeypatch.setattr("adagrpo_ray.training.memory.read_shape", lambda config: SHAPE)
    monkeypatch.setattr("adagrpo_ray.training.memory.gpu_memory", lambda: memory * GIB)
    settings = config("learner.gradient_checkpointing=true")
    placement = place(settings.rollout, settings.learner, Hardware(8, 1), ours=True)
    assert decide_sleep(settings, placement) is sleeps
    assert decide_sleep(settings, None) is False  # on a cluster, whose GPUs are on other machines
    for sleep in (True, False):
        given = config("learner.gradient_checkpointing=true", f"rollout.sleep={str(sleep).lower()}")
        assert decide_sleep(given, placement) is decide_sleep(given, None) is sleep


def test_vllm_does_not_sleep_if_the_model_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(config: Config) -> Shape:
        raise ModelError("not here")

    monkeypatch.setattr("adagrpo_ray.training.memory.read_shape", unknown)
    settings = config()
    assert decide_sleep(settings, place(settings.rollout, settings.learner, Hardware(8, 1), ours=True)) is False


def test_actors_with_their_own_gpus_get_a_line_each() -> None:
    assert described(2, 80)[3:] == [
        "a learner rank's GPU: 58.2 GiB fits in 80.0 GiB",
        "a rollout actor's GPU: 36.0 GiB fits in 80.0 GiB",
    ]


def test_memory_of_this_machine() -> None:
    assert device_memory(Hardware(2, 0)) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_the_shape_comes_from_a_folder(tmp_path: Path) -> None:
    qwen3().save_pretrained(tmp_path)
    assert read_shape(config(f"model.path={tmp_path}")) == SHAPE


@pytest.mark.parametrize("content", [None, "{"])
def test_a_folder_without_a_readable_config_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError) as refused:
        read_shape(config(f"model.path={tmp_path}"))
    assert str(refused.value) == f"{tmp_path} has no config.json that can be read"


def test_a_hub_name_is_looked_up_in_the_cache_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(ModelError) as refused:
        read_shape(config("model.path=no/such-model"))
    assert str(refused.value) == "no/such-model is not on this machine yet"


def test_the_tiny_model_is_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ModelError) as refused:
        read_shape(config("model.path=tiny"))
    assert str(refused.value) == "the tiny model is built on first use"
    assert not list(tmp_path.iterdir())
