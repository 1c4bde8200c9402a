"""The learner ranks as the trainer calls them: rank 0 collects and evaluates, all ranks do the rest together."""

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
    """Handles of the ranks. Every method raises the errors of `LearnerActor`, and LearnerLostError if a rank died."""

    def __init__(self, ranks: Sequence[Any], stop: Stop, notify: Callable[[str], None]) -> None:
        """`notify` gets the notices of rollouts and scoring; once `stop` is set, rank 0 is not waited for any more."""
        self._ranks, self._stop, self._notify = ranks, stop, notify

    def collect(self, step: int, last: int) -> Collected:
        """The batches of a step, while the sampling of steps up to `last` begins; StoppedError on `stop`."""
        collected: Collected = self._patiently("collect", step, last)
        return collected

    def evaluate(self, step: int) -> EvaluationRecord:
        """Accuracy on the held-out prompts after `step`; StoppedError on `stop`."""
        record: EvaluationRecord = self._patiently("evaluate", step)
        return record

    def abandon(self) -> None:
        """Give up the sampling in flight on rank 0."""
        get(self._ranks[0].abandon.remote())

    def train(self, batches: Sequence[Any]) -> list[TrainReport]:
        """The updates on a step's batches, one a rank."""
        return self._answers([rank.train.remote(batch) for rank, batch in zip(self._ranks, batches, strict=True)])

    def sync(self, version: int) -> SyncReport:
        """Send the adapter to all rollout actors, as `version`."""
        report: SyncReport = self.on_all("sync", version)[0]
        return report

    def on_all(self, method: str, *arguments: Any) -> list[Any]:
        """The ranks' answers to a method of `LearnerActor` that all of them work on together."""
        return self._answers([getattr(rank, method).remote(*arguments) for rank in self._ranks])

    def _answers(self, calls: list[Any]) -> list[Any]:
        """The ranks' answers. If one dies, others may fail first because its messages do not come."""
        try:
            answers: list[Any] = get(calls)
            return answers
        except LearnerLostError:
            raise
        except AdaGRPOError as error:
            if len(self._ranks) > 1 and any_dead(self._ranks, within_s=5.0):
                raise LearnerLostError("a learner rank died") from error
            raise

    def _patiently(self, method: str, *arguments: Any) -> Any:
        """Rank 0's answer to a call that may take long; StoppedError once the run is to stop."""
        while not self._stop.is_set():
            answer = get(getattr(self._ranks[0], method).remote(*arguments))
            for notice in getattr(answer, "notices", ()):
                self._notify(notice)
            if not isinstance(answer, Pending):
                return answer
        raise StoppedError("stopped as asked")
