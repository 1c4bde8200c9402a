"""Calls of the trainer to the learner ranks: rank 0 collects and evaluates, all ranks do the rest together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from adagrpo_ray.errors import AdaGRPOError, LearnerLostError, StoppedError
from adagrpo_ray.learner.replies import Collected, Pending, SyncReport
from adagrpo_ray.learner.updates import TrainReport
from adagrpo_ray.runs import EvaluationRecord
from adagrpo_ray.stop import Stop
from adagrpo_ray.training.actors import any_dead, get


class Learners:
    """Calls the ranks. Every method raises the errors of `LearnerActor`, and LearnerLostError if a rank died."""

    def __init__(self, ranks: Sequence[Any], stop: Stop, notify: Callable[[str], None]) -> None:
        """`notify` gets the notices of rollouts and scoring; once `stop` is set, no call waits for rank 0 any more."""
        self._ranks, self._stop, self._notify = ranks, stop, notify

    def collect(self, step: int, last: int) -> Collected:
        """Get the batches of a step, and begin to sample the steps up to `last`. Raises StoppedError on `stop`."""
        collected: Collected = self._until_done("collect", step, last)
        return collected

    def evaluate(self, step: int) -> EvaluationRecord:
        """Evaluate the held-out prompts and the benchmarks after `step`. Raises StoppedError on `stop`."""
        record: EvaluationRecord = self._until_done("evaluate", step)
        return record

    def abandon(self) -> None:
        """Cancel the sampling in flight on rank 0."""
        get(self._ranks[0].abandon.remote())

    def train(self, batches: Sequence[Any]) -> list[TrainReport]:
        """Make the updates on the batches of a step, one for each rank."""
        return self._replies([rank.train.remote(batch) for rank, batch in zip(self._ranks, batches, strict=True)])

    def sync(self, version: int, *, wait: bool = True) -> SyncReport:
        """Send the adapter to all rollout actors, as `version`; with `wait`, return when all of them have it."""
        report: SyncReport = self.on_all("sync", version, wait)[0]
        return report

    def on_all(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of `LearnerActor` on all ranks together; returns their replies."""
        return self._replies([getattr(rank, method).remote(*arguments) for rank in self._ranks])

    def _replies(self, calls: list[Any]) -> list[Any]:
        """Wait for the replies of the ranks. If one dies, others may fail first since its messages are missing."""
        try:
            replies: list[Any] = get(calls)
            return replies
        except LearnerLostError:
            raise
        except AdaGRPOError as error:
            if len(self._ranks) > 1 and any_dead(self._ranks, within_s=5.0):
                raise LearnerLostError("a learner rank died") from error
            raise

    def _until_done(self, method: str, *arguments: Any) -> Any:
        """Call a method of rank 0 until it is done; returns its reply. Raises StoppedError once `stop` is set."""
        while not self._stop.is_set():
            reply = get(getattr(self._ranks[0], method).remote(*arguments))
            for notice in getattr(reply, "notices", ()):
                self._notify(notice)
            if not isinstance(reply, Pending):
                return reply
        raise StoppedError("stopped as asked")
