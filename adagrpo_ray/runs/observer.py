"""The interface through which a run reports its events, and the forwarding to several observers and to callbacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from adagrpo_ray.config.tree import Config
from adagrpo_ray.errors import ExtensionError
from adagrpo_ray.extensions.loading import describe_error
from adagrpo_ray.runs.records import EvaluationRecord, StepRecord
from adagrpo_ray.runs.samples import GroupSample
from adagrpo_ray.runs.summary import Summary


class Observer:
    """Receives the events of a run. Override the methods that you need.

    All methods are called in the training program, which waits for them; an exception in one ends the run. After a
    learner rank died, or when a run is resumed, the steps after the last checkpoint are reported again.
    """

    def began(self, config: Config, folder: str) -> None:
        """A run begins, or continues with `--resume`. `folder` is its run folder, a path or a URL."""

    def phase(self, text: str) -> None:
        """A part of the run begins that may take a while: 'starting 2 rollout actors ...'."""

    def step(self, record: StepRecord) -> None:
        """A training step is done."""

    def samples(self, groups: Sequence[GroupSample]) -> None:
        """Groups of the step reported just before, in full: at most `run.samples_per_step` of them."""

    def evaluation(self, label: str, record: EvaluationRecord) -> None:
        """Held-out prompts and benchmarks were evaluated. `label` is the time of it, such as 'before' or 'after'."""

    def summary(self, summary: Summary) -> None:
        """All steps are done, and the adapter is written."""

    def ended(self, error: BaseException | None) -> None:
        """The run is over; `error` is the exception that ended it, None if it finished.

        This is the last event of every run that began, even of one that was stopped or interrupted.
        """


class Observers(Observer):
    """Forwards every event to several observers, in the order given. Put the one that stores events first."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def began(self, config: Config, folder: str) -> None:
        """Forward the event."""
        self._forward("began", config, folder)

    def phase(self, text: str) -> None:
        """Forward the event."""
        self._forward("phase", text)

    def step(self, record: StepRecord) -> None:
        """Forward the event."""
        self._forward("step", record)

    def samples(self, groups: Sequence[GroupSample]) -> None:
        """Forward the event."""
        self._forward("samples", groups)

    def evaluation(self, label: str, record: EvaluationRecord) -> None:
        """Forward the event."""
        self._forward("evaluation", label, record)

    def summary(self, summary: Summary) -> None:
        """Forward the event."""
        self._forward("summary", summary)

    def ended(self, error: BaseException | None) -> None:
        """Forward the event to all of them, even if one raises: each may have something to close."""
        with ExitStack() as stack:
            for observer in reversed(self._observers):
                stack.callback(observer.ended, error)

    def _forward(self, event: str, *arguments: object) -> None:
        for observer in self._observers:
            getattr(observer, event)(*arguments)


class Guarded(Observers):
    """Forwards every event to one callback of the user.

    Raises ExtensionError, which names the callback and ends the run, if the callback raises an Exception: a callback
    may enforce a condition of the run, so that its failure must not pass silently.
    """

    def __init__(self, callback: Observer) -> None:
        super().__init__(callback)
        self._name = type(callback).__name__

    def ended(self, error: BaseException | None) -> None:
        """Forward the event."""
        self._forward("ended", error)

    def _forward(self, event: str, *arguments: object) -> None:
        try:
            super()._forward(event, *arguments)
        except Exception as error:
            name = f"{self._name}.{event}"
            raise ExtensionError(f"callback {name} raised {describe_error(error)}; fix it, or leave it out") from error


@contextmanager
def run_events(observer: Observer, config: Config, folder: str) -> Iterator[None]:
    """Call `observer.began` before the block, and `observer.ended` after it, with its exception if it raised one."""
    try:
        observer.began(config, folder)
        yield
    except BaseException as error:
        with suppress(Exception):  # an observer's error must not replace the first one
            observer.ended(error)
        raise
    observer.ended(None)
