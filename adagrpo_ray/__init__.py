"""adagrpo_ray: adaptive GRPO on Ray, with vLLM rollout actors and a DeepSpeed learner.

A run from Python needs only `from adagrpo_ray import Config, train`; see docs/python.md. Each name is loaded on first
use, and none of them loads Ray or torch before `train` runs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adagrpo_ray.algorithm.ladder import Ladder
    from adagrpo_ray.api import Callback, train
    from adagrpo_ray.config.tree import Config
    from adagrpo_ray.errors import (
        AdaGRPOError,
        CheckpointError,
        ConfigError,
        DataError,
        DivergedError,
        ExtensionError,
        LearnerLostError,
        ModelError,
        ResourceError,
        RewardError,
        RolloutError,
        StoppedError,
    )
    from adagrpo_ray.runs.records import EvaluationRecord, StepRecord
    from adagrpo_ray.runs.samples import AttemptSample, CompletionSample, GroupSample
    from adagrpo_ray.runs.summary import Summary
    from adagrpo_ray.stop import Stop
    from adagrpo_ray.types import Attempt, Completion, Group, Prompt, SamplingParams

__version__ = "0.1.0"

__all__ = [
    "AdaGRPOError",
    "Attempt",
    "AttemptSample",
    "Callback",
    "CheckpointError",
    "Completion",
    "CompletionSample",
    "Config",
    "ConfigError",
    "DataError",
    "DivergedError",
    "EvaluationRecord",
    "ExtensionError",
    "Group",
    "GroupSample",
    "Ladder",
    "LearnerLostError",
    "ModelError",
    "Prompt",
    "ResourceError",
    "RewardError",
    "RolloutError",
    "SamplingParams",
    "StepRecord",
    "Stop",
    "StoppedError",
    "Summary",
    "train",
]

_HOMES = {
    "algorithm.ladder": ("Ladder",),
    "api": ("Callback", "train"),
    "config.tree": ("Config",),
    "runs.records": ("EvaluationRecord", "StepRecord"),
    "runs.samples": ("AttemptSample", "CompletionSample", "GroupSample"),
    "runs.summary": ("Summary",),
    "stop": ("Stop",),
    "types": ("Attempt", "Completion", "Group", "Prompt", "SamplingParams"),
}


def __getattr__(name: str) -> Any:
    """Load a name of `__all__` from its module."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((home for home, names in _HOMES.items() if name in names), "errors")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    """All names of the module, with those that are not loaded yet."""
    return sorted({*globals(), *__all__})
