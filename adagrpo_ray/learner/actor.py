"""The Ray actor of one learner rank; rank 0 also samples, scores, and sends the adapter out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import ray

from adagrpo_ray.algorithm.methods import make_method
from adagrpo_ray.cards.card import CARD
from adagrpo_ray.checkpoint import files as checkpoint
from adagrpo_ray.checkpoint import kept
from adagrpo_ray.checkpoint.sampler_state import from_plain, to_plain
from adagrpo_ray.cluster.environment import collector_off
from adagrpo_ray.cluster.network import use_node_address
from adagrpo_ray.cluster.placement import Placement
from adagrpo_ray.config.tree import PLAIN, Config
from adagrpo_ray.data.order import PromptOrder
from adagrpo_ray.data.prompts import PromptSets
from adagrpo_ray.data.template_choice import TEMPLATE_FILE
from adagrpo_ray.errors import DivergedError
from adagrpo_ray.extensions.given import NOTHING, Given
from adagrpo_ray.learner.background import Background
from adagrpo_ray.learner.engine import EngineState, LearnerEngine
from adagrpo_ray.learner.gather import listen
from adagrpo_ray.learner.packing import pack_batches
from adagrpo_ray.learner.updates import TrainReport
from adagrpo_ray.lora.payload import pack
from adagrpo_ray.model.node_files import ModelFiles
from adagrpo_ray.rewards.scorer import RewardScorer
from adagrpo_ray.rollout.endings import Endings
from adagrpo_ray.rollout.fleet import Fleet
from adagrpo_ray.runs.records import EvaluationRecord, SamplingMetrics
from adagrpo_ray.runs.samples import GroupSample
from adagrpo_ray.sampling.batch import broken_samples, training_samples
from adagrpo_ray.sampling.collection import Collection
from adagrpo_ray.sampling.evaluate import evaluate
from adagrpo_ray.sampling.metrics import sampling_metrics
from adagrpo_ray.sampling.sample_table import group_samples
from adagrpo_ray.sampling.sampler import AdaptiveSampler
from adagrpo_ray.storage.places import outgoing

POLL_S = 1.0
"""How long `collect` and `evaluate` keep their caller waiting: so often can it tell that it wants to stop."""


@dataclass(frozen=True)
class Pending:
    """It is not done yet: ask again. `notices` are what befell rollouts and scoring since the last answer."""

    notices: tuple[str, ...]


@dataclass(frozen=True)
class Collected:
    """A step's batches, one object reference a rank, and what to report of their sampling: metrics, and some groups.

    `rollout_actors` are at work, `rollout_restarts` were replaced in this run; `notices` as in `Pending`.
    """

    batches: tuple[Any, ...]
    trained_tokens: int
    metrics: SamplingMetrics
    groups: tuple[GroupSample, ...]
    rollout_actors: int
    rollout_restarts: int
    notices: tuple[str, ...]


@dataclass(frozen=True)
class SyncReport:
    """One version that all rollout actors have proved to hold, and its size."""

    version: int
    sent_bytes: int


class LearnerActor:
    """One rank. `collect`, `evaluate` and the rest of sampling run on rank 0 alone, the others on all ranks.

    `open` comes first, on rank 0: the rollout actors are its own, so that they end with it. `start` and `attach` begin
    a run; called again they begin another one in the same process. There is no coroutine method,
    since one would make Ray run every method in an event loop; what rank 0 awaits runs in a thread
    beside, where the sampling of coming steps goes on while this one trains.
    """

    _template: str | None = None  # of data.chat_template, as text

    def address(self) -> tuple[str, int]:
        """An address of this actor's node, and a port that rank 0 gathers the others at: it is held from now on."""
        host = use_node_address()
        return host, listen(host)

    def open(self, config: Config, placement: Placement, model: Any, max_model_len: int) -> None:
        """Rank 0 asks for the rollout actors; `model` is a list of the reference to ModelFiles. Returns at once."""
        self._background = Background()
        self._fleet = Fleet(config, placement, model[0], max_model_len)
        self._background.run(self._fleet.open())

    def ready(self) -> None:
        """Wait until the rollout actors that a run begins with are at work; raises what they raised."""
        self._background.run(self._fleet.ready())

    def start(self, config: Config, rank: int, model: ModelFiles, master: tuple[str, int]) -> None:
        """Load the model and join the other ranks at `master`; returns when all are there."""
        self._config, self._rank, self._template = config, rank, model.template
        use_node_address()
        with collector_off():
            self._engine = LearnerEngine(model.here(), config, rank, config.learner.ranks, master)

    def attach(self, prompts: PromptSets, given: Given = NOTHING) -> None:
        """Rank 0 gets its prompts, and the functions that were given to the run."""
        config, algorithm = self._config, self._config.algorithm
        self._end_run()
        self._collections: dict[int, asyncio.Task[Collection]] = {}  # of the steps that have begun, by step
        self._evaluation: asyncio.Task[EvaluationRecord] | None = None
        self._prompts = prompts
        self._scorer = RewardScorer(config.rewards, config.data.format, given)
        self._endings = Endings(config.rollout.max_new_tokens, plain=config.data.chat_template == PLAIN)
        self._generate = self._endings.watched(self._fleet.pool.generate)
        self._functions = [f.function for f in config.rewards.functions]
        self._method = make_method(algorithm, self._functions, given)
        self._sampler = AdaptiveSampler(
            algorithm,
            self._method,
            PromptOrder(prompts.train, config.run.seed, config.data.shuffle, prompts.template),
            self._generate,
            self._scorer.score,
            max_new_tokens=config.rollout.max_new_tokens,
            seed=config.run.seed,
            drop_failed=config.rewards.on_error == "drop",
        )

    def collect(self, step: int, last: int) -> Collected | Pending:
        """Sample the groups of a step, resampling those that fail, and cut them into each rank's batch.

        The sampling of the coming steps up to `last` begins too, and goes on after the return.
        """
        config = self._config
        drop = self._method.drop_exhausted
        for begun in range(step, last + 1):
            if begun not in self._collections:
                self._collections[begun] = self._background.start(self._sampler.collect(begun))
        if not self._background.wait(self._collections[step], POLL_S):
            return Pending(self._notices())
        collection = self._collections.pop(step).result()
        groups = [*collection.ready, *(() if drop else collection.exhausted)]
        samples = training_samples(groups, config.algorithm, config.rollout.max_new_tokens)
        samples = (*samples, *broken_samples(collection.attempts))
        batches = pack_batches(
            step, samples, config.learner.ranks, config.learner.micro_batch_tokens, self._engine.packing
        )
        return Collected(
            batches=tuple(ray.put(batch) for batch in batches),
            trained_tokens=sum(len(s.token_ids) for s in samples),
            metrics=sampling_metrics(
                step, collection, self._functions, self._method.ladder.height, exhausted_dropped=drop
            ),
            groups=group_samples(
                step,
                collection,
                self._functions,
                config.algorithm,
                config.run.samples_per_step,
                exhausted_dropped=drop,
            ),
            rollout_actors=len(self._fleet.pool.members),
            rollout_restarts=self._fleet.restarts,
            notices=(*self._notices(), *self._endings.notices()),
        )

    def abandon(self) -> None:
        """Give up what is being sampled. The next step, and a checkpoint, find the sampler as if it had not begun."""
        running = [*self._collections.values(), *([self._evaluation] if self._evaluation else [])]
        self._background.cancel(running)
        self._collections, self._evaluation = {}, None

    def train(self, batch: Any) -> TrainReport:
        """The optimizer steps on a batch, on all ranks together; with `rollout.sleep` the rollout actor makes room.

        It is awake again afterwards, and needs a `sync`.
        """
        if not self._config.rollout.sleep:
            return self._engine.train(batch)
        self._background.run(self._fleet.pool.sleep())
        try:
            return self._engine.train(batch)
        finally:
            self._engine.release()
            self._background.run(self._fleet.pool.wake())

    def sync(self, version: int) -> SyncReport | None:
        """Send the adapter to all rollout actors as `version`; every rank helps to gather it, rank 0 sends.

        DivergedError if a number in it is not finite.
        """
        tensors = self._engine.adapter()
        if self._rank != 0:
            return None
        import torch

        if broken := [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]:
            raise DivergedError(
                f"after step {version} weights of the adapter are not finite (first: {broken[0]}); lower "
                f"learner.learning_rate={self._config.learner.learning_rate}"
            )

        lora, dtype = self._config.model.lora, getattr(torch, self._config.model.dtype)
        weights = pack(version, tensors, lora.r, lora.alpha, dtype)
        self._background.run(self._fleet.pool.apply(weights))
        return SyncReport(version, weights.data.nbytes)

    def evaluate(self, step: int) -> EvaluationRecord | Pending:
        """Accuracy on the held-out prompts after `step`."""
        if self._evaluation is None:
            self._evaluation = self._background.start(
                evaluate(
                    self._prompts.held_out,
                    self._config.evaluation,
                    self._generate,
                    self._scorer.score,
                    step=step,
                    max_new_tokens=self._config.rollout.max_new_tokens,
                    seed=self._config.run.seed,
                )
            )
        done = self._background.wait(self._evaluation, POLL_S)
        # News come first: after the last evaluation nobody asks for any more.
        notices = (*self._notices(), *(self._endings.notices() if done else ()))
        if notices or not done:
            return Pending(notices)
        ended, self._evaluation = self._evaluation, None
        return ended.result()

    def save_adapter(self, folder: str, card: str | None = None) -> None:
        """Write the adapter in PEFT's layout, with its model card and the template of `data.chat_template`.

        Every rank helps to gather it, rank 0 writes.
        """
        tensors = self._engine.adapter()
        if self._rank == 0:
            with outgoing(folder) as local:
                self._engine.save_adapter(str(local), tensors)
                if card is not None:
                    (local / CARD).write_text(card, encoding="utf-8", errors="replace")
                if self._template:
                    (local / TEMPLATE_FILE).write_text(self._template, encoding="utf-8")

    def save_checkpoint(self, folder: str, progress: checkpoint.Progress, accuracies: Mapping[int, float]) -> None:
        """Write a checkpoint into `folder`, between two steps; every rank helps to gather it, rank 0 writes.

        `accuracies` say which stay, as in `checkpoint.save`.
        """
        engine = self._engine.snapshot()
        if engine is None:
            return
        sampler, arrays = to_plain(self._sampler.state_dict())
        state = {
            **asdict(progress),
            "optimizer_steps": engine.optimizer_steps,
            "skipped_in_a_row": engine.skipped_in_a_row,
        }
        contents = {
            checkpoint.WEIGHTS: engine.weights,
            "optimizer.safetensors": engine.moments,
            "random.safetensors": engine.random,
            "sampler.safetensors": arrays,
            "sampler.json": sampler,
            checkpoint.STATE: state,
        }
        kept.save(folder, progress.step, contents, self._config.checkpoint.save_total_limit, accuracies)

    def load_checkpoint(self, path: str) -> None:
        """Go on from the checkpoint at `path`, which every rank reads."""
        files = kept.load(path)
        state = files[checkpoint.STATE]
        self._engine.restore(
            EngineState(
                weights=files[checkpoint.WEIGHTS],
                moments=files["optimizer.safetensors"],
                random=files["random.safetensors"],
                optimizer_steps=state["optimizer_steps"],
                skipped_in_a_row=state.get("skipped_in_a_row", 0),  # earlier versions did not count
            )
        )
        if self._rank == 0:
            prompts = {prompt.id: prompt for prompt in self._prompts.train}
            self._sampler.load_state_dict(from_plain(files["sampler.json"], files["sampler.safetensors"], prompts))

    def stop(self) -> None:
        """Give up what is being sampled, and end the rollout actors and the scoring processes."""
        self._end_run()
        if hasattr(self, "_fleet"):
            self._background.run(self._fleet.close())
            self._background.close()

    def _notices(self) -> tuple[str, ...]:
        return (*self._fleet.notices(), *self._scorer.notices())

    def _end_run(self) -> None:
        if hasattr(self, "_scorer"):
            self.abandon()
            self._scorer.close()
