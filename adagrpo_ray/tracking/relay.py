"""Passes a run's records to a tracker, so that the run never waits for it, and continues without it if it fails."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from threading import Thread

from adagrpo_ray.errors import first_line
from adagrpo_ray.runs.metric import scalars
from adagrpo_ray.runs.observer import Observer
from adagrpo_ray.runs.reader import RunHistory
from adagrpo_ray.runs.records import EvaluationRecord, StepRecord
from adagrpo_ray.runs.samples import GroupSample
from adagrpo_ray.runs.summary import Summary
from adagrpo_ray.tracking.tracker import State, TrackedRun, Tracker

MOST_WAITING = 2000
"""Largest number of records that a tracker may be behind. A tracker that is further behind hangs or is too slow."""

END_S = 30.0
"""Seconds for all remaining records at the end of a run."""

ABANDON_S = 20.0
"""Seconds for a tracker to clean up after it was disabled."""

TABLES = 50
"""Largest number of steps whose samples are passed on; the samples of each step make a table."""

STEP_TAG, EVALUATION_TAG = "step_time", "eval/accuracy"
"""A curve with a point for every step, and one with a point for every evaluation."""

Note = Callable[[str, object], None]


class Relay(Observer):
    """Passes the events of a run to a tracker, in a thread of its own.

    A tracker that raises or falls behind is disabled: `notify` receives one warning, and the tracker gets no more
    records. `notify` is called in the run's thread, at the next event of the run. The tracker is opened at the first
    record.
    """

    def __init__(
        self,
        tracker: Tracker,
        run: TrackedRun,
        past: RunHistory | None,
        notify: Callable[[str], None],
        note: Note,
    ) -> None:
        """Start the thread.

        past: the history of a resumed run, of which the tracker gets the records that it does not have.
        note: stores the tracker's note in the run folder, by the tracker's title.
        """
        self._tracker, self._run, self._past, self._notify, self._note = tracker, run, past, notify, note
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._notices: deque[str] = deque()
        self._disabled = False
        self._state: State = "finished"
        steps = run.config.run.steps
        self._tables = {max(1, round(number * steps / TABLES)) for number in range(1, TABLES + 1)}
        self._thread = Thread(target=self._work, name=f"tracking-{tracker.title}", daemon=True)
        self._thread.start()

    def phase(self, text: str) -> None:
        """Only forward notices; a tracker shows no phases."""
        self._forward_notices()

    def step(self, record: StepRecord) -> None:
        """Pass on the step."""
        self._put(partial(self._step, record))

    def evaluation(self, label: str, record: EvaluationRecord) -> None:
        """Pass on the evaluation."""
        self._put(partial(self._evaluation, record))

    def samples(self, groups: Sequence[GroupSample]) -> None:
        """Pass on the samples of a step that gets a table."""
        self._put(partial(self._samples, tuple(groups)))

    def summary(self, summary: Summary) -> None:
        """Pass on the summary, and the adapter if `tracking.upload_adapter` is true."""
        adapter = str(summary.adapter) if self._run.config.tracking.upload_adapter else None
        self._put(partial(self._tracker.summary, summary, adapter))

    def end(self, state: State) -> None:
        """Pass on how the run ended, without waiting."""
        self._state = state
        self._jobs.put(None)

    def wait(self, deadline: float) -> None:
        """Wait until the tracker has all records, at most until `deadline`, a time of `time.monotonic`."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._disable("it did not accept all records in time")
        self._forward_notices()

    def _put(self, job: Callable[[], None]) -> None:
        if not self._disabled:
            self._jobs.put(job)
            if self._jobs.qsize() > MOST_WAITING:
                self._disable(f"it is {MOST_WAITING} records behind", wait=False)
        self._forward_notices()

    def _work(self) -> None:
        try:
            first = self._jobs.get()
            if first is None:
                return
            place, note = self._tracker.open(self._run)
            self._note(self._tracker.title, dict(note))
            self._notices.append(f"{self._tracker.title}: {place}")
            self._replay()
            job: Callable[[], None] | None = first
            while job is not None and not self._disabled:
                job()
                job = self._jobs.get()
            if not self._disabled:
                self._tracker.close(self._state)
        except BaseException as error:  # a package may raise anything, even SystemExit
            self._disable(first_line(error))

    def _replay(self) -> None:
        """Pass on the records of earlier programs, in their order; the tracker skips those that it has."""
        if self._past is None:
            return
        evaluated = {record.step: record for record in self._past.evaluations}
        samples: dict[int, list[GroupSample]] = {}
        for group in self._past.samples:
            samples.setdefault(group.step, []).append(group)
        for number, record in enumerate((None, *self._past.steps)):
            if self._disabled:
                return
            if record is not None:
                self._step(record)
            self._samples(tuple(samples.get(number, ())))
            if number in evaluated:
                self._evaluation(evaluated[number])

    def _step(self, record: StepRecord) -> None:
        self._scalars(STEP_TAG, scalars(record), record.step)

    def _evaluation(self, record: EvaluationRecord) -> None:
        self._scalars(EVALUATION_TAG, scalars(record), record.step)

    def _scalars(self, tag: str, values: dict[str, float], step: int) -> None:
        if not self._tracker.has(tag, step):
            self._tracker.scalars(values, step)

    def _samples(self, groups: tuple[GroupSample, ...]) -> None:
        if groups and groups[0].step in self._tables and not self._tracker.has(STEP_TAG, groups[0].step):
            self._tracker.samples(groups, groups[0].step)

    def _disable(self, reason: str, *, wait: bool = True) -> None:
        if self._disabled:
            return
        self._disabled = True
        self._notices.append(f"warning: {self._tracker.title} is disabled, the run continues without it: {reason}")
        ending = Thread(target=self._abandon, daemon=True)
        ending.start()
        if wait:
            ending.join(ABANDON_S)

    def _abandon(self) -> None:
        with suppress(BaseException):  # as in _work
            self._tracker.abandon()

    def _forward_notices(self) -> None:
        while self._notices:
            self._notify(self._notices.popleft())
