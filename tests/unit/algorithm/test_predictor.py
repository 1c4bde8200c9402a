"""The predictor of success rates: on prompts whose success rate is a logistic function of their hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from adagrpo_ray.algorithm.posterior import ClassResults
from adagrpo_ray.algorithm.predictor import MOST_FEATURES, Observation, Predictor
from adagrpo_ray.types import Floats

SEED, DISCOUNT, MOST = 3, 0.7, 8
SLOPES = np.array([2.0, -1.0, 0.0, 0.0])


class World:
    """Prompts with hidden states of independent normal numbers, of which the first two decide on the success rate."""

    def __init__(self, seed: int = 0, size: int = 4, concentration: float | None = None) -> None:
        self.draws, self.size, self.concentration = np.random.default_rng(seed), size, concentration
        self.predictor = Predictor(SEED, DISCOUNT)
        self.of_class = ClassResults()

    def step(self, prompts: int = 16, completions: int = 8, sign: float = 1.0) -> tuple[Floats, np.ndarray]:
        """Features and success rates of prompts, which the predictor compares and learns."""
        hidden = self.draws.standard_normal((prompts, self.size)).astype(np.float32)
        rates = 1 / (1 + np.exp(-sign * hidden[:, :4] @ SLOPES[: self.size]))
        if self.concentration is not None:
            rates = self.draws.beta(self.concentration * rates, self.concentration * (1 - rates))
        correct = self.draws.binomial(completions, rates)
        features = self.predictor.features(hidden)
        self.predictor.compare(observations(features, self.of_class.rate, correct, completions))
        self.of_class = self.of_class.after([(int(c), completions) for c in correct], DISCOUNT)
        self.predictor.learn(observations(features, self.of_class.rate, correct, completions))
        return features, rates

    def held_out(self, prompts: int = 2000, sign: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Predicted and true success rates of prompts that were never seen."""
        hidden = self.draws.standard_normal((prompts, self.size)).astype(np.float32)
        rates = 1 / (1 + np.exp(-sign * hidden[:, :4] @ SLOPES[: self.size]))
        features = self.predictor.features(hidden)
        return np.array([self.predictor.rate(row, self.of_class.rate) for row in features]), rates


def observations(features: Floats, rate: float, correct: Sequence[int], completions: int) -> list[Observation]:
    return [Observation(f, rate, int(c), completions - int(c)) for f, c in zip(features, correct, strict=True)]


def test_a_logistic_relation_is_recovered_and_calibrated() -> None:
    world = World()
    for _ in range(15):
        world.step()
    predicted, true = world.held_out()
    assert np.abs(predicted - true).mean() < 0.06
    assert np.abs(predicted - true).mean() < 0.25 * np.abs(world.of_class.rate - true).mean()
    outcomes = world.draws.binomial(1, true)
    for low in np.arange(0.0, 1.0, 0.2):
        inside = (predicted >= low) & (predicted < low + 0.2)
        assert outcomes[inside].mean() == pytest.approx(predicted[inside].mean(), abs=0.09)


def test_long_hidden_states_are_projected() -> None:
    world = World(size=600)
    first, _ = world.step()
    assert first.shape == (16, MOST_FEATURES)
    assert first.dtype == np.float32
    assert 0.5 < float((first**2).mean()) < 1.5
    again = World(size=600)
    assert (again.step()[0] == first).all()


def test_predictions_without_a_relation_are_those_of_the_class() -> None:
    world = World(size=8)
    for _ in range(15):
        hidden = world.draws.standard_normal((16, 8)).astype(np.float32)
        correct = world.draws.binomial(8, 0.3, 16)
        world.of_class = world.of_class.after([(int(c), 8) for c in correct], DISCOUNT)
        world.predictor.learn(observations(world.predictor.features(hidden), world.of_class.rate, correct, 8))
    predicted, _ = world.held_out()
    assert float(np.abs(predicted - 0.3).mean()) < 0.06


@pytest.mark.parametrize(("slope", "better"), [(0.0, False), (1.0, True)])
def test_predictions_are_better_than_the_class_only_with_a_relation(slope: float, better: bool) -> None:
    found = []
    for seed in range(10):
        world = World(seed, size=32)
        for _ in range(3):
            world.step(sign=slope)
        found.append(world.predictor.better)
    assert (np.mean(found) > 0.9) if better else (np.mean(found) < 0.5)


def test_new_results_outweigh_old_ones() -> None:
    world = World()
    for _ in range(10):
        world.step()
    for _ in range(25):
        world.step(sign=-1.0)  # the policy has changed, and with it which prompts are hard
    predicted, true = world.held_out(sign=-1.0)
    assert np.abs(predicted - true).mean() < 0.1


@pytest.mark.parametrize(("concentration", "correlation"), [(None, 0.0), (2.0, 1 / 3)])
def test_correlation_is_the_spread_around_the_predictions(concentration: float | None, correlation: float) -> None:
    world = World(concentration=concentration)
    found = []
    for number in range(60):
        world.step()
        found += [world.predictor.correlation] * (number >= 20)
    assert np.mean(found) == pytest.approx(correlation, abs=0.07)


def test_a_prior_weighs_as_its_predictions_deserve() -> None:
    exact, spread = World(), World(concentration=2.0)
    for world in (exact, spread):
        for _ in range(40):
            features, _ = world.step()
    strong, weak = (
        world.predictor.prior(features[0], world.of_class.rate, MOST).correct
        + world.predictor.prior(features[0], world.of_class.rate, MOST).wrong
        + 2
        for world in (exact, spread)
    )
    assert weak < 4 < strong <= 2 + MOST
    prior = exact.predictor.prior(features[0], exact.of_class.rate, MOST)
    assert prior.mean == pytest.approx(exact.predictor.rate(features[0], exact.of_class.rate))


@pytest.mark.parametrize("correct", [0, 8])
def test_it_is_not_ready_with_one_kind_of_result(correct: int) -> None:
    predictor = Predictor(SEED, DISCOUNT)
    features = predictor.features(np.eye(4, dtype=np.float32))
    assert not predictor.ready
    predictor.learn(observations(features, 0.5, [correct] * 4, 8))
    assert not predictor.ready
    predictor.learn(observations(features, 0.5, [4] * 4, 8))
    assert predictor.ready


def test_predictions_are_not_better_once_the_results_are_of_one_kind() -> None:
    world = World()
    for _ in range(8):
        features, _ = world.step()
    assert world.predictor.better
    for _ in range(50):
        world.predictor.learn(observations(features, 0.9, [8] * len(features), 8))
    assert not world.predictor.ready
    assert not world.predictor.better


def test_a_step_without_results_changes_no_errors() -> None:
    world = World()
    for _ in range(4):
        world.step()
    before = world.predictor.correlation
    world.predictor.compare([])
    assert world.predictor.correlation == before


def test_equal_hidden_states_and_extreme_rates_give_finite_predictions() -> None:
    predictor = Predictor(SEED, 1.0)
    features = predictor.features(np.ones((4, 6), np.float32))
    for _ in range(50):
        predictor.learn(observations(features, 1e-6, [8, 8, 8, 0], 8))
        predictor.compare(observations(features, 1 - 1e-6, [0, 8, 0, 0], 8))
    prior = predictor.prior(features[0], 1 - 1e-9, MOST)
    assert 0.0 < prior.mean < 1.0
    assert np.isfinite(prior.expected(2, 10))


def test_hidden_states_that_are_not_finite_have_no_information() -> None:
    hidden = np.array([[1.0, np.nan, 3.0], [2.0, np.inf, 1.0]], np.float32)
    features = Predictor(SEED, DISCOUNT).features(hidden)
    assert features.tolist() == [[-1.0, 0.0, 1.0], [1.0, 0.0, -1.0]]


def test_a_restored_predictor_continues_bit_by_bit() -> None:
    world, other = World(), Predictor(SEED, DISCOUNT)
    other.load_state_dict(world.predictor.state_dict())  # without results
    assert not other.ready
    for _ in range(3):
        world.step()
    other.load_state_dict({name: array.copy() for name, array in world.predictor.state_dict().items()})
    hidden = world.draws.standard_normal((5, 4)).astype(np.float32)
    for predictor in (world.predictor, other):
        predictor.learn(observations(predictor.features(hidden), 0.4, [0, 2, 4, 6, 8], 8))
    expected, found = world.predictor.state_dict(), other.state_dict()
    assert found.keys() == expected.keys()
    assert all((found[name] == expected[name]).all() for name in expected)
