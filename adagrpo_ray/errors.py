"""The exceptions that this library raises on purpose.

AdaGRPOError
├── ConfigError      a setting is unknown, has a bad value, or does not fit another one
├── DataError        a data set cannot be read, or a row or column is not as the settings describe it
├── ModelError       a model, tokenizer or adapter cannot be loaded
├── RewardError      a reward function cannot be imported or broke its contract, or a judge gave no score
├── ExtensionError   a criterion, ladder, callback or environment of the user raised an error, or broke its contract
├── ResourceError    the machine or cluster lacks a resource that the configuration needs
├── RolloutError     a rollout actor could not serve a request
│   ├── ActorLostError   a rollout actor or its engine is gone; another one can serve the request
│   └── RequestLostError a request lost several rollout actors, so its prompt is given up
├── LearnerLostError a learner rank is gone; the run can continue from its last checkpoint
├── DivergedError    too many updates in a row were skipped, or weights are not finite
├── SyncError        a rollout actor does not hold the weights that the learner sent
├── CheckpointError  a checkpoint cannot be written, is damaged, or does not fit the run
├── RecordError      a metric is infinite or NaN, which is a bug in this library
├── HistoryError     a run folder cannot be read, or the folder is not one of a run
├── ChatError        a message cannot be answered, or a conversation cannot be kept
├── TrackingError    a tracker does not accept the run, which continues without it
└── StoppedError     the run stopped on request

A message is one sentence that names the key or file, the value, and the remedy. Every exception takes a single string,
so that Ray can carry it between processes.
"""

import re
from itertools import takewhile


class AdaGRPOError(Exception):
    """Base of all errors of this library."""


class ConfigError(AdaGRPOError, ValueError):
    """A setting is unknown, has a bad value, or does not fit another one."""


class DataError(AdaGRPOError, ValueError):
    """A data set cannot be read, or a row or column is not as the settings describe it."""


class ModelError(AdaGRPOError, ValueError):
    """A model, tokenizer or adapter cannot be loaded."""


class RewardError(AdaGRPOError, ValueError):
    """A reward function cannot be imported or broke its contract, or a judge gave no score."""


class ExtensionError(AdaGRPOError, RuntimeError):
    """A criterion, ladder, callback or environment of the user raised an error, or broke its contract."""


class ResourceError(AdaGRPOError, RuntimeError):
    """The machine or cluster lacks a resource that the configuration needs."""


class RolloutError(AdaGRPOError, RuntimeError):
    """A rollout actor could not serve a request."""


class ActorLostError(RolloutError):
    """A rollout actor or its engine is gone; another one can serve the request."""


class RequestLostError(RolloutError):
    """A request lost several rollout actors, the last one alone, so its prompt is given up."""


class LearnerLostError(AdaGRPOError, RuntimeError):
    """A learner rank is gone; the run can continue from its last checkpoint."""


class DivergedError(AdaGRPOError, ArithmeticError):
    """Too many updates in a row were skipped because numbers in them were not finite, or weights are not finite."""


class SyncError(AdaGRPOError, RuntimeError):
    """A rollout actor does not hold the weights that the learner sent."""


class CheckpointError(AdaGRPOError, RuntimeError):
    """A checkpoint cannot be written, is damaged, or does not fit the run."""


class RecordError(AdaGRPOError, ValueError):
    """A metric is infinite or NaN, which is a bug in this library."""


class HistoryError(AdaGRPOError, ValueError):
    """A run folder cannot be read, or the folder is not one of a run."""


class ChatError(AdaGRPOError, ValueError):
    """A message cannot be answered, or a conversation cannot be kept."""


class TrackingError(AdaGRPOError, RuntimeError):
    """A tracker does not accept the run, which continues without it."""


class StoppedError(AdaGRPOError):
    """The run stopped on request."""


def first_line(error: BaseException) -> str:
    """The message of an error of another library, as one line of at most 300 characters.

    It is the first line of the message, with the next one if the first ends with a colon. Of pydantic's errors it is
    the text below the heading "1 validation error for ...". An error without a message gives its name and arguments.
    """
    lines = [line.strip() for line in (str(error).strip() or repr(error)).splitlines() if line.strip()]
    if _HEADING.search(lines[0]):
        details = " ".join(takewhile(lambda line: not line.startswith(_PAGE), lines[1:]))
        lines[0] = _DETAILS.sub("", details).replace("Value error, ", "") or lines[0]
    elif lines[0].endswith(":") and len(lines) > 1:
        lines[0] += f" {lines[1]}"
    return lines[0][:300]


_HEADING = re.compile(r"\d+ validation errors? for ")
_PAGE = "For further information visit"
_DETAILS = re.compile(r"\s*\[type=\w+(?:, input_value=.*)?\]\s*$", re.DOTALL)
