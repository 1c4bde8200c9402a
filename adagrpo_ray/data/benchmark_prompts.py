"""Loading benchmarks: their rows from the Hub or from a copy, a limited part of them, and their prompts."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adagrpo_ray.config.benchmarks import BenchmarkName, BenchmarkSettings
from adagrpo_ray.config.data import DataSettings
from adagrpo_ray.config.tree import Config
from adagrpo_ray.data.benchmark_sets import ANSWERS, BENCHMARKS, Answers, Benchmark, Question
from adagrpo_ray.data.formats import Row
from adagrpo_ray.data.messages import Chat
from adagrpo_ray.data.row_id import row_id
from adagrpo_ray.data.source import TRAIN, has_configurations, hub_rows, load_rows
from adagrpo_ray.data.template import ChatTemplate
from adagrpo_ray.errors import DataError
from adagrpo_ray.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NUMBER = re.compile(r"[+-]?\$?[0-9][0-9,]*(?:\.[0-9]+)?")


@dataclass(frozen=True)
class BenchmarkPrompts:
    """The prompts of a benchmark.

    samples: completions of each.
    whole: the number of problems without `limit`.
    """

    name: BenchmarkName
    prompts: tuple[Prompt, ...]
    samples: int
    whole: int

    @property
    def in_words(self) -> str:
        """The benchmark with its numbers of problems and completions, for a notice."""
        of = "" if len(self.prompts) == self.whole else f" of {self.whole:,}"
        each = "1 completion" if self.samples == 1 else f"{self.samples} completions"
        problems = "problem" if self.whole == 1 else "problems"
        return f"{self.name}, {len(self.prompts):,}{of} {problems} with {each} each"


def load_benchmarks(config: Config, tokenizer: PreTrainedTokenizerBase) -> tuple[BenchmarkPrompts, ...]:
    """Return the benchmarks of `evaluation.benchmarks`, rendered by the chat template or as plain text.

    Raises DataError, which names the benchmark and the remedy, if its rows cannot be loaded, lack a column or have a
    ground truth of another kind, or if prompts leave no room for a completion.
    """
    if not config.evaluation.benchmarks:
        return ()
    template = ChatTemplate(tokenizer, config.data)
    return tuple(_load(settings, config, template) for settings in config.evaluation.benchmarks)


def short_limits(config: Config) -> Iterator[str]:
    """Yield a warning for each benchmark that is usually given more tokens than `rollout.max_new_tokens`."""
    most = config.rollout.max_new_tokens
    for settings in config.evaluation.benchmarks:
        usual = BENCHMARKS[settings.name].max_new_tokens
        if usual is not None and usual > most:
            yield (
                f"warning: benchmark {settings.name} is usually given up to {usual:,} tokens for a completion, and "
                f"rollout.max_new_tokens={most} cuts longer ones off: results are lower than published ones"
            )


def samples_of(settings: BenchmarkSettings, temperature: float) -> int:
    """Return the number of completions of each problem: greedy decoding draws the same one again."""
    return settings.samples or (1 if temperature == 0.0 else BENCHMARKS[settings.name].samples)


def _load(settings: BenchmarkSettings, config: Config, template: ChatTemplate) -> BenchmarkPrompts:
    name, benchmark = settings.name, BENCHMARKS[settings.name]
    try:
        questions = _questions(benchmark, _rows(settings, benchmark))
        chosen = set(sorted(questions)[: settings.limit])
        prompts = [
            _prompt(f"{name}/{id}", question, benchmark.answers, template)
            for id, question in questions.items()
            if id in chosen
        ]
        _check_lengths(prompts, config)
    except DataError as error:
        where = f"the Hub ({benchmark.repository})" if settings.path is None else repr(settings.path)
        raise DataError(f"benchmark {name} from {where}: {error}") from None
    samples = samples_of(settings, config.evaluation.sampling.temperature)
    return BenchmarkPrompts(name, tuple(prompts), samples, len(questions))


def _rows(settings: BenchmarkSettings, benchmark: Benchmark) -> Sequence[Row]:
    """Return the rows of a copy or of the Hub. Raises DataError if there are none."""
    rows = _hub(settings.name, benchmark) if settings.path is None else _copy(settings.path, benchmark)
    if not len(rows):
        raise DataError("it is empty; give a copy with rows")
    return rows


def _hub(name: str, benchmark: Benchmark) -> Sequence[Row]:
    try:
        return _repository(benchmark.repository, benchmark)
    except DataError as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
        page = f"https://huggingface.co/datasets/{benchmark.repository}"
        terms = f"accept its terms at {page} and log in there (HF_TOKEN), or " if benchmark.gated else ""
        raise DataError(
            f"{error}{offline}; {terms}give a copy on this machine, as --benchmark {name}=FILE or as path in "
            f"evaluation.benchmarks, with the columns {_listed(benchmark)}"
        ) from None


def _repository(place: str, benchmark: Benchmark) -> Sequence[Row]:
    """Return the rows of a repository of the Hub, or of a folder that is a copy of it."""
    try:
        return hub_rows(place, benchmark.subset, benchmark.split, (*benchmark.columns, *benchmark.optional))
    except DataError as error:
        raise DataError(f"subset {benchmark.subset!r}, split {benchmark.split!r} cannot be loaded: {error}") from None


def _copy(path: str, benchmark: Benchmark) -> Sequence[Row]:
    """Return the rows of a file, of files that match a pattern, or of a folder with the split of the benchmark."""
    place = Path(os.path.expanduser(path))
    if not (place.exists() or any(sign in path for sign in "*?[")):
        raise DataError(f"there is no such file or folder; give one with the columns {_listed(benchmark)}")
    if place.is_dir() and has_configurations(place):
        return _repository(str(place), benchmark)
    split = benchmark.split if place.is_dir() and not (place / "state.json").is_file() else TRAIN
    try:
        return load_rows(DataSettings(source=path, split=split))
    except DataError as error:
        raise DataError(str(error).replace("data.source=", "").replace("data.split=", "split ")) from None


def _questions(benchmark: Benchmark, rows: Sequence[Row]) -> dict[str, Question]:
    """Return the questions by ids that depend on their words alone; a question that is repeated has a number behind it.

    So the first ids in their order are the same problems for any order of the rows.
    """
    questions: dict[str, Question] = {}
    times: Counter[str] = Counter()
    for number, row in enumerate(rows, start=1):
        try:
            lacking = [column for column in benchmark.columns if column not in row]
            if lacking:
                raise DataError(f"there is no column {lacking[0]!r}; give the columns {_listed(benchmark)}")
            question = benchmark.read(row)
            _check_answer(question.answer, benchmark.answers)
        except DataError as error:
            raise DataError(f"row {number}: {error}") from None
        name = row_id(_chat(question), question.answer)
        times[name] += 1
        questions[name if times[name] == 1 else f"{name}-{times[name]}"] = question
    return questions


def _check_answer(answer: str, kind: Answers) -> None:
    """Raise DataError if a ground truth is no number and has to be one; letters are checked as they are read."""
    if kind == "number" and _NUMBER.fullmatch(answer) is None:
        raise DataError(f"the ground truth {answer!r:.80} is no number; correct it")


def _chat(question: Question) -> Chat:
    return Chat(({"role": "user", "content": question.text},))


def _prompt(id: str, question: Question, answers: Answers, template: ChatTemplate) -> Prompt:
    try:
        rendered = template.render(_chat(question))
        rendered.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"a problem is no Unicode text ({error}); correct it") from None
    ids = np.asarray(template.token_ids(rendered), np.int32)
    return Prompt(id, question.text, ids, question.answer, question.difficulty, {ANSWERS: answers})


def _check_lengths(prompts: Sequence[Prompt], config: Config) -> None:
    """Raise DataError if prompts are too long. None is left out, since the results would be of another benchmark."""
    rollout = config.rollout
    if rollout.max_model_len is None:
        return
    room = rollout.max_model_len - rollout.max_new_tokens
    lengths = [len(prompt.token_ids) for prompt in prompts]
    if long := sum(length > room for length in lengths):
        raise DataError(
            f"{long} of {len(prompts)} prompts, of up to {max(lengths)} tokens, do not fit into rollout.max_model_len="
            f"{rollout.max_model_len} with rollout.max_new_tokens={rollout.max_new_tokens}; raise the first or set it "
            "to null"
        )


def _listed(benchmark: Benchmark) -> str:
    optional = f" (and {', '.join(benchmark.optional)}, if there are)" if benchmark.optional else ""
    return f"{', '.join(benchmark.columns)}{optional}"
