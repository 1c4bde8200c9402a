"""What a run shows of itself: records of its steps, the run folder that keeps them, and the terminal.

`records` is the registry of metrics, in terms of `metric`, `units` and `panels`; `metric_table` makes a page of it.
`samples` are what was sampled, `summary` is the sum of a run, `observer` how the trainer hands them over. `writer` puts
them into the run folder (JSON lines, and TensorBoard's `events`); `history` takes that back to a step, `reader` reads
it, also while it is written (`tail`), and `mirror` copies it to a URL. `why` says why a group was sampled again.
`console` puts it all onto the terminal, with `progress` while it runs and `final_lines` at its end, in the words of
`wording`.
"""

from adagrpo_ray.runs.console import Console
from adagrpo_ray.runs.observer import Observer, Observers
from adagrpo_ray.runs.records import EvaluationRecord, StepRecord
from adagrpo_ray.runs.samples import AttemptSample, CompletionSample, GroupSample
from adagrpo_ray.runs.summary import Interval, Summary, retries, summarize
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
