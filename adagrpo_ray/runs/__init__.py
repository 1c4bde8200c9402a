"""What a run shows of itself: records of its steps, the run folder that keeps them, and the terminal.

`records` says what is measured, `samples` what was sampled, `observer` how the trainer hands both over. `writer` puts
them into the run folder (JSON lines, and TensorBoard's `events` by the tags of `scalars`); `history` takes that back
to a step, `runs` reads it, also while it is written (`tail`), and `mirror` copies it to a URL. `why` says why a group
was sampled again. `console` puts it all onto the terminal, with `progress` while it runs and `report` at its end, in
words of `figures`.
"""

from adagrpo_ray.runs.console import Console
from adagrpo_ray.runs.observer import Observer, Observers
from adagrpo_ray.runs.records import EvaluationRecord, Interval, StepRecord, Summary, retries, summarize
from adagrpo_ray.runs.samples import AttemptSample, CompletionSample, GroupSample
from adagrpo_ray.runs.writer import RunWriter

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
