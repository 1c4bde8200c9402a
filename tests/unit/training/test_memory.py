"""The estimated memory against that of the machine: lines, remedies, and whether vLLM sleeps."""

from __future__ import annotations

import pytest

from adagrpo_ray.cluster.device_memory import DeviceMemory
from adagrpo_ray.cluster.placement import Hardware, place
from adagrpo_ray.config import Config
from adagrpo_ray.errors import ModelError
from adagrpo_ray.model.kernels import Kernels
from adagrpo_ray.model.shape import Shape
from adagrpo_ray.training.memory import decide_sleep, describe, takes_turns
from tests.support.shapes import SHAPE

GIB = 2**30
CHECKPOINTING = "learner.gradient_checkpointing=true"
FLASH = Kernels(flash=True, flex=True)
"""The kernels for a model in bfloat16 on a GPU."""


def config(*overrides: str) -> Config:
    return Config.load(None, ["rollout.max_new_tokens=8192", "learner.packing=padded", *overrides])


def all_free(gib: float) -> DeviceMemory:
    return DeviceMemory(int(gib * GIB), int(gib * GIB))


def described(gpus: int, memory: float | None, *overrides: str) -> list[str]:
    settings = config(*overrides)
    placement = place(settings.rollout, settings.learner, Hardware(8, gpus), ours=True)
    return describe(SHAPE, settings, placement, None if memory is None else all_free(memory))


def test_lines_for_a_shared_gpu() -> None:
    assert described(1, 24, CHECKPOINTING) == [
        "a learner rank: weights 3.2 + adapter and optimizer 0.3 + inputs of layers 1.8 + one layer 1.5 "
        "+ its transients 0.4 + process 1.6 = 8.8 GiB",
        "a GPU of a rollout actor: weights 3.2 + process 1.0 + KV cache 6.6 = 10.8 GiB",
        "KV cache: 114688 bytes a token, room for 61748 tokens, or 7 sequences of 8192 at a time",
        "both, on one GPU of this machine: 19.6 GiB fits in the 24.0 GiB that are free",
    ]


def test_lines_without_a_known_memory() -> None:
    lines = described(2, None)
    assert len(lines) == 3
    assert lines[1:] == [
        "a GPU of a rollout actor: weights 3.2 + process 1.0 = 4.2 GiB",
        "KV cache: 114688 bytes a token, in the rest of rollout.gpu_memory_utilization=0.45 of a GPU",
    ]


def test_observations_count_in_the_sequences_of_the_kv_cache_and_in_the_remedy() -> None:
    episodes = ("environment.name=m:E", CHECKPOINTING)
    assert described(1, 24, *episodes)[2].endswith("room for 61748 tokens, or 7 sequences of 8704 at a time")
    cases = {(): "rollout.max_new_tokens or environment.max_observation_tokens"}
    cases[("rollout.max_model_len=8800",)] = "rollout.max_model_len"
    cases[("environment.max_turns=1",)] = "rollout.max_new_tokens"
    for more, keys in cases.items():
        line = described(2, 80, *episodes, *more, "rollout.gpu_memory_utilization=0.05")[-1]
        assert line.endswith(f"no sequence fits in the KV cache: lower {keys} or raise rollout.gpu_memory_utilization")


def test_all_actors_share_a_machine_without_gpus() -> None:
    lines = described(0, 100, "learner.ranks=2", "rollout.actors=3", "rollout.kv_cache_gib=2", CHECKPOINTING)
    assert lines[1].startswith("a rollout actor: ")
    # 2 x 8.2 + 3 x 6.2
    assert lines[3:] == ["all actors, on this machine: 35.0 GiB fits in the 100.0 GiB that are free"]


def test_lines_of_an_offloaded_optimizer() -> None:
    settings = ["learner.ranks=4", "learner.zero_stage=2", "learner.offload_optimizer=true"]
    assert described(5, 80, *settings)[0].endswith(" GiB, and 0.1 GiB of host memory")
    on_cpus = described(0, 100, "learner.zero_stage=1", "learner.offload_optimizer=true")[0]
    assert "adapter and optimizer 0.5 + " in on_cpus  # 10 + 18 bytes: 0.45 GiB
    assert "host memory" not in on_cpus


@pytest.mark.parametrize(
    ("gpus", "memory", "settings", "line"),
    [
        (
            1,
            15,
            [CHECKPOINTING, "rollout.sleep=false"],
            "both, on one GPU of this machine: 15.6 GiB does not fit in the 15.0 GiB that are free: "
            "lower learner.micro_batch_tokens",
        ),
        (
            1,
            8,
            [CHECKPOINTING, "rollout.sleep=false"],
            "both, on one GPU of this machine: 13.0 GiB does not fit in the 8.0 GiB that are free: "
            "take a smaller model.path",
        ),
        (
            2,
            48,
            [],
            "a learner rank's GPU: 48.6 GiB does not fit in the 48.0 GiB that are free: "
            "lower learner.micro_batch_tokens or set learner.gradient_checkpointing=true",
        ),
        (
            2,
            7,
            [CHECKPOINTING, "learner.micro_batch_tokens=4096"],
            "a learner rank's GPU: 7.4 GiB does not fit in the 7.0 GiB that are free: lower rollout.max_new_tokens",
        ),
        (
            2,
            80,
            ["rollout.kv_cache_gib=100"],
            "a rollout actor's GPU: 104.2 GiB does not fit in the 80.0 GiB that are free: lower rollout.kv_cache_gib",
        ),
        (
            1,
            24,
            [CHECKPOINTING, "rollout.gpu_memory_utilization=0.9", "rollout.sleep=false"],
            "both, on one GPU of this machine: 30.4 GiB does not fit in the 24.0 GiB that are free: "
            "lower rollout.gpu_memory_utilization",
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
    settings = config(CHECKPOINTING, *overrides)
    placement = place(settings.rollout, settings.learner, Hardware(8, gpus), ours=True)
    return takes_turns(settings, placement, SHAPE, all_free(memory))


def test_vllm_sleeps_if_both_take_more_than_nine_tenths_of_one_gpu() -> None:
    assert turns(1, 16)
    assert turns(1, 19)  # 17.3 GiB together
    assert not turns(1, 20)  # 17.8 GiB together
    assert not turns(2, 16)


def test_free_memory_decides_and_not_all_memory() -> None:
    """A GPU of 16 GB as CUDA shows it, with a display on it."""
    file = "launch/configs/local-1gpu.yaml"
    settings = Config.load(file, ["rollout.sleep=null"])
    before = Config.load(
        "launch/configs/local-1gpu.yaml", ["rollout.sleep=null", "rollout.gpu_memory_utilization=0.45"]
    )
    placement = place(settings.rollout, settings.learner, Hardware(8, 1), ours=True)
    memory = DeviceMemory(free=int(14.8 * GIB), total=int(15.9 * GIB))
    for each in (settings, before):
        for flash in (False, True):
            assert takes_turns(each, placement, SHAPE, memory, Kernels(flash=flash))
    # With a flash kernel these two would fit into all memory, and even into the free memory, by 0.1 GiB.
    lines = describe(SHAPE, before.model_copy(update={"rollout": _awake(before)}), placement, memory, FLASH)
    assert lines[3] == "both, on one GPU of this machine: 14.7 GiB fits in the 14.8 GiB that are free"


def _awake(settings: Config) -> object:
    return settings.rollout.model_copy(update={"sleep": False})


@pytest.mark.parametrize(
    ("file", "memory", "lines"),
    [
        (
            "local-1gpu.yaml",
            DeviceMemory(free=int(14.8 * GIB), total=int(15.9 * GIB)),
            [
                "both, on one GPU of this machine, while vLLM generates: 13.9 GiB fits in the 14.8 GiB that are free",
                "the same while the learner trains and vLLM sleeps: 8.5 GiB fits in the 14.8 GiB that are free",
            ],
        ),
        (
            "local-1gpu-24gb.yaml",
            DeviceMemory(free=int(22.8 * GIB), total=int(23.5 * GIB)),
            ["both, on one GPU of this machine: 19.3 GiB fits in the 22.8 GiB that are free"],
        ),
    ],
)
def test_the_two_configurations_fit_on_their_gpus(file: str, memory: DeviceMemory, lines: list[str]) -> None:
    settings = Config.load(f"launch/configs/{file}")
    placement = place(settings.rollout, settings.learner, Hardware(8, 1), ours=True)
    assert describe(SHAPE, settings, placement, memory, FLASH)[3:] == lines
    undecided = settings.model_copy(update={"rollout": settings.rollout.model_copy(update={"sleep": None})})
    assert takes_turns(undecided, placement, SHAPE, memory, FLASH) is settings.rollout.sleep


def test_the_two_configurations_differ_in_memory_only() -> None:
    small, large = (Config.load(f"launch/configs/{name}.yaml") for name in ("local-1gpu", "local-1gpu-24gb"))
    memory = {"sleep": None, "gpu_memory_utilization": 0.5}
    assert small.rollout.model_copy(update=memory) == large.rollout.model_copy(update=memory)
    assert small.model_copy(update={"rollout": large.rollout}) == large


def test_the_setting_decides_whether_vllm_sleeps() -> None:
    assert turns(1, 24, "rollout.sleep=true")
    assert not turns(1, 16, "rollout.sleep=false")


def test_vllm_never_sleeps_if_rollouts_run_ahead() -> None:
    assert not turns(1, 16, "algorithm.max_staleness=1")


def test_with_sleep_each_must_fit_alone() -> None:
    # While vLLM generates, the learner keeps its weights, optimizer and process: 5.1 GiB, and 7.2 of vLLM. While it
    # trains, vLLM keeps only a process: 1.0 GiB, and 8.8 of the learner.
    assert described(1, 16, CHECKPOINTING)[3:] == [
        "both, on one GPU of this machine, while vLLM generates: 12.3 GiB fits in the 16.0 GiB that are free",
        "the same while the learner trains and vLLM sleeps: 9.8 GiB fits in the 16.0 GiB that are free",
    ]


def test_without_a_gpu_nothing_sleeps() -> None:
    settings = config()
    assert decide_sleep(settings, place(settings.rollout, settings.learner, Hardware(8, 0), ours=True)) is False


@pytest.mark.parametrize(("memory", "sleeps"), [(16, True), (24, False)])
def test_the_local_gpu_decides_an_open_sleep_setting(
    monkeypatch: pytest.MonkeyPatch, memory: int, sleeps: bool
) -> None:
    monkeypatch.setattr("adagrpo_ray.training.memory.read_shape", lambda config: SHAPE)
    monkeypatch.setattr("adagrpo_ray.training.memory.gpu_memory", lambda: all_free(memory))
    settings = config(CHECKPOINTING)
    placement = place(settings.rollout, settings.learner, Hardware(8, 1), ours=True)
    assert decide_sleep(settings, placement) is sleeps
    assert decide_sleep(settings, None) is False  # on a cluster, whose GPUs are on other machines
    for sleep in (True, False):
        given = config(CHECKPOINTING, f"rollout.sleep={str(sleep).lower()}")
        assert decide_sleep(given, placement) is decide_sleep(given, None) is sleep


def test_vllm_does_not_sleep_if_the_model_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(config: Config) -> Shape:
        raise ModelError("not here")

    monkeypatch.setattr("adagrpo_ray.training.memory.read_shape", unknown)
    settings = config()
    assert decide_sleep(settings, place(settings.rollout, settings.learner, Hardware(8, 1), ours=True)) is False


def test_actors_with_their_own_gpus_get_a_line_each() -> None:
    assert described(2, 80)[3:] == [
        "a learner rank's GPU: 48.6 GiB fits in the 80.0 GiB that are free",
        "a rollout actor's GPU: 36.0 GiB fits in the 80.0 GiB that are free",
    ]
