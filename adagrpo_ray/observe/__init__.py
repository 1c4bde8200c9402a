"""What a run shows of itself: records of its steps, the run folder that keeps them, and the terminal.

`records` says what is measured, `samples` what was sampled, `observer` how the trainer hands both over. `writer` puts
them into the run folder (JSON lines, and TensorBoard's `events` by the tags of `scalars`), from where `history` reads
them back; `mirror` copies that folder to a URL; `console` onto the terminal, with `progress` while it runs and `report`
at its end, all words by `figures`.
"""

from adagrpo_ray.observe.console import Console
from adagrpo_ray.observe.observer import Observer, Observers
from adagrpo_ray.observe.records import EvaluationRecord, Interval, StepRecord, Summary, retries, summarize
from adagrpo_ray.observe.samples import AttemptSample, CompletionSample, GroupSample
from adagrpo_ray.observe.writer import RunWriter

__all__ = [
    "AttemptSample",
    "CompletionSample",
    "Console",
    "EvaluationRecord",
    "GroupSample",
    "Interval",
    "Observer",
    "Observers",
    "RunWriter",
    "StepRecord",
    "Summary",
    "retries",
    "summarize",
]
