"""Placement of the actors on the hardware, and placements that are refused."""

from __future__ import annotations

from typing import Any

import pytest

from adagrpo_ray.cluster.placement import Hardware, Placement, place
from adagrpo_ray.config import Config
from adagrpo_ray.errors import ResourceError


def config(**sizes: float) -> Config:
    """Return a configuration with these sizes: `actors` is rollout.actors, `ranks` and `learner_cpus` the learner's."""
    keys = {
        "actors": "rollout.actors",
        "tensor_parallel": "rollout.tensor_parallel_size",
        "rollout_cpus": "rollout.cpus",
        "ranks": "learner.ranks",
        "learner_cpus": "learner.cpus",
    }
    return Config.load(None, [f"{keys[name]}={value}" for name, value in sizes.items()])


def place_all(config: Config, hardware: Hardware, *, ours: bool) -> Placement:
    return place(config.rollout, config.learner, hardware, ours=ours)


def placed(gpus: float, *, cpus: float = 64, ours: bool = True, **sizes: Any) -> Placement:
    return place_all(config(**sizes), Hardware(cpus, gpus), ours=ours)


@pytest.mark.parametrize(
    ("gpus", "sizes", "each"),
    [
        (0, {}, (0.0, 0.0)),
        (0, {"actors": 4, "ranks": 2}, (0.0, 0.0)),
        (1, {}, (0.5, 0.5)),
        (2, {}, (1.0, 1.0)),
        (6, {"actors": 4, "ranks": 2}, (1.0, 1.0)),
        (6, {"actors": 2, "tensor_parallel": 2, "ranks": 2}, (2.0, 1.0)),
        (8, {"actors": 1, "tensor_parallel": 4, "ranks": 4}, (4.0, 1.0)),
        (8, {}, (1.0, 1.0)),
    ],
)
def test_gpus_per_rollout_actor_and_learner_rank(gpus: float, sizes: dict[str, Any], each: tuple[float, float]) -> None:
    placement = placed(gpus, **sizes)
    assert (placement.rollout_gpus, placement.learner_gpus) == each
    assert (placement.rollout_actors, placement.learner_ranks) == (sizes.get("actors", 1), sizes.get("ranks", 1))
    assert placement.gpus <= gpus


@pytest.mark.parametrize("gpus", [0, 2])
def test_sleep_needs_shared_gpu(gpus: int) -> None:
    settings = Config.load(None, ["rollout.sleep=true"])
    assert place_all(settings, Hardware(8, 1), ours=True).shared
    with pytest.raises(ResourceError, match=r"rollout\.sleep=true"):
        place_all(settings, Hardware(8, gpus), ours=True)


@pytest.mark.parametrize("sizes", [{"actors": 2}, {"ranks": 2}, {"tensor_parallel": 2}])
def test_one_gpu_takes_one_actor_and_one_rank(sizes: dict[str, Any]) -> None:
    with pytest.raises(ResourceError) as refused:
        placed(1, **sizes)
    all_sizes = {"actors": 1, "tensor_parallel": 1, "ranks": 1, **sizes}
    assert str(refused.value) == (
        f"rollout.actors={all_sizes['actors']}, rollout.tensor_parallel_size={all_sizes['tensor_parallel']} and "
        f"learner.ranks={all_sizes['ranks']} need more than the 1 GPU there is; set all three to 1"
    )


@pytest.mark.parametrize(
    ("gpus", "sizes", "figures"),
    [
        (2, {"actors": 2}, "rollout.actors=2 x 1 and learner.ranks=1 need 3 GPUs, there are 2;"),
        (6, {"actors": 4, "ranks": 3}, "rollout.actors=4 x 1 and learner.ranks=3 need 7 GPUs, there are 6;"),
        (8, {"actors": 2, "tensor_parallel": 4}, "rollout.actors=2 x 4 and learner.ranks=1 need 9 GPUs, there are 8;"),
    ],
)
def test_error_names_missing_gpus_with_numbers(gpus: float, sizes: dict[str, Any], figures: str) -> None:
    with pytest.raises(ResourceError) as refused:
        placed(gpus, **sizes)
    assert str(refused.value).startswith(figures)
    assert str(refused.value).endswith("lower rollout.actors, rollout.tensor_parallel_size or learner.ranks")


def test_local_ray_does_not_limit_cpus() -> None:
    assert placed(0, cpus=2, actors=4, ranks=2).cpus == 6


def test_cluster_limits_cpus() -> None:
    sizes = {"actors": 4, "rollout_cpus": 1.5, "ranks": 2, "learner_cpus": 3}
    assert placed(0, cpus=12, ours=False, **sizes).cpus == 12
    with pytest.raises(ResourceError) as refused:
        placed(0, cpus=11, ours=False, **sizes)
    assert str(refused.value) == (
        "the actors need 12 CPUs (rollout.actors=4 x rollout.cpus=1.5 and learner.ranks=2 x learner.cpus=3), "
        "the cluster has 11; lower one of them"
    )


def test_only_learner_ranks_have_bundles() -> None:
    placement = placed(8, actors=2, tensor_parallel=2, rollout_cpus=4, ranks=3, learner_cpus=1)
    assert placement.bundles() == [{"CPU": 1.0, "GPU": 1.0}] * 3
    assert placement.rollout == {"CPU": 4.0, "GPU": 2.0}


def test_bundles_have_no_zero_entries_and_are_never_empty() -> None:
    assert placed(0).bundles() == [{"CPU": 1.0}]
    assert placed(2, learner_cpus=0).bundles() == [{"GPU": 1.0}]
    (learner,) = placed(0, learner_cpus=0).bundles()
    assert 0 < learner["CPU"] < 0.01


def test_description_has_numbers_and_shares() -> None:
    assert placed(1, rollout_cpus=2).lines() == (
        "1 x rollout actor: 2 CPU, 0.5 GPU each",
        "1 x learner rank: 1 CPU, 0.5 GPU each",
    )


CLUSTER = Hardware(8.0, 0.0, {"rollout": 2.0}, ({"CPU": 2.0, "rollout": 1.0}, {"CPU": 4.0}))


def test_custom_resources_count_per_actor() -> None:
    settings = Config.load(None, ["rollout.actors=2", "rollout.resources={rollout: 1}"])
    placement = place_all(settings, CLUSTER, ours=False)
    assert placement.rollout == {"CPU": 1.0, "GPU": 0.0, "rollout": 1.0}
    assert placement.total("rollout") == 2
    assert "2 x rollout actor: 1 CPU, 0 GPU, 1 rollout each" in placement.lines()
    more = Config.load(None, ["rollout.actors=3", "rollout.resources={rollout: 1}"])
    with pytest.raises(ResourceError, match=r"need 3 of the custom resource 'rollout'.*the cluster has 2; start nodes"):
        place_all(more, CLUSTER, ours=False)


def test_actor_too_large_for_every_node_is_refused() -> None:
    with pytest.raises(ResourceError, match=r"no node .* one learner rank \(6 CPU\).*lower learner\.cpus"):
        place_all(Config.load(None, ["learner.cpus=6"]), CLUSTER, ours=False)


def test_without_learner_rollout_actors_have_own_gpus_and_errors_omit_ranks() -> None:
    settings = Config.load(None, ["learner.ranks=4", "learner.cpus=6", "learner.resources={learner: 1}"])
    for gpus, each in ((1, 1.0), (2, 1.0), (0, 0.0)):
        placement = place(settings.rollout, None, Hardware(8, gpus), ours=True)
        assert (placement.rollout_gpus, placement.gpus, placement.cpus) == (each, each, 1.0)
        assert not placement.shared
        assert placement.lines() == (f"1 x rollout actor: 1 CPU, {each:g} GPU each",)
        assert placement.total("learner") == 0
    assert place(settings.rollout, None, CLUSTER, ours=False).learner_ranks == 0
    with pytest.raises(ResourceError) as refused:
        place(Config.load(None, ["rollout.actors=3"]).rollout, None, Hardware(8, 2), ours=True)
    assert "rollout.actors=3 x 1 need 3 GPUs, there are 2" in str(refused.value)
    assert "learner" not in str(refused.value)
