"""The ladder of resamples: the published schedule, and the seeds of requests."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adagrpo_ray.algorithm.ladder import Ladder, request_seed
from adagrpo_ray.config import Config
from adagrpo_ray.types import SamplingParams
from tests.support.places import CONFIGS

PLAIN = SamplingParams(temperature=1.0, top_p=1.0)
WARM = SamplingParams(temperature=1.1, top_p=0.99)
HOT = SamplingParams(temperature=1.3, top_p=0.97)


@pytest.fixture(scope="module")
def published() -> Ladder:
    algorithm = Config.load(CONFIGS / "local-1gpu.yaml").algorithm
    return Ladder(algorithm.sampling, tuple((t.from_step, t.ladder()) for t in algorithm.triggers))


@pytest.mark.parametrize(
    ("step", "resamples"),
    [
        (1, [PLAIN] * 2),
        (99, [PLAIN] * 2),
        (100, [PLAIN] * 2 + [WARM] * 2),
        (299, [PLAIN] * 2 + [WARM] * 2),
        (300, [PLAIN] * 4 + [WARM] * 4),
        (699, [PLAIN] * 4 + [WARM] * 4),
        (700, [PLAIN] * 5 + [WARM] * 6 + [HOT] * 5),
        (100_000, [PLAIN] * 5 + [WARM] * 6 + [HOT] * 5),
    ],
)
def test_ladder_follows_the_published_schedule(published: Ladder, step: int, resamples: list[SamplingParams]) -> None:
    climbed = itertools.takewhile(lambda p: p is not None, (published.params(step, n) for n in itertools.count(1)))
    assert list(climbed) == resamples
    assert list(published.rungs(step)) == resamples


def test_published_schedule_has_sixteen_rungs(published: Ladder) -> None:
    assert published.height == 16


@pytest.mark.parametrize("step", [1, 5, 9])
def test_every_group_starts_at_the_base_parameters(step: int) -> None:
    base = SamplingParams(temperature=0.7)
    assert Ladder(base, ((5, (HOT,)),)).params(step, 0) == base


def test_before_the_first_trigger_nothing_is_resampled() -> None:
    ladder = Ladder(PLAIN, ((5, (WARM,)),))
    assert ladder.params(4, 1) is None
    assert ladder.params(5, 1) == WARM


def test_no_parameters_are_left_after_the_last_rung() -> None:
    ladder = Ladder(PLAIN, ((1, (WARM, HOT)),))
    assert [ladder.params(1, n) for n in (1, 2, 3, 4)] == [WARM, HOT, None, None]


def test_an_empty_trigger_ends_resampling() -> None:
    ladder = Ladder(PLAIN, ((1, (WARM,)), (10, ())))
    assert ladder.params(9, 1) == WARM
    assert ladder.params(10, 1) is None


def test_a_ladder_without_triggers_never_resamples() -> None:
    assert Ladder(PLAIN).params(1, 1) is None
    assert Ladder(PLAIN).height == 0


def test_request_seed_never_changes() -> None:
    # Half of the first four bytes of SHA-256 of "7/problem-3/1/2": a run must be repeatable years later.
    assert request_seed(7, "problem-3", 1, 2) == 2128220185
    # Of "7/problem-3/1/2/commit":
    assert request_seed(7, "problem-3", 1, 2, commit=True) == 1304495445


def test_request_seeds_differ_by_each_argument() -> None:
    arguments = list(itertools.product(range(3), ["a", "b", "a/1", "1/a"], range(4), range(17)))
    seeds = {request_seed(*a, commit=commit) for a in arguments for commit in (False, True)}
    assert len(seeds) == 2 * len(arguments)


@given(st.integers(0, 2**31 - 1), st.text(), st.integers(-1, 10**6), st.integers(0, 100))
def test_request_seed_fits_31_bits(run_seed: int, prompt_id: str, epoch: int, attempt: int) -> None:
    assert 0 <= request_seed(run_seed, prompt_id, epoch, attempt) < 2**31
