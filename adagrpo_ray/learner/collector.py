"""The sampling of one run on rank 0: batches from groups, evaluations, and syncs of the adapter."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from adagrpo_ray.algorithm.methods import make_method
from adagrpo_ray.checkpoint.sampler_state import from_plain, to_plain
from adagrpo_ray.config.data import PLAIN
from adagrpo_ray.config.learner import Packing
from adagrpo_ray.config.tree import Config
from adagrpo_ray.data.order import PromptOrder
from adagrpo_ray.data.prompts import PromptSets
from adagrpo_ray.environments.episodes import with_environment
from adagrpo_ray.extensions.given import NOTHING, Given
from adagrpo_ray.learner.background import Background
from adagrpo_ray.learner.collected import collected
from adagrpo_ray.learner.delivery import Delivery
from adagrpo_ray.learner.replies import Collected, Pending
from adagrpo_ray.lora.payload import AdapterWeights
from adagrpo_ray.model.node_files import ModelFiles
from adagrpo_ray.rewards.scorer import RewardScorer
from adagrpo_ray.rollout.endings import Endings
from adagrpo_ray.rollout.fleet import Fleet
from adagrpo_ray.runs.group_codec import Arrays
from adagrpo_ray.runs.records import EvaluationRecord
from adagrpo_ray.sampling.collection import Collection
from adagrpo_ray.sampling.evaluation import Evaluation
from adagrpo_ray.sampling.sampler import AdaptiveSampler

POLL_S = 1.0
"""The longest time in seconds that `collect` and `evaluate` block, and thus delay a request to stop."""


class Collector:
    """Sampler, scorer and evaluation of one run, on the rollout actors of a fleet that may serve several runs.

    Its coroutines run in `background`, so that the next steps are sampled while the learner trains on this one. Its
    scoring processes exist until `close`.
    """

    def __init__(
        self,
        config: Config,
        background: Background,
        fleet: Fleet,
        prompts: PromptSets,
        packing: Packing,
        given: Given = NOTHING,
        notices: tuple[str, ...] = (),
        model: ModelFiles | None = None,
    ) -> None:
        """Prepare the sampling of a run; `notices` are passed on with those of the first reply.

        Episodes need the tokenizer of the `model`. Raises ConfigError if the criterion or the ladder cannot be loaded
        or called.
        """
        self._config, self._background, self._fleet = config, background, fleet
        self._prompts, self._packing, self._first_notices = prompts, packing, notices
        self._delivery = Delivery(background, fleet.pool)
        self._method = make_method(config.algorithm, config.rewards.names, given)
        self._endings = Endings(config.rollout.max_new_tokens, plain=config.data.chat_template == PLAIN)
        every, watched = (*prompts.train, *prompts.held_out), self._endings.watched(fleet.pool.generate)
        scorer = RewardScorer(config.rewards, config.data.format, given)
        self._generate, self._scorer = with_environment(config, model, every, watched, scorer, given)
        self._sampler = AdaptiveSampler(
            config.algorithm,
            self._method,
            PromptOrder(prompts.train, config.run.seed, config.data.shuffle, prompts.template),
            self._generate,
            self._scorer.score,
            max_new_tokens=config.rollout.max_new_tokens,
            seed=config.run.seed,
            drop_failed=config.rewards.on_error == "drop",
        )
        self._evaluation = Evaluation(config, prompts, self._generate, self._scorer, watched)
        self._collections: dict[int, asyncio.Task[Collection]] = {}  # in flight, by step
        self._asked = defaultdict[int, asyncio.Event](asyncio.Event)  # by step; set while `collect` waits for it
        self._evaluations: dict[int, asyncio.Task[EvaluationRecord]] = {}

    def collect(self, step: int, last: int) -> Collected | Pending:
        """Sample the groups of a step, with their resamples, and make the batch of each rank from them.

        Also begins to sample the next steps up to `last`, which continues after the return. A step begins when the
        version that was sent last has arrived, and ends only within its own call, so that `abandon` can undo it before.
        Raises the error of a version that could not be sent.
        """
        self._delivery.check()
        self._background.call(self._asked[step].set)
        for begun in range(step, last + 1):
            if begun not in self._collections:
                sampling = self._delivery.after(partial(self._sampler.collect, begun, self._asked[begun]))
                self._collections[begun] = self._background.start(sampling)
        self._background.wait(self._collections[step], POLL_S)
        self._background.call(self._asked[step].clear)
        if not self._collections[step].done():
            return Pending(self._notices())
        del self._asked[step]
        return collected(
            step,
            self._collections.pop(step).result(),
            self._config,
            self._method,
            self._packing,
            rollout_actors=len(self._fleet.pool.members),
            rollout_restarts=self._fleet.restarts,
            consumption=self._scorer.consumption(),
            notices=(*self._notices(), *self._endings.notices()),
        )

    def evaluate(self, step: int) -> EvaluationRecord | Pending:
        """Evaluate the held-out prompts and the benchmarks after `step`, with the version that was sent last."""
        if step not in self._evaluations:
            evaluation = self._delivery.after(partial(self._evaluation.run, step))
            self._evaluations[step] = self._background.start(evaluation)
        done = self._background.wait(self._evaluations[step], POLL_S)
        # Return notices first: after the last evaluation there is no further call to return them.
        notices = (*self._notices(), *(self._endings.notices() if done else ()))
        if notices or not done:
            return Pending(notices)
        return self._evaluations.pop(step).result()

    def abandon(self) -> None:
        """Cancel the sampling in flight, and wait until no version of the adapter is on its way.

        For the next step and for a checkpoint it is as if the sampling had never begun.
        """
        self._background.cancel([*self._collections.values(), *self._evaluations.values()])
        self._collections, self._evaluations = {}, {}
        self._delivery.settle()

    def send(self, weights: AdapterWeights, *, wait: bool) -> float:
        """Send a version of the adapter to all rollout actors, as in `Delivery.send`."""
        return self._delivery.send(weights, wait=wait)

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """Let the rollout actors sleep within the block; after it they are awake and need a version to serve again."""
        self._background.run(self._fleet.pool.sleep())
        try:
            yield
        finally:
            self._background.run(self._fleet.pool.wake())

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """The sampler's state for a checkpoint as JSON values and arrays by name; exact between two steps."""
        return to_plain(self._sampler.state_dict())

    def restore(self, plain: dict[str, Any], arrays: Arrays) -> None:
        """Restore a result of `state`. Raises CheckpointError if it does not fit the prompts."""
        prompts = {prompt.id: prompt for prompt in self._prompts.train}
        self._sampler.load_state_dict(from_plain(plain, arrays, prompts))

    def close(self) -> None:
        """Cancel the sampling in flight, and end the scoring processes."""
        self.abandon()
        self._scorer.close()
        self._evaluation.close()

    def _notices(self) -> tuple[str, ...]:
        first, self._first_notices = self._first_notices, ()
        return (*first, *self._fleet.notices(), *self._scorer.notices(), *self._evaluation.notices())
