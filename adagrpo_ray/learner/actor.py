"""The Ray actor of one learner rank: its engine and, on rank 0, the collector."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from typing import Any

import torch

from adagrpo_ray.checkpoint.files import Progress
from adagrpo_ray.cluster.environment import collector_off
from adagrpo_ray.cluster.network import use_node_address
from adagrpo_ray.cluster.placement import Placement
from adagrpo_ray.config.tree import Config
from adagrpo_ray.data.prompts import PromptSets
from adagrpo_ray.extensions.given import NOTHING, Given
from adagrpo_ray.learner.background import Background
from adagrpo_ray.learner.collector import Collector
from adagrpo_ray.learner.cuda_memory import release
from adagrpo_ray.learner.engine import LearnerEngine
from adagrpo_ray.learner.engine_state import check_adapter
from adagrpo_ray.learner.gather import listen
from adagrpo_ray.learner.replies import Collected, Pending, SyncReport
from adagrpo_ray.learner.saving import load_checkpoint, save_adapter, save_checkpoint
from adagrpo_ray.learner.updates import TrainReport
from adagrpo_ray.lora.payload import pack
from adagrpo_ray.model.node_files import ModelFiles
from adagrpo_ray.rollout.fleet import Fleet
from adagrpo_ray.runs.records import EvaluationRecord


class LearnerActor:
    """One rank. `start` creates its engine; on rank 0 `open` creates the fleet and `attach` the collector.

    `start` and `attach` begin a run. Called again, they begin another run on the same fleet. Rank 0 owns the rollout
    actors of the fleet, so they end with it. `collect`, `evaluate` and `abandon` run on rank 0 only, the other methods
    on all ranks together. No method is a coroutine: a single one would make Ray run every method in an event loop.
    """

    def __init__(self) -> None:
        # The parts that exist, with their clean-up.
        self._of_run, self._of_engine, self._of_actor = ExitStack(), ExitStack(), ExitStack()
        self._shared = False  # whether a rollout actor is on the same GPU

    def address(self) -> tuple[str, int]:
        """Reserve a port for the process group of the ranks; returns an address of this node, and the port."""
        host = use_node_address()
        return host, listen(host)

    def open(
        self, config: Config, placement: Placement, model: Any, max_model_len: int, home: str | None = None
    ) -> None:
        """Request the rollout actors, on rank 0, and return at once.

        `model[0]` is a reference to ModelFiles, and `home` the run folder for the logs of vLLM.
        """
        self._shared = placement.shared
        self._background = Background()
        self._of_actor.callback(self._background.close)
        self._fleet = Fleet(config, placement, model[0], max_model_len, home)
        self._of_actor.callback(lambda: self._background.run(self._fleet.close()))
        self._background.run(self._fleet.open())

    def ready(self) -> None:
        """Wait until the first `rollout.actors` rollout actors work; raises their errors."""
        self._background.run(self._fleet.ready())

    def start(self, config: Config, rank: int, model: ModelFiles, master: tuple[str, int]) -> None:
        """Load the model and join the process group at `master` (address, port); returns when all ranks have joined.

        The engine of an earlier run is freed first.
        """
        self._config, self._rank, self._model = config, rank, model
        use_node_address()
        self._of_engine.close()
        with collector_off():
            self._engine = LearnerEngine(model.here(), config, rank, config.learner.ranks, master)
        self._of_engine.callback(self._free_engine)
        self._return_memory()

    def attach(self, prompts: PromptSets, given: Given = NOTHING) -> None:
        """Create the collector on rank 0 from the prompts and the functions that were given to the run."""
        self._of_run.close()
        engine = self._engine
        self._collector = Collector(
            self._config,
            self._background,
            self._fleet,
            prompts,
            engine.packing,
            given,
            engine.notices,
            self._model,
        )
        self._of_run.callback(lambda: self._background.run(self._fleet.end_run()))
        self._of_run.callback(self._collector.close)

    def collect(self, step: int, last: int) -> Collected | Pending:
        """The batches of a step; also begins to sample the next steps up to `last`."""
        return self._collector.collect(step, last)

    def train(self, batch: Any) -> TrainReport:
        """Make the optimizer steps on a batch, on all ranks together.

        With `rollout.sleep` the rollout actor sleeps meanwhile. It is awake afterwards, and needs a `sync`. On a shared
        GPU the memory that the updates took is returned before it wakes.
        """
        with self._collector.asleep() if self._config.rollout.sleep else nullcontext():
            try:
                return self._engine.train(batch)
            finally:
                self._return_memory()

    def sync(self, version: int, wait: bool = True) -> SyncReport | None:
        """Send the adapter to all rollout actors as `version`. All ranks gather it, and rank 0 sends it.

        Without `wait` it is sent in the background; rollouts and evaluations that begin later wait for it, and so does
        the next sync. Raises DivergedError if a number in it is not finite.
        """
        tensors = self._engine.adapter()
        if self._rank != 0:
            return None
        check_adapter(tensors, version, self._config.learner.learning_rate)
        lora, dtype = self._config.model.lora, getattr(torch, self._config.model.dtype)
        weights = pack(version, tensors, lora.r, lora.alpha, dtype)
        seconds = self._collector.send(weights, wait=wait)
        return SyncReport(version, weights.data.nbytes, seconds)

    def evaluate(self, step: int) -> EvaluationRecord | Pending:
        """Results on the held-out prompts and the benchmarks after `step`."""
        return self._collector.evaluate(step)

    def abandon(self) -> None:
        """Cancel the sampling in flight, as in `Collector.abandon`."""
        self._collector.abandon()

    def save_adapter(self, folder: str, card: str) -> None:
        """Write the adapter in PEFT's layout, with its model card. All ranks gather it, and rank 0 writes it."""
        tensors = self._engine.adapter()
        if self._rank == 0:
            save_adapter(folder, self._engine, tensors, card, self._model.template)

    def save_checkpoint(self, folder: str, progress: Progress, accuracies: Mapping[int, float]) -> None:
        """Write a checkpoint into `folder`, between two steps. All ranks gather the state, and rank 0 writes it.

        `accuracies` select the checkpoints to keep, as in `checkpoint.save`.
        """
        engine = self._engine.snapshot()
        if engine is not None:
            limit = self._config.checkpoint.save_total_limit
            save_checkpoint(folder, engine, self._collector.state(), progress, limit, accuracies)

    def load_checkpoint(self, path: str) -> None:
        """Restore the state of the checkpoint at `path`, which every rank reads."""
        engine, sampler, arrays = load_checkpoint(path)
        self._engine.restore(engine)
        if self._rank == 0:
            self._collector.restore(sampler, arrays)

    def stop(self) -> None:
        """Cancel the sampling in flight, and end the rollout actors and the scoring processes."""
        self._of_run.close()
        self._of_actor.close()

    def _free_engine(self) -> None:
        self._engine.close()
        del self._engine
        gc.collect()  # the objects of DeepSpeed refer to each other
        release()

    def _return_memory(self) -> None:
        if self._shared:
            release()
