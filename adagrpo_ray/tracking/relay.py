"""Between a run and a tracker: the run never waits for it, and continues without it where it fails."""

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
"""Things that a tracker may lag behind by: then it hangs, or takes less than the run gives."""

END_S = 30.0
"""Seconds for all that is left, at the end of a run."""

ABANDON_S = 20.0
"""Seconds for a tracker that is let go to end what is left of it."""

TABLES = 50
"""Steps of a run whose samples are handed over, at most: each makes a table of its own."""

STEP_TAG, EVALUATION_TAG = "step_time", "eval/accuracy"
"""A curve that every step has, and one that every evaluation has."""

Note = Callable[[str, object], None]


class Relay(Observer):
    """Hands over to a tracker, in a thread of its own, what it is told.

    A tracker that raises or falls behind is let go: `tell` hears of it once, and nothing more is handed over. What
    befalls the tracker is told when the run tells something next, in the run's own thread. The tracker is opened when
    there is something to show.
    """

    def __init__(
        self,
        tracker: Tracker,
        run: TrackedRun,
        past: RunHistory | None,
        tell: Callable[[str], None],
        note: Note,
    ) -> None:
        """Begin; `past` is what the run has behind it, of which the tracker gets what it has not seen."""
        self._tracker, self._run, self._past, self._tell, self._note = tracker, run, past, tell, note
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._notices: deque[str] = deque()
        self._given_up = False
        self._state: State = "finished"
        steps = run.config.run.steps
        self._tables = {max(1, round(number * steps / TABLES)) for number in range(1, TABLES + 1)}
        self._thread = Thread(target=self._work, name=f"tracking-{tracker.title}", daemon=True)
        self._thread.start()

    def phase(self, text: str) -> None:
        """Nothing of its own."""
        self._say()

    def step(self, record: StepRecord) -> None:
        """Hand the step over."""
        self._put(partial(self._step, record))

    def evaluation(self, label: str, record: EvaluationRecord) -> None:
        """Hand the evaluation over."""
        self._put(partial(self._evaluation, record))

    def samples(self, groups: Sequence[GroupSample]) -> None:
        """Hand the samples over, of the steps that get a table."""
        self._put(partial(self._samples, tuple(groups)))

    def summary(self, summary: Summary) -> None:
        """Hand the summary over, and the adapter where it is wanted."""
        adapter = str(summary.adapter) if self._run.config.tracking.upload_adapter else None
        self._put(partial(self._tracker.summary, summary, adapter))

    def end(self, state: State) -> None:
        """Hand over how the run ended; returns at once."""
        self._state = state
        self._jobs.put(None)

    def wait(self, deadline: float) -> None:
        """Wait for what is left, until `deadline` of `time.monotonic`."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._let_go("it has not taken everything in time after the end of the run")
        self._say()

    def _put(self, job: Callable[[], None]) -> None:
        if not self._given_up:
            self._jobs.put(job)
            if self._jobs.qsize() > MOST_WAITING:
                self._let_go(f"it is {MOST_WAITING} records behind", wait=False)
        self._say()

    def _work(self) -> None:
        try:
            first = self._jobs.get()
            if first is None:
                return
            where, note = self._tracker.open(self._run)
            self._note(self._tracker.title, dict(note))
            self._notices.append(f"{self._tracker.title}: {where}")
            self._replay()
            job: Callable[[], None] | None = first
            while job is not None and not self._given_up:
                job()
                job = self._jobs.get()
            if not self._given_up:
                self._tracker.close(self._state)
        except BaseException as error:  # whatever a package raises, SystemExit among it
            self._let_go(first_line(error))

    def _replay(self) -> None:
        """Tell the tracker what the folder held when this program began, in the order in which it was told."""
        if self._past is None:
            return
        evaluated = {record.step: record for record in self._past.evaluations}
        samples: dict[int, list[GroupSample]] = {}
        for group in self._past.samples:
            samples.setdefault(group.step, []).append(group)
        for number, record in enumerate((None, *self._past.steps)):
            if self._given_up:
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

    def _let_go(self, reason: str, *, wait: bool = True) -> None:
        if self._given_up:
            return
        self._given_up = True
        self._notices.append(f"warning: {self._tracker.title} is let go, the run continues without it: {reason}")
        ending = Thread(target=self._abandon, daemon=True)
        ending.start()
        if wait:
            ending.join(ABANDON_S)

    def _abandon(self) -> None:
        with suppress(BaseException):  # as in _work
            self._tracker.abandon()

    def _say(self) -> None:
        while self._notices:
            self._tell(self._notices.popleft())
