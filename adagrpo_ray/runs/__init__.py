"""Records of a run: its metrics, its samples, its summary, the run folder and the terminal.

`records` with `sampling_metrics` is the registry of metrics, declared with `metric`, `units` and `panels`;
`metric_table` renders it as a page.
`samples` holds sampled groups and `summary` the totals of a run. The trainer passes both to an `observer`.
`writer` stores them in the run folder: JSON lines, and TensorBoard's `events`. `history` cuts a folder back to a step,
`reader` reads one, even while the run writes it (`tail`), and `mirror` copies one to a URL. `why` explains why a group
was sampled again, and `turn_text` writes the turns of an episode. `console` shows the run on a terminal: `progress`
during training and `final_lines` at the end, both formatted by `wording`.
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
