"""The evaluation of a run: its held-out prompts, and its benchmarks with scoring processes of their own."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from adagrpo_ray.config.tree import Config
from adagrpo_ray.data.prompts import PromptSets
from adagrpo_ray.rewards.benchmark_answers import scoring
from adagrpo_ray.rewards.consumption import Consumption, counted_for
from adagrpo_ray.rewards.registry import Scores
from adagrpo_ray.rewards.scorer import RewardScorer
from adagrpo_ray.rewards.together import together
from adagrpo_ray.runs.records import EvaluationRecord
from adagrpo_ray.sampling.evaluate import Results, evaluate
from adagrpo_ray.sampling.group_run import Generate, Score
from adagrpo_ray.sampling.metrics import judge_metrics
from adagrpo_ray.types import Completion, Prompt

PURPOSE = "evaluation"
"""The purpose for which judges are asked here."""


class HeldOutScorer(Protocol):
    """The scorer of a run, or its episodes."""

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> tuple[Scores, NDArray[Any]]:
        """Return the scores of a group, and which of its completions are correct."""

    def consumption(self, purpose: str = "") -> Mapping[str, Consumption]:
        """Return the consumption of judges and reward models for a purpose since the last call."""


class Evaluation:
    """Evaluates the held-out prompts of a run with its scorer, and its benchmarks with one for their answers.

    The latter has processes of its own until `close`. There is none without benchmarks.
    """

    def __init__(
        self, config: Config, prompts: PromptSets, generate: Generate, scorer: HeldOutScorer, complete: Generate
    ) -> None:
        """`generate` gives the completions of held-out prompts, or episodes; `complete` those of benchmarks."""
        self._config, self._prompts = config, prompts
        self._generate, self._held_out, self._complete = generate, scorer, complete
        self._scorer = RewardScorer(scoring(config.rewards), config.data.format) if prompts.benchmarks else None

    async def run(self, step: int) -> EvaluationRecord:
        """Evaluate all prompts after `step`. Raises DivergedError as `evaluate`."""
        began, sets = time.perf_counter(), self._prompts
        samples = self._config.evaluation.samples
        with counted_for(PURPOSE):
            held_out, *others = await together(
                [
                    self._results(sets.held_out, samples, self._generate, self._held_out.score),
                    *(self._results(b.prompts, b.samples, self._complete, self._score) for b in sets.benchmarks),
                ]
            )
        found = {b.name: results for b, results in zip(sets.benchmarks, others, strict=True) if results is not None}
        return EvaluationRecord(
            step=step,
            accuracy=held_out.accuracy if held_out else None,
            accuracy_by_difficulty=held_out.accuracy_by_difficulty if held_out else {},
            samples=held_out.samples if held_out else 0,
            failed=held_out.failed if held_out else 0,
            completions_mean_length=held_out.mean_length if held_out else None,
            runtime=time.perf_counter() - began,
            benchmark_accuracy={name: results.accuracy for name, results in found.items()},
            benchmark_pass_at_k={name: results.pass_at_k for name, results in found.items()},
            benchmark_samples={name: results.samples for name, results in found.items()},
            benchmark_failed={name: results.failed for name, results in found.items()},
            benchmark_completions_mean_length={name: results.mean_length for name, results in found.items()},
            benchmark_completions_clipped_ratio={name: results.clipped_ratio for name, results in found.items()},
            **judge_metrics(self._held_out.consumption(PURPOSE)),
        )

    def notices(self) -> tuple[str, ...]:
        """The notices of the scorer of benchmarks since the last call."""
        return () if self._scorer is None else self._scorer.notices()

    def close(self) -> None:
        """End the scoring processes of benchmarks."""
        if self._scorer is not None:
            self._scorer.close()

    @property
    def _score(self) -> Score:
        """That of benchmarks."""
        assert self._scorer is not None
        return self._scorer.score

    async def _results(
        self, prompts: Sequence[Prompt], samples: int, generate: Generate, score: Score
    ) -> Results | None:
        """The results of `samples` completions of each prompt; None if there are no prompts."""
        if not prompts:
            return None
        settings = self._config.evaluation.model_copy(update={"samples": samples})
        return await evaluate(
            prompts,
            settings,
            generate,
            score,
            max_new_tokens=self._config.rollout.max_new_tokens,
            seed=self._config.run.seed,
        )
