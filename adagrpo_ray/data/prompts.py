"""From rows to prompts: chat template, what is dropped and why, and what is kept aside to measure on."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from adagrpo_ray.config.tree import Config
from adagrpo_ray.data.arithmetic import Problem, problem_sets
from adagrpo_ray.data.chat import chat_messages, system_message
from adagrpo_ray.data.source import Row, column, load_rows
from adagrpo_ray.errors import DataError
from adagrpo_ray.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ARITHMETIC = "arithmetic"
ARITHMETIC_PROMPTS = 2000


@dataclass(frozen=True)
class PromptSets:
    """Prompts to train on, prompts kept aside, and how many rows were dropped for each reason."""

    train: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]
    dropped: Mapping[str, int]


def load_prompts(config: Config, tokenizer: PreTrainedTokenizerBase, *, training: bool = True) -> PromptSets:
    """The prompts of `config.data`, rendered and filtered; the split depends on `run.seed` alone.

    Raises DataError where a column is missing, or where fewer prompts are left than a step needs; where it is not for
    `training`, where none at all is left.
    """
    data = config.data
    dropped: Counter[str] = Counter()
    if data.source == ARITHMETIC:
        train, held_out = problem_sets(
            config.arithmetic, data.train_prompts or ARITHMETIC_PROMPTS, data.held_out_prompts
        )
        sets = [_render(map(_arithmetic_row, problems), config, tokenizer, dropped) for problems in (train, held_out)]
        kept = [_fitting(prompts, config, dropped) for prompts in sets]
    else:
        rows = _read(load_rows(data), _reader(config), data.source)
        prompts = _fitting(_render(rows, config, tokenizer, dropped), config, dropped)
        order = np.random.default_rng(config.run.seed).permutation(len(prompts)).tolist()
        aside = sorted(order[: data.held_out_prompts])
        rest = sorted(order[data.held_out_prompts :][: data.train_prompts])
        kept = [[prompts[i] for i in rest], [prompts[i] for i in aside]]
    needed = config.algorithm.prompts_per_step
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "none"
    if not training and not any(kept):
        raise DataError(f"data.source={data.source!r} leaves no prompt (dropped: {reasons}); give other data")
    if training and len(kept[0]) < needed:
        raise DataError(
            f"data.source={data.source!r} leaves {len(kept[0])} prompts to train on beside {len(kept[1])} held out "
            f"(dropped: {reasons}), a step needs algorithm.prompts_per_step={needed}; "
            "give more data, or lower that or data.held_out_prompts"
        )
    return PromptSets(tuple(kept[0]), tuple(kept[1]), dict(dropped))


def _arithmetic_row(problem: Problem) -> tuple[Any, Any, str, Row]:
    return problem.text, problem.answer, problem.level, {}


def _reader(config: Config) -> Any:
    """A function from a row to (prompt, answer, level, the other columns)."""
    names = config.data.columns

    def read(row: Row) -> tuple[Any, Any, str, Row]:
        level = None if names.level is None else column(row, names.level, "data.columns.level")
        if not isinstance(level, str | int | float | None):
            raise DataError(
                f"data.columns.level={names.level!r} holds a {type(level).__name__}; name a column of texts or numbers"
            )
        used = {name.partition(".")[0] for name in (names.prompt, names.answer, names.level or "")}
        others = {key: value for key, value in row.items() if key not in used}
        prompt = column(row, names.prompt, "data.columns.prompt")
        answer = column(row, names.answer, "data.columns.answer")
        return prompt, answer, "" if level is None else str(level), others

    return read


def _read(rows: Sequence[Row], read: Any, source: str) -> Iterator[Any]:
    """What the reader makes of each row; its errors say which one it was."""
    for number, row in enumerate(rows, start=1):
        try:
            yield read(row)
        except DataError as error:
            raise DataError(f"{error} (row {number} of data.source={source!r})") from None


def _render(rows: Iterator[Any], config: Config, tokenizer: Any, dropped: Counter[str]) -> list[Prompt]:
    """Prompts of the rows, each rendering and answer once; rows without a prompt or an answer are dropped.

    So are texts with halves of surrogate pairs, which JSON can write and no tokenizer takes.
    """
    system, prompts = system_message(config.data), dict[str, Prompt]()
    for prompt, answer, level, others in rows:
        messages = _messages(prompt, system)
        if not messages:
            dropped["without a prompt"] += 1
            continue
        if not _is_answer(answer):
            dropped["without an answer"] += 1
            continue
        rendered = _rendered(messages, tokenizer)
        try:
            level.encode()
            name = hashlib.sha256(f"{rendered}\0{answer}".encode()).hexdigest()[:16]
        except UnicodeEncodeError:
            dropped["not Unicode"] += 1
            continue
        if name in prompts:
            dropped["double"] += 1
            continue
        ids = tokenizer.encode(rendered, add_special_tokens=False)
        text = next(m["content"] for m in reversed(messages) if m["role"] == "user")
        prompts[name] = Prompt(name, text, np.asarray(ids, np.int32), str(answer), level, others)
    return list(prompts.values())


def _rendered(messages: list[dict[str, str]], tokenizer: Any) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    except Exception as error:  # a template is a program of its own
        roles = ", ".join(m["role"] for m in messages)
        raise DataError(
            f"the model's chat template refuses messages of the roles {roles}: {' '.join(str(error).split())}; "
            "where it knows no system message, set data.system_prompt to null"
        ) from None


def _messages(prompt: Any, system: str | None) -> list[dict[str, str]]:
    """The chat messages of a prompt column: its text, or its own messages; [] where it is neither."""
    if isinstance(prompt, str):
        return chat_messages(prompt, system) if prompt.strip() else []
    if not isinstance(prompt, Sequence) or not all(_is_message(m) for m in prompt):
        return []
    messages = [{"role": m["role"], "content": m["content"]} for m in prompt]
    if not any(m["role"] == "user" and m["content"].strip() for m in messages):
        return []
    if system is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _is_answer(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return False
    return bool(value.strip()) if isinstance(value, str) else isinstance(value, int) or math.isfinite(value)


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)


def _fitting(prompts: list[Prompt], config: Config, dropped: Counter[str]) -> list[Prompt]:
    """The prompts that are not longer than the quantile of lengths, and leave room for a completion."""
    if not prompts:
        return prompts
    longest = float(
        np.quantile([len(p.token_ids) for p in prompts], config.data.length_quantile, method="inverted_cdf")
    )
    if config.rollout.max_model_len is not None:
        longest = min(longest, config.rollout.max_model_len - config.rollout.max_new_tokens)
    kept = [p for p in prompts if len(p.token_ids) <= longest]
    if len(kept) < len(prompts):
        dropped["too long"] += len(prompts) - len(kept)
    return kept
