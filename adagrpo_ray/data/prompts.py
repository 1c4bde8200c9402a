"""Converting rows to prompts: rendering, dropping rows with a reason for each, and splitting off held-out prompts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from adagrpo_ray.config.data import ColumnSettings, DataSettings
from adagrpo_ray.config.environments import ENVIRONMENT
from adagrpo_ray.config.tree import Config
from adagrpo_ray.data.answers import answer_text
from adagrpo_ray.data.arithmetic import ARITHMETIC, Problem, problem_sets
from adagrpo_ray.data.benchmark_prompts import BenchmarkPrompts
from adagrpo_ray.data.chat import system_message
from adagrpo_ray.data.formats import Row
from adagrpo_ray.data.gym_problems import GymProblem, problem_rows
from adagrpo_ray.data.messages import Chat, read_chat
from adagrpo_ray.data.row_id import normalised, row_id
from adagrpo_ray.data.source import column, is_generated, load_rows, refuse_parts
from adagrpo_ray.data.split import split
from adagrpo_ray.data.template import ChatTemplate, template_digest
from adagrpo_ray.errors import DataError
from adagrpo_ray.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERATED_PROMPTS = 2000
"""Default number of generated problems to train on."""

T = TypeVar("T")


@dataclass(frozen=True)
class PromptSets:
    """Prompts to train on, held-out prompts, and the number of dropped rows by reason.

    `notes` has remarks on the data for the user. `template` is the digest of the chat template. `benchmarks` are
    loaded apart from the others.
    """

    train: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]
    dropped: Mapping[str, int]
    notes: tuple[str, ...] = ()
    template: str = ""
    benchmarks: tuple[BenchmarkPrompts, ...] = ()


@dataclass(frozen=True)
class Opened:
    """A row whose chat an opening completes.

    `id` is that of its prompt. `row` has its columns, its problem and its answer.
    """

    id: str
    chat: Chat
    row: Mapping[str, Any]


class Opening(Protocol):
    """The beginning of episodes: the rows of an environment, and the chats that it makes of rows."""

    def rows(self) -> Sequence[Row]:
        """Return the rows of data.source=environment."""

    def chats(self, opened: Sequence[Opened]) -> Sequence[Chat]:
        """Return the chats of the prompts, in the order of the rows."""


def load_prompts(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    *,
    training: bool = True,
    opening: Opening | None = None,
) -> PromptSets:
    """Return the prompts of `config.data`, rendered, filtered and split by problem; only `run.seed` decides the split.

    An `opening` completes the chats of rows, for episodes.

    Raises DataError if a column is missing, a prompt cannot be read, the chat template leaves out a part of a prompt,
    or too few prompts are left: fewer than a step needs, or none if it is not for `training`.
    """
    data, maker, room = config.data, _Maker(config.data, tokenizer, opening), _room(config)
    dropped = maker.dropped
    if is_generated(data.source):
        refuse_parts(data)
        kept = [_fitting(maker.make(rows), data, room, dropped) for rows in _generated(config)]
    else:
        prompts = _fitting(maker.make(_read(_source(data, opening), data)), data, room, dropped)
        problems = [maker.problems[prompt.id] for prompt in prompts]
        rest, aside, lost = split(problems, config.run.seed, data.eval_prompts, data.train_prompts)
        kept = [[prompts[i] for i in rest], [prompts[i] for i in aside]]
        if lost:
            dropped["of a held-out problem"] += len(lost)
    needed = config.algorithm.prompts_per_step
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "none"
    if not training and not any(kept):
        raise DataError(f"data.source={data.source!r} leaves no prompt (dropped: {reasons}); give other data")
    if training and len(kept[0]) < needed:
        raise DataError(
            f"data.source={data.source!r} leaves {len(kept[0])} prompts to train on and {len(kept[1])} held out "
            f"(dropped: {reasons}), a step needs algorithm.prompts_per_step={needed}; "
            "give more data, or lower that or data.eval_prompts"
        )
    return PromptSets(tuple(kept[0]), tuple(kept[1]), dict(dropped), tuple(maker.notes()), template_digest(tokenizer))


@dataclass(frozen=True)
class _Row:
    """The values of a row that the settings name, unchanged, and the whole row as `columns`.

    `place` is its number in words for messages, "" if it has none.
    """

    prompt: Any
    answer: Any
    difficulty: Any
    problem: Any
    columns: Row
    place: str = ""
    needs_answer: bool = True


@dataclass(frozen=True)
class _Read:
    """The chat of a row, its last message of the user, its ground truth, and the id of its prompt."""

    id: str
    chat: Chat
    problem: str
    answer: str


def _source(data: DataSettings, opening: Opening | None) -> Sequence[Row]:
    """Return the rows of the data, which may be those of an environment."""
    if data.source != ENVIRONMENT or opening is None:
        return load_rows(data)
    refuse_parts(data)
    return opening.rows()


def _generated(config: Config) -> tuple[list[_Row], list[_Row]]:
    """Return generated problems to train on, and held-out ones."""
    train, held_out = config.data.train_prompts or GENERATED_PROMPTS, config.data.eval_prompts
    if config.data.source == ARITHMETIC:
        sums = problem_sets(config.arithmetic, train, held_out)
        return [*map(_arithmetic_row, sums[0])], [*map(_arithmetic_row, sums[1])]
    problems = problem_rows(config.reasoning_gym, train, held_out)
    return [*map(_gym_row, problems[0])], [*map(_gym_row, problems[1])]


def _arithmetic_row(problem: Problem) -> _Row:
    return _Row(problem.text, problem.answer, problem.difficulty, None, {})


def _gym_row(problem: GymProblem) -> _Row:
    """Return a problem as a row. Tasks that accept many answers may give none."""
    answer = problem.entry["answer"]
    return _Row(problem.messages, answer, problem.difficulty, None, problem.columns, needs_answer=False)


def _read(rows: Sequence[Row], data: DataSettings) -> Iterator[_Row]:
    """Yield each row with the values of `data.columns`. Columns that only other rows have are added as None."""
    names = data.columns
    absent = dict.fromkeys(name for row in rows for name in row) if isinstance(rows, list) else {}
    for number, row in enumerate(rows, start=1):
        place = f" (row {number} of data.source={data.source!r})"
        try:
            difficulty, problem = (_scalar(row, names, key) for key in ("difficulty", "problem"))
            prompt = column(row, names.prompt, "data.columns.prompt")
            answer = column(row, names.ground_truth, "data.columns.ground_truth")
        except DataError as error:
            raise DataError(f"{error}{place}") from None
        yield _Row(prompt, answer, difficulty, problem, {**absent, **row}, place)


def _scalar(row: Row, names: ColumnSettings, key: str) -> Any:
    """Return the text or number in the column of that setting; None if it is not set, null or NaN."""
    name: str | None = getattr(names, key)
    value = None if name is None else column(row, name, f"data.columns.{key}")
    if not isinstance(value, str | int | float | None):
        raise DataError(
            f"data.columns.{key}={name!r} holds a {type(value).__name__}; name a column of texts or numbers"
        )
    return None if isinstance(value, float) and math.isnan(value) else value


class _Maker:
    """Converts rows to prompts, and counts the rows that it drops."""

    def __init__(self, data: DataSettings, tokenizer: Any, opening: Opening | None = None) -> None:
        self._template = ChatTemplate(tokenizer, data)
        self._system = system_message(data)
        self._opening = opening
        self.dropped: Counter[str] = Counter()
        self.problems: dict[str, str] = {}  # by the ids of prompts
        self._continued = self._own_system = 0

    def make(self, rows: Iterable[_Row]) -> list[Prompt]:
        """Return the prompts of the rows without duplicates and unusable rows."""
        prompts: dict[str, Prompt] = {}
        for row, read in self._opened((row, _placed(row, _read_chat, row)) for row in rows):
            made = read if isinstance(read, str) else _placed(row, self._prompt, row, read, prompts)
            if isinstance(made, str):
                self.dropped[made] += 1
            else:
                prompts[made.id] = made
        return list(prompts.values())

    def notes(self) -> Iterator[str]:
        """Yield remarks on the rows that were kept, for the user."""
        if self._continued:
            yield f"{self._continued} prompts end with a message of the assistant, which completions continue"
        if self._own_system and self._system is not None:
            yield (
                f"{self._own_system} prompts have a system message of their own, which replaces data.system_prompt: it "
                "has to ask for the format of data.format"
            )
        if (note := self._template.note()) is not None:
            yield note

    def _opened(self, rows: Iterable[tuple[_Row, _Read | str]]) -> Iterable[tuple[_Row, _Read | str]]:
        """Return the rows with their chats, after the opening has completed them if there is one."""
        if self._opening is None:
            return rows
        listed = list(rows)
        begun = [
            Opened(read.id, read.chat, {"problem": read.problem, "answer": read.answer, **row.columns})
            for row, read in listed
            if not isinstance(read, str)
        ]
        chats = iter(self._opening.chats(begun))
        return [(row, read if isinstance(read, str) else replace(read, chat=next(chats))) for row, read in listed]

    def _prompt(self, row: _Row, read: _Read, others: Mapping[str, Prompt]) -> Prompt | str:
        """Return the prompt of a row, or the reason to drop it.

        Texts with lone surrogates are dropped: JSON can have them, and no tokenizer takes them.
        """
        chat, answer, difficulty = read.chat, read.answer, answer_text(row.difficulty) or ""
        own_system = chat.has_system_message
        if read.id in others:
            return "double"
        problem = normalised(read.problem if row.problem is None else answer_text(row.problem) or "")
        if self._template.holds_control_tokens(chat):
            return "with control tokens of the model"
        rendered = self._template.render(chat, None if own_system else self._system)
        try:
            for text in (rendered, answer, difficulty, problem):
                text.encode()
        except UnicodeEncodeError:
            return "not Unicode"
        self.problems[read.id] = problem
        self._continued += chat.continues
        self._own_system += own_system
        ids = self._template.token_ids(rendered)
        return Prompt(read.id, read.problem, np.asarray(ids, np.int32), answer, difficulty, row.columns)


def _read_chat(row: _Row) -> _Read | str:
    """Return the chat and the ground truth of a row, or the reason to drop it."""
    chat = read_chat(row.prompt, row.columns)
    if chat is None:
        return "without a prompt"
    answer = answer_text(row.answer)
    if answer is None:
        if row.needs_answer:
            return "without an answer"
        answer = ""
    return _Read(row_id(chat, answer), chat, chat.problem, answer)


def _placed(row: _Row, work: Callable[..., T], *arguments: Any) -> T:
    """Return the result of `work`. Raises its DataError with the place of the row."""
    try:
        return work(*arguments)
    except DataError as error:
        raise DataError(f"{error}{row.place}") from None


def _room(config: Config) -> float:
    """Return the most tokens of a prompt that leaves room for a completion, or an episode."""
    most = config.rollout.max_model_len
    return math.inf if most is None else most - config.environment.longest(config.rollout.max_new_tokens)


def _fitting(prompts: list[Prompt], data: DataSettings, room: float, dropped: Counter[str]) -> list[Prompt]:
    """Return the prompts that are longer neither than the quantile of lengths nor than `room`."""
    if not prompts:
        return prompts
    longest = float(np.quantile([len(p.token_ids) for p in prompts], data.length_quantile, method="inverted_cdf"))
    kept = [p for p in prompts if len(p.token_ids) <= min(longest, room)]
    if len(kept) < len(prompts):
        dropped["too long"] += len(prompts) - len(kept)
    return kept
