"""The estimate of learner and rollout actor, against numbers worked out by hand for Qwen3-1.7B."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from adagrpo_ray.cluster.device_memory import DeviceMemory
from adagrpo_ray.config import Config
from adagrpo_ray.model.kernels import NO_KERNELS, Kernels
from adagrpo_ray.training.estimate import LearnerMemory, learner_memory, rollout_memory
from tests.support.shapes import SHAPE

GIB = 2**30
FLASH = Kernels(flash=True, flex=True)
PARAMETERS = 1_720_451_072
ADAPTER = 17_432_576
# Bytes of an attention mask of 16,384 tokens in a row of 8192; each of 28 layers makes two bytes of one: 57 in all.
MASK = 2 * 8192 * 8192
CHECKPOINTING = "learner.gradient_checkpointing=true"


def config(*overrides: str) -> Config:
    return Config.load(None, ["rollout.max_new_tokens=8192", "learner.packing=padded", *overrides])


def learner(*overrides: str, gpu: bool = True, kernels: Kernels = NO_KERNELS) -> LearnerMemory:
    return learner_memory(SHAPE, config(*overrides), gpu=gpu, kernels=kernels)


@pytest.mark.parametrize(
    ("dtype", "stage", "weights", "optimizer"),
    [
        # bfloat16: 2 + 2 + 4 bytes for weight, gradient and the sum of gradients, 4 for the float32 copy and 8 for
        # the moments; the buffer of stages 1 to 3 is as large as the adapter. Gradients are whole at every stage.
        ("bfloat16", 0, 2 * PARAMETERS, 20 * ADAPTER),
        ("bfloat16", 1, 2 * PARAMETERS, 8 * ADAPTER + 12 * ADAPTER // 4 + 2 * ADAPTER),
        ("bfloat16", 2, 2 * PARAMETERS, 8 * ADAPTER + 12 * ADAPTER // 4 + 2 * ADAPTER),
        ("bfloat16", 3, 2 * PARAMETERS // 4 + 2 * 10**9, 6 * ADAPTER + 14 * ADAPTER // 4 + 2 * ADAPTER),
        # float32: 4 + 4 + 4 bytes, and a copy from stage 1 on only
        ("float32", 0, 4 * PARAMETERS, 20 * ADAPTER),
        ("float32", 1, 4 * PARAMETERS, 12 * ADAPTER + 12 * ADAPTER // 4 + 4 * ADAPTER),
    ],
)
def test_zero_stages_divide_the_state_over_four_ranks(dtype: str, stage: int, weights: int, optimizer: int) -> None:
    e = learner("learner.ranks=4", f"learner.zero_stage={stage}", f"model.dtype={dtype}")
    assert e.weights == weights
    assert (e.optimizer, e.offloaded) == (optimizer, 0)


def test_an_offloaded_optimizer_is_in_host_memory() -> None:
    settings = ["learner.ranks=4", "learner.zero_stage=2", "learner.offload_optimizer=true"]
    e = learner(*settings)
    assert e.optimizer == 8 * ADAPTER + 2 * ADAPTER
    # The float32 copy, its gradient, 8 bytes for the moments, and 2 for the buffer in which weights go back.
    assert e.offloaded == 18 * ADAPTER // 4
    on_cpus = learner(*settings, gpu=False)
    assert (on_cpus.optimizer, on_cpus.offloaded) == (e.optimizer + e.offloaded, 0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # A layer and token: 98,304 bytes (test_activations.py), and 4096 more with a mask.
        ([], 16384 * 28 * 98_304),
        (["learner.micro_batch_tokens=100"], 8192 * 28 * 98_304),  # a single sample may be longer
        (["model.lora.dropout=0.1"], 16384 * 28 * 133_120),
        # At stage 3 frozen layers keep their inputs, too: 20,480 bytes of q, k and v, of gate and up, and of down.
        (["model.lora.dropout=0.1", "learner.zero_stage=3"], 16384 * 28 * (133_120 + 20_480)),
        (["learner.zero_stage=3"], 16384 * 28 * 98_304),
        (
            ["model.lora.dropout=0.1", "model.lora.targets=[q_proj]"],
            16384 * 28 * (98_304 - 20_480 + 3 * 2048),
        ),
        # Each token of a packed row sees all of the row through its mask, not only its own 8192.
        (["learner.packing=packed"], 16384 * 28 * 102_400 + 57 * 2 * MASK),
        # With shared prompts, attention keeps ten more of 2048 numbers a token.
        (["learner.packing=null"], 16384 * 28 * (102_400 + 40_960) + 57 * MASK),
        (["learner.packing=shared"], 16384 * 28 * (102_400 + 40_960) + 57 * MASK),
    ],
)
def test_activations_match_numbers_by_hand(settings: list[str], expected: int) -> None:
    e = learner(*settings)
    assert (e.kept, e.layer) == (expected, 0)


def test_checkpointing_keeps_inputs_of_layers_and_computes_one_again() -> None:
    e = learner(CHECKPOINTING)
    assert e.kept == 16384 * 28 * 2048 * 2
    assert e.layer == 16384 * 98_304
    # Two tensors of the MLP less a hidden state, and two more hidden states: the gradient, and the last output.
    assert e.transients == 16384 * (20_480 + 2 * 2 * 2048)
    assert list(e.parts) == [
        *("weights", "adapter and optimizer", "inputs of layers", "one layer", "its transients", "process")
    ]


def test_observations_of_episodes_count_in_the_longest_sample() -> None:
    small = ("learner.micro_batch_tokens=100", "environment.name=m:E", "environment.max_observation_tokens=1000")
    assert learner(*small).kept == 9192 * 28 * 98_304
    assert learner(*small, "environment.max_turns=1").kept == 8192 * 28 * 98_304
    assert learner(*small, "environment.max_turn_tokens=500").kept == 5000 * 28 * 98_304  # eight turns
    assert learner(*small, "rollout.max_model_len=9999").kept == 9999 * 28 * 98_304


def test_flash_attention_needs_no_mask_of_a_packed_row() -> None:
    plain = 16384 * 28 * 98_304
    assert learner("learner.packing=null", kernels=FLASH).kept == plain
    assert learner("learner.packing=packed", kernels=FLASH).kept == plain
    assert learner("learner.packing=padded", kernels=FLASH).kept == plain


def test_flex_attention_needs_no_mask_of_a_packed_row() -> None:
    # In float32 a layer and token keep twice as much, except for the norms, whose 28,672 bytes are float32 anyway.
    plain = 16384 * 28 * (2 * 98_304 - 28_672)
    settings = ("learner.packing=packed", "model.dtype=float32")
    assert learner(*settings, kernels=Kernels(flex=True)).kept == plain
    masked = plain + 16384 * 28 * 8192 + (1 + 28 * 4) * 2 * MASK
    assert learner(*settings).kept == masked
    assert learner(*settings, gpu=False, kernels=Kernels(flex=True)).kept == masked


def test_float32_repeats_keys_and_values_on_a_gpu_only() -> None:
    grouped = 16384 * 28 * (2 * 98_304 - 28_672)
    assert learner("model.dtype=float32", gpu=False).kept == grouped
    assert learner("model.dtype=float32").kept == grouped + 16384 * 28 * 8192  # 2 x 1024 more numbers


def test_liger_kernels_keep_less() -> None:
    settings, plain = ("learner.packing=packed", "learner.liger_kernels=true"), 16384 * 28 * 98_304
    with_liger = learner(*settings, kernels=Kernels(flash=True, liger=True))
    assert with_liger.kept == plain - 16384 * 28 * (2 * 6144 + 2 * 2 * 2048)
    assert learner("learner.packing=packed", kernels=Kernels(flash=True, liger=True)).kept == plain


def test_liger_kernels_that_do_not_run_are_not_counted() -> None:
    """The run continues with the kernels of Transformers; on CPUs there are no others."""
    settings, plain = ("learner.packing=padded", "learner.liger_kernels=true"), 16384 * 28 * 98_304
    assert learner(*settings, kernels=FLASH).kept == plain
    assert learner(*settings, gpu=False, kernels=Kernels(flash=True, liger=True)).kept == plain


def test_logits_are_those_of_a_chunk_with_hidden_states() -> None:
    # 2**26 / 151,936 is 441.7. The last norm's input has four bytes a number, its output and its gradient two each.
    assert learner().logits == 441 * 151_936 * 5 * 4 + 16384 * 2048 * 8
    short = learner("learner.micro_batch_tokens=100", "rollout.max_new_tokens=90")
    assert short.logits == 100 * 151_936 * 5 * 4 + 100 * 2048 * 8
    entropy = learner("algorithm.loss.entropy_coef=0.01")
    assert entropy.logits == 441 * 151_936 * 7 * 4 + 16384 * 2048 * 8


def test_the_worst_moment_counts() -> None:
    e = learner(CHECKPOINTING, "learner.micro_batch_tokens=1024", "rollout.max_new_tokens=1024")
    assert e.logits > e.layer + e.transients
    assert list(e.parts)[3:] == ["logits", "process"]
    assert e.peak == e.idle + e.kept + e.logits
    assert e.idle == e.weights + e.optimizer + e.process


def test_learner_of_a_small_gpu() -> None:
    """Qwen3-1.7B with the published settings, and one sample of 8,592 tokens in a micro-batch."""
    e = learner(
        *("learner.micro_batch_tokens=8592", "learner.packing=packed", "model.lora.dropout=0.1", CHECKPOINTING),
        kernels=FLASH,
    )
    in_gib = {name: round(size / GIB, 2) for name, size in asdict(e).items()}
    assert in_gib == {
        "weights": 3.2,
        "optimizer": 0.32,
        "offloaded": 0.0,
        "kept": 0.92,
        "layer": 1.07,
        "transients": 0.26,
        "logits": 1.38,  # a little more than a layer with its transients
        "process": 1.6,  # a CUDA context of 0.6, and at most 1.0 of fragmentation
    }
    assert 7.3 * GIB < e.peak < 7.8 * GIB


def test_kv_cache_by_size_and_by_share() -> None:
    assert rollout_memory(SHAPE, config("rollout.kv_cache_gib=2")).kv_cache == 2 * GIB
    assert rollout_memory(SHAPE, config()).kv_cache is None
    settings = config("rollout.gpu_memory_utilization=0.5", "rollout.tensor_parallel_size=2")
    half = rollout_memory(SHAPE, settings, DeviceMemory(free=12 * GIB, total=16 * GIB))
    assert half.weights == PARAMETERS  # two bytes a number, on two GPUs
    assert half.kv_cache == 8 * GIB - PARAMETERS - GIB  # a share of all memory, as vLLM takes it
    assert (half.peak, half.asleep) == (8 * GIB, GIB)
    assert rollout_memory(SHAPE, config(), DeviceMemory(4 * GIB, 4 * GIB)).kv_cache == 0
