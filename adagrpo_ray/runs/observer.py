"""How a run is told to whoever wants to know, and the fan-out to several observers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from adagrpo_ray.config.tree import Config
from adagrpo_ray.runs.records import EvaluationRecord, StepRecord
from adagrpo_ray.runs.samples import GroupSample
from adagrpo_ray.runs.summary import Summary


class Observer:
    """Whoever wants to know how a run goes: override what you want to be told.

    All methods are called in the program that trains, which waits for them; what they raise ends the run. Where a
    learner rank died, or a run is resumed, steps after the last checkpoint are told again.
    """

    def began(self, config: Config, folder: str) -> None:
        """A run begins, or goes on with `--resume`; `folder` is where it is kept, a path or a URL."""

    def phase(self, text: str) -> None:
        """A part of the run begins that may take a while: 'starting 2 rollout actors ...'."""

    def step(self, record: StepRecord) -> None:
        """A training step is done."""

    def samples(self, groups: Sequence[GroupSample]) -> None:
        """Groups of the step just told, in full: `run.samples_per_step` of them, or fewer, or none."""

    def evaluation(self, label: str, record: EvaluationRecord) -> None:
        """The held-out prompts were evaluated; `label` says when, such as 'before' or 'after'."""

    def summary(self, summary: Summary) -> None:
        """All steps are done, and the adapter is written."""

    def ended(self, error: BaseException | None) -> None:
        """The run is over, and this is the last that is told of it; `error` is what ended it, None where all went well.

        Told of every run that began, one that was stopped or interrupted too.
        """


class Observers(Observer):
    """Several observers as one, told in the order given. Put first the one that keeps things."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def began(self, config: Config, folder: str) -> None:
        """Tell all of them."""
        for observer in self._observers:
            observer.began(config, folder)

    def phase(self, text: str) -> None:
        """Tell all of them."""
        for observer in self._observers:
            observer.phase(text)

    def step(self, record: StepRecord) -> None:
        """Tell all of them."""
        for observer in self._observers:
            observer.step(record)

    def samples(self, groups: Sequence[GroupSample]) -> None:
        """Tell all of them."""
        for observer in self._observers:
            observer.samples(groups)

    def evaluation(self, label: str, record: EvaluationRecord) -> None:
        """Tell all of them."""
        for observer in self._observers:
            observer.evaluation(label, record)

    def summary(self, summary: Summary) -> None:
        """Tell all of them."""
        for observer in self._observers:
            observer.summary(summary)

    def ended(self, error: BaseException | None) -> None:
        """Tell all of them, also where one raises: each may have something to close."""
        with ExitStack() as stack:
            for observer in reversed(self._observers):
                stack.callback(observer.ended, error)


@contextmanager
def telling(observer: Observer, config: Config, folder: str) -> Iterator[None]:
    """Tell `observer` that a run in `folder` began, and at the end how the block ended."""
    try:
        observer.began(config, folder)
        yield
    except BaseException as error:
        with suppress(Exception):  # that error is what has to be heard
            observer.ended(error)
        raise
    observer.ended(None)
