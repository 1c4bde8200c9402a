"""Predictions for prompts: their features, and the results that the predictor learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from adagrpo_ray.algorithm.posterior import ClassResults, Posterior
from adagrpo_ray.algorithm.predictor import Observation, Predictor, PredictorState
from adagrpo_ray.types import Floats, Group, Prompt


class PromptPredictor:
    """Predicts the success rates of prompts, in place of the rate of their class.

    The features of a prompt are of the policy shortly before its newest epoch. They are kept until those of its next
    epoch replace them: at most MOST_FEATURES numbers of 4 bytes for each prompt.
    """

    def __init__(self, run_seed: int, discount: float, most: float) -> None:
        """Create it without results; a prediction counts as at most `most` completions of a prompt."""
        self._predictor, self._discount, self._most = Predictor(run_seed, discount), discount, most
        self._features: dict[str, tuple[int, Floats]] = {}  # by prompt, with the epoch that they are of
        self._pooled = ClassResults()  # of all classes

    def missing(self, ahead: Sequence[tuple[Prompt, int]]) -> list[tuple[Prompt, int]]:
        """Those of the next prompts, with their epochs, that have no features of a policy of their epoch."""
        first: dict[str, tuple[Prompt, int]] = {}  # a prompt may be there with two epochs
        for prompt, epoch in ahead:
            first.setdefault(prompt.id, (prompt, epoch))
        return [
            (prompt, epoch)
            for id, (prompt, epoch) in first.items()
            if id not in self._features or self._features[id][0] < epoch
        ]

    def describe(self, prompts: Sequence[tuple[Prompt, int]], hidden: Floats) -> None:
        """Store the features of `prompts`, given with their epochs, from their hidden states [n x H]."""
        for (prompt, epoch), features in zip(prompts, self._predictor.features(hidden), strict=True):
            self._features[prompt.id] = epoch, features

    def prior(self, prompt: Prompt, of_class: ClassResults | None) -> Posterior | None:
        """The posterior of a prompt without its own results; None without features, or if classes predict better.

        A prompt whose class has no results is compared with all classes together.
        """
        if prompt.id not in self._features or not self._predictor.better:
            return None
        rate = (of_class or self._pooled).rate
        return self._predictor.prior(self._features[prompt.id][1], rate, self._most)

    def compare(self, groups: Sequence[Group], classes: Mapping[str, ClassResults]) -> None:
        """Compare the predictions for `groups` with their newest completions, before these are learned."""
        self._predictor.compare(self._observations(groups, classes))

    def learn(self, groups: Sequence[Group], classes: Mapping[str, ClassResults]) -> None:
        """Learn from the newest completions of `groups`; `classes` has learned from them already."""
        if not groups:
            return
        self._pooled = self._pooled.after([group.last.counts for group in groups], self._discount)
        self._predictor.learn(self._observations(groups, classes))

    def _observations(self, groups: Sequence[Group], classes: Mapping[str, ClassResults]) -> list[Observation]:
        """The results of the groups whose prompts have features."""
        found = []
        for group in groups:
            if group.prompt.id in self._features:
                rate = classes.get(group.prompt.difficulty, self._pooled).rate
                correct, completions = group.last.counts
                features = self._features[group.prompt.id][1]
                found.append(Observation(features, rate, correct, completions - correct))
        return found

    def state_dict(self) -> PredictorState:
        """The state that determines the next predictions."""
        arrays = self._predictor.state_dict()
        if self._features:
            arrays["features"] = np.stack([features for _, features in self._features.values()])
        return PredictorState({id: epoch for id, (epoch, _) in self._features.items()}, self._pooled, arrays)

    def load_state_dict(self, state: PredictorState) -> None:
        """Restore a result of `state_dict`; settings and seed must be the same."""
        self._predictor.load_state_dict(state.arrays)
        rows = state.arrays.get("features", ())
        self._features = {id: (epoch, row) for (id, epoch), row in zip(state.epochs.items(), rows, strict=True)}
        self._pooled = state.pooled
