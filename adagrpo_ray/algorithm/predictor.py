"""Predicts the success rate of a prompt from the policy's hidden state: an online Bayesian logistic regression.

It predicts how much a prompt differs from its class. Without results that speak for a difference, the prediction is the
success rate of the class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adagrpo_ray.algorithm.posterior import ClassResults, Posterior, correlation_of, prior_of
from adagrpo_ray.types import Floats

Doubles = NDArray[np.float64]

MOST_FEATURES = 64
"""Numbers that describe a prompt; longer hidden states are projected."""
MEMORY = 4
"""Results count as long as those of a class, times this: differences between prompts last longer than success rates."""
LEAST_WEIGHT, MOST_ROWS = 0.02, 4096
"""Results that weigh less are dropped, and so are the oldest of more."""
ROUNDS, NEWTON_STEPS = 12, 12
"""Updates of the prior's variance after a step, and most Newton steps in each of them."""
FIRST_DEVIATION = 0.5
"""Deviation of w x before the first result: small, so that predictions begin near the rate of the class."""
FURTHEST = 5.0
"""Bound of the standardised numbers of a hidden state."""
NEAREST = 1e-3
"""Distance of a predicted success rate from 0 and 1."""


@dataclass(frozen=True, eq=False)
class Observation:
    """The result of a prompt: its `features` [d], the success rate of its class, and counts of its completions."""

    features: Floats
    class_rate: float
    correct: int
    wrong: int


@dataclass(frozen=True, eq=False)
class PredictorState:
    """The state of predictions for a checkpoint.

    - `epochs`: by prompt, the epoch that its features are of; the rows of the array "features" have this order.
    - `pooled`: the results of all classes together.
    - `arrays`: the features, and the arrays of `Predictor.state_dict`.
    """

    epochs: dict[str, int]
    pooled: ClassResults
    arrays: dict[str, NDArray[Any]]


class Predictor:
    """Success rates from features: p = sigmoid(logit(rate of the class) + b + w x).

    - w and b are the mode of their posterior. The prior of b has the variance 1. That of w has a variance for all
      entries, set by the expectation-maximisation update of MacKay's evidence (Bishop, "Pattern Recognition and Machine
      Learning", 2006, eq. 9.63), with the normal distribution around the mode as the posterior (section 4.5.1).
    - A prompt with n completions counts as n / (1 + (n - 1) rho) ones, since they are correlated (Williams,
      "Extra-binomial variation in logistic linear models", 1982, model II). rho is the `correlation` that earlier
      predictions left.
    """

    def __init__(self, run_seed: int, discount: float) -> None:
        """Create it without results; `discount` is that of class results, per step."""
        self._seed, self._discount = run_seed, discount
        self._scale: Floats | None = None  # [2 x H]: mean and deviation of the first hidden states
        self._weights = np.zeros(0)  # [1 + d]: b and w
        self._precision = 0.0  # of each entry of w
        self._inputs = np.zeros((0, 0))  # [m x (1 + d)]: 1 and the features, the oldest results first
        self._counts = np.zeros((0, 4))  # [m x 4]: logit of the class rate, correct, wrong, weight
        self._errors = np.zeros(4)  # sums over predictions, in the order of `compare`

    @property
    def ready(self) -> bool:
        """Whether its results have both correct and wrong completions, so that there are predictions."""
        return bool(self._counts[:, 1].any() and self._counts[:, 2].any())

    @property
    def better(self) -> bool:
        """Whether it is ready, and earlier predictions had smaller squared errors than the rates of classes."""
        return self.ready and bool(self._errors[3] > 0.0)

    def features(self, hidden: Floats) -> Floats:
        """The features [n x d] of hidden states [n x H]; d is H, but at most MOST_FEATURES.

        Hidden states are standardised by mean and deviation of the first ones of the run, and projected by a random
        matrix of the run's seed, which nearly keeps the proportions of their distances (Johnson and Lindenstrauss,
        "Extensions of Lipschitz mappings into a Hilbert space", 1984).
        """
        # Numbers that are not finite, as of a model whose activations overflow, are no information.
        hidden = np.nan_to_num(hidden, posinf=0.0, neginf=0.0)
        if self._scale is None:
            deviation = hidden.std(0)
            floor = 0.01 * float(deviation.mean())  # entries that hardly change would be noise
            self._scale = np.stack([hidden.mean(0), np.maximum(deviation, floor) if floor > 0 else deviation + 1])
        mean, deviation = self._scale
        standard: Floats = np.clip((hidden - mean) / deviation, -FURTHEST, FURTHEST)
        size = hidden.shape[1]
        if size <= MOST_FEATURES:
            return standard.astype(np.float32)
        matrix = np.random.default_rng([self._seed, size]).standard_normal((size, MOST_FEATURES), np.float32)
        projected: Floats = (standard @ (matrix / np.sqrt(size))).astype(np.float32)
        return projected

    def rate(self, features: Floats, class_rate: float) -> float:
        """The predicted success rate of a prompt with these features [d], within NEAREST of 0 and 1."""
        score = _logit(class_rate) + self._weights[0] + features.astype(np.float64) @ self._weights[1:]
        return float(np.clip(_sigmoid(score), NEAREST, 1 - NEAREST))

    def prior(self, features: Floats, class_rate: float, most: float) -> Posterior:
        """The posterior of a prompt without results of its own: Beta(k p, k (1 - p)) for the predicted rate p.

        k is that of `prior_of`, as for a class.
        """
        return prior_of(self.rate(features, class_rate), self.correlation, most)

    @property
    def correlation(self) -> float:
        """Correlation rho of completions of one prompt around its prediction, by the errors of earlier predictions.

        It is 0 if the predictions were the success rates.
        """
        number, squares, variance, _ = self._errors.tolist()
        return correlation_of(number, squares, variance)

    def compare(self, observations: Sequence[Observation]) -> None:
        """Update the errors with predictions of results that were not learned yet; `class_rate` is without them, too.

        With c of n completions correct and prediction p, E[(c/n - p)^2] = p (1 - p) (1/n + (1 - 1/n) rho). The errors
        are discounted sums of 1, of the square without its part of 1/n, and of the factor of rho; and of the number by
        which the square is smaller than that of the class rate.
        """
        if not observations or not self.ready:
            return
        self._errors *= self._discount
        for each in observations:
            n = each.correct + each.wrong
            p, share = self.rate(each.features, each.class_rate), each.correct / n
            square, variance = (share - p) ** 2, p * (1 - p)
            if n > 1:  # a single completion has no correlation
                self._errors[:3] += (1, square - variance / n, variance * (1 - 1 / n))
            self._errors[3] += (share - each.class_rate) ** 2 - square

    def learn(self, observations: Sequence[Observation]) -> None:
        """Learn from the results of a step; earlier ones count `discount` ** (1 / MEMORY) times as much as before."""
        if not observations:
            return
        inputs = np.array([[1.0, *each.features] for each in observations])
        counts = np.array([[_logit(each.class_rate), each.correct, each.wrong, 1.0] for each in observations])
        if not self._weights.size:
            size = inputs.shape[1]
            self._weights, self._inputs = np.zeros(size), np.zeros((0, size))
            self._precision = (size - 1) / FIRST_DEVIATION**2
        self._counts[:, 3] *= self._discount ** (1 / MEMORY)
        kept = self._counts[:, 3] >= LEAST_WEIGHT
        self._inputs = np.concatenate([self._inputs[kept], inputs])[-MOST_ROWS:]
        self._counts = np.concatenate([self._counts[kept], counts])[-MOST_ROWS:]
        if self.ready:
            self._fit()

    def _fit(self) -> None:
        base, correct, wrong, weight = self._counts.T
        weight = weight / (1 + (correct + wrong - 1) * self.correlation)
        size = len(self._weights) - 1
        for _ in range(ROUNDS):
            precisions = np.array([1.0, *[self._precision] * size])
            self._weights, covariance = _mode(
                self._inputs, base, weight * correct, weight * wrong, precisions, self._weights
            )
            squares = self._weights[1:] @ self._weights[1:] + np.trace(covariance[1:, 1:])
            # Features have squares of about 1, so w x has a deviation between 0.1 and 10.
            self._precision = float(np.clip(size / squares, size / 100, size * 100))

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """The state as arrays by name; an array without entries is left out."""
        arrays: dict[str, NDArray[Any]] = {
            "weights": self._weights.copy(),
            "precision": np.array([self._precision]),
            "inputs": self._inputs.copy(),
            "counts": self._counts.copy(),
            "errors": self._errors.copy(),
        }
        if self._scale is not None:
            arrays["scale"] = self._scale.copy()
        return {name: array for name, array in arrays.items() if array.size}

    def load_state_dict(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Restore a result of `state_dict`; seed and discount must be the same."""
        self._scale = arrays.get("scale")
        self._precision, self._errors = float(arrays["precision"][0]), arrays["errors"].copy()
        self._weights = arrays.get("weights", np.zeros(0)).copy()
        self._inputs = arrays.get("inputs", np.zeros((0, 0))).copy()
        self._counts = arrays.get("counts", np.zeros((0, 4))).copy()


def _mode(
    inputs: Doubles, base: Doubles, correct: Doubles, wrong: Doubles, precisions: Doubles, start: Doubles
) -> tuple[Doubles, Doubles]:
    """The weights with the highest posterior density, by Newton's method from `start`, and their covariance there."""
    number = correct + wrong

    def loss(weights: Doubles) -> float:
        score = base + inputs @ weights
        likelihood = correct @ np.logaddexp(0, -score) + wrong @ np.logaddexp(0, score)
        return float(likelihood + precisions @ weights**2 / 2)

    def derivatives(weights: Doubles) -> tuple[Doubles, Doubles]:
        p = _sigmoid(base + inputs @ weights)
        gradient = inputs.T @ (number * p - correct) + precisions * weights
        return gradient, (inputs.T * (number * p * (1 - p))) @ inputs + np.diag(precisions)

    weights, value = start, loss(start)
    for _ in range(NEWTON_STEPS):
        gradient, hessian = derivatives(weights)
        step = np.linalg.solve(hessian, gradient)
        nearer = (weights - step / 2**halvings for halvings in range(8))
        found = next(((w, new) for w in nearer if (new := loss(w)) < value), None)
        if found is None:
            break
        weights, value = found
    return weights, np.linalg.inv(derivatives(weights)[1]).astype(np.float64)


def _logit(rate: float) -> float:
    return float(np.log(rate) - np.log1p(-rate))


def _sigmoid(score: Any) -> Any:
    return np.exp(-np.logaddexp(0, -score))
