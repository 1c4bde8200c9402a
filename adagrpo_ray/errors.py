"""Every exception that this library raises on purpose.

AdaGRPOError
├── ConfigError      a setting is unknown, has a bad value, or does not fit another one
├── DataError        a data set cannot be read, or a row or column is not what was promised
├── ModelError       a model, tokenizer or adapter cannot be loaded
├── RewardError      a reward function cannot be imported, or broke its contract
├── ExtensionError   a criterion, ladder or callback of the user's own raised, or broke its contract
├── ResourceError    the machine or cluster cannot hold what the configuration asks for
├── RolloutError     a rollout actor could not serve a request
│   └── ActorLostError   a rollout actor or its engine is gone; another one can serve the request
├── LearnerLostError a learner rank is gone; the run can go on from its last checkpoint
├── DivergedError    updates were skipped one after the other, or weights are not finite
├── SyncError        a rollout actor does not hold the weights that the learner sent
├── CheckpointError  a checkpoint cannot be written, is damaged, or does not fit the run
├── RecordError      a metric is infinite or NaN, which is a fault of this library
├── HistoryError     a run folder cannot be read back, or is none
├── ChatError        a message cannot be answered, or a conversation cannot be kept
├── TrackingError    a tracker cannot take the run, which continues without it
└── StoppedError     the run was asked to stop, and did

Messages are one sentence that names the key or file, the value, and what to do. They take a single
string, so that Ray can carry them between processes.
"""

import re
from itertools import takewhile


class AdaGRPOError(Exception):
    """Base of all errors of this library."""


class ConfigError(AdaGRPOError, ValueError):
    """A setting is unknown, has a bad value, or does not fit another one."""


class DataError(AdaGRPOError, ValueError):
    """A data set cannot be read, or a row or column is not what was promised."""


class ModelError(AdaGRPOError, ValueError):
    """A model, tokenizer or adapter cannot be loaded."""


class RewardError(AdaGRPOError, ValueError):
    """A reward function cannot be imported, or broke its contract."""


class ExtensionError(AdaGRPOError, RuntimeError):
    """A criterion, ladder or callback of the user's own raised, or broke its contract."""


class ResourceError(AdaGRPOError, RuntimeError):
    """The machine or cluster cannot hold what the configuration asks for."""


class RolloutError(AdaGRPOError, RuntimeError):
    """A rollout actor could not serve a request."""


class ActorLostError(RolloutError):
    """A rollout actor or its engine is gone; another one can serve the request."""


class LearnerLostError(AdaGRPOError, RuntimeError):
    """A learner rank is gone; the run can go on from its last checkpoint."""


class DivergedError(AdaGRPOError, ArithmeticError):
    """Updates were skipped one after the other because numbers in them were not finite, or weights are not finite."""


class SyncError(AdaGRPOError, RuntimeError):
    """A rollout actor does not hold the weights that the learner sent."""


class CheckpointError(AdaGRPOError, RuntimeError):
    """A checkpoint cannot be written, is damaged, or does not fit the run."""


class RecordError(AdaGRPOError, ValueError):
    """A metric is infinite or NaN, which is a fault of this library."""


class HistoryError(AdaGRPOError, ValueError):
    """A run folder cannot be read back, or is none."""


class ChatError(AdaGRPOError, ValueError):
    """A message cannot be answered, or a conversation cannot be kept."""


class TrackingError(AdaGRPOError, RuntimeError):
    """A tracker cannot take the run, which continues without it."""


class StoppedError(AdaGRPOError):
    """The run was asked to stop, and did."""


def first_line(error: BaseException) -> str:
    """What an error of another library says, or its name and arguments: one line of at most 300 characters.

    That is its first line, with the next one if the first only announces it. Of pydantic's errors it is what stands
    below their heading "1 validation error for ...".
    """
    lines = [line.strip() for line in (str(error).strip() or repr(error)).splitlines() if line.strip()]
    if _HEADING.search(lines[0]):
        told = " ".join(takewhile(lambda line: not line.startswith(_PAGE), lines[1:]))
        lines[0] = _DETAILS.sub("", told).replace("Value error, ", "") or lines[0]
    elif lines[0].endswith(":") and len(lines) > 1:
        lines[0] += f" {lines[1]}"
    return lines[0][:300]


_HEADING = re.compile(r"\d+ validation errors? for ")
_PAGE = "For further information visit"
_DETAILS = re.compile(r"\s*\[type=\w+(?:, input_value=.*)?\]\s*$", re.DOTALL)
