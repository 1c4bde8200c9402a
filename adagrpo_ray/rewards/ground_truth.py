"""A check before the start: the reward functions must reward the ground truth itself, in the requested format."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np

from adagrpo_ray.config.data import FormatSettings
from adagrpo_ray.config.environments import ENVIRONMENT
from adagrpo_ray.config.reasoning_gym import REASONING_GYM
from adagrpo_ray.config.rewards import RewardsSettings
from adagrpo_ray.config.tree import Config
from adagrpo_ray.data.completion_text import CompletionText
from adagrpo_ray.errors import RewardError
from adagrpo_ray.extensions.given import NOTHING, Given
from adagrpo_ray.rewards.extract import final_answer
from adagrpo_ray.rewards.registry import BUILTIN, SETTING, Scores, check_parameters, load_reward, score_group
from adagrpo_ray.rewards.scorer import RewardScorer
from adagrpo_ray.types import Completion, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

POLL_S = 0.2
# These give no reward to a completion without the think end.
_NEED_THINK_END = ("answer", "format_exact", "format_approximate")
# For a ground truth that is no number, these count only the same text as correct.
_COMPARE_TEXTS = ("answer", "exact")
# These reward only an answer between the markers of `data.format`.
_NEED_MARKERS = frozenset(BUILTIN) - {"latex", REASONING_GYM, ENVIRONMENT}
# These take linear time for any text, so they need no scoring process. math-verify and other verifiers do.
_IN_PROCESS = frozenset(BUILTIN) - {"latex", REASONING_GYM}


@dataclass(frozen=True, eq=False)
class Tried:
    """A prompt whose ground truth was scored, with the completions [G] that were tried and their scores.

    The first completion is the ground truth in the format of `data.format`, encoded and decoded by the tokenizer. It
    has `tokens` tokens. The others are for functions of the user, which may require another format: the ground truth
    alone, and in a box.
    """

    prompt: Prompt
    completions: tuple[str, ...]
    tokens: int
    scores: Scores

    def score(self, column: int) -> float:
        """Return the score of the first completion by the reward function of that column; NaN if it does not apply."""
        return float(self.scores.by_function[0, column])


def check_ground_truths(
    config: Config,
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    given: Given = NOTHING,
    stop: Event | None = None,
) -> tuple[str, ...]:
    """Score the ground truths of `rewards.check_prompts` prompts and return warnings.

    Raises RewardError if a function lacks a parameter or a column, if no ground truth can be scored (with
    rewards.on_error=stop: if one cannot), or if a built-in function decides on correctness and finds none correct. A
    function of the user may have reasons for that; then a warning is returned. Prompts without a ground truth, which
    have many correct answers, are left out, and so are judges and reward models. The check ends early if `stop` is set.
    """
    settings = config.rewards
    notices: list[str] = []
    for reward in settings.own:
        if reward.name not in BUILTIN:
            function = load_reward(reward.name, given)
            notices.append(check_parameters(function, reward.name, [prompt.columns for prompt in prompts]))
    rows = evenly([prompt for prompt in prompts if prompt.answer], settings.check_prompts)
    if rows and settings.own:
        tried = _try(settings, config.data.format, rows, tokenizer, given, stop)
        notices += [] if not tried else _warnings(config, tried)
        rendered = [str(tokenizer.decode(row.token_ids.tolist(), skip_special_tokens=False)) for row in rows]
        both = (config.data.format, settings)
        notices += [_closed_thought(*both, rows[0], rendered[0]), _missing_markers(*both, rendered)]
    return tuple(f"warning: {notice}" for notice in notices if notice)


def evenly(prompts: Sequence[Prompt], most: int) -> list[Prompt]:
    """Return at most `most` of the prompts, spread evenly over them."""
    places = np.unique(np.linspace(0, len(prompts) - 1, min(most, len(prompts))).round().astype(int))
    return [prompts[i] for i in places]


def completions_of(truth: str, format: FormatSettings, *, whole: bool = False) -> tuple[str, ...]:
    """Return the final answer of a ground truth as completions: in the format of the settings, alone, and in a box.

    With `whole` the answer is the whole ground truth.
    """
    answer = truth if whole else final_answer(truth)
    return f"{format.think_end}{format.answer_start}{answer}{format.answer_end}", answer, rf"\boxed{{{answer}}}"


def _try(
    rewards: RewardsSettings,
    format: FormatSettings,
    rows: Sequence[Prompt],
    tokenizer: Any,
    given: Given,
    stop: Event | None,
) -> list[Tried]:
    """Score the rows as a run does. No row begins more than `rewards.timeout_s` after the first was scored."""
    text = CompletionText(tokenizer, format)
    update = {"functions": rewards.own, "correct_by": None, "workers": 1, "on_error": "drop"}
    settings = rewards.model_copy(update=update)
    functions = [(reward.name, reward.weight) for reward in settings.functions]
    gym = rewards.decides == REASONING_GYM

    def texts_of(row: Prompt) -> tuple[tuple[str, ...], int]:
        wanted, alone, *others = completions_of(row.answer, format, whole=gym)
        ids = tokenizer.encode(wanted, add_special_tokens=False)
        tokens = len(tokenizer.encode(alone, add_special_tokens=False)) if gym else len(ids)
        return (text.text(ids), alone, *others), tokens

    if {name for name, _ in functions} <= _IN_PROCESS:  # starting a process would take seconds
        loaded = [(load_reward(name), weight) for name, weight in functions]
        tried = []
        for row in rows:
            texts, tokens = texts_of(row)
            scores = score_group(loaded, completions=texts, answer=row.answer, prompt=row.text, format=format)
            tried.append(Tried(row, texts, tokens, scores))
        return tried
    scorer = RewardScorer(settings, format, given)

    async def work() -> list[Tried]:
        tried: list[Tried] = []
        began = math.inf  # after the first row, whose time includes the start of a process
        for row in rows:
            texts, tokens = texts_of(row)
            scoring = asyncio.create_task(scorer.score(row, [_completion(each) for each in texts]))
            while not scoring.done():
                await asyncio.wait({scoring}, timeout=POLL_S)
                if stop is not None and stop.is_set():
                    scoring.cancel()
                    return []
            scores, _ = await scoring
            tried.append(Tried(row, texts, tokens, scores))
            began = min(began, time.monotonic())
            if time.monotonic() - began > settings.timeout_s:
                break
        return tried

    # In a thread, since the event loop of a notebook runs in this one.
    with ThreadPoolExecutor(1) as thread:
        try:
            return thread.submit(asyncio.run, work()).result()
        finally:
            scorer.close()


def _completion(text: str) -> Completion:
    return Completion(np.zeros(1, np.int32), np.zeros(1, np.float32), text, "stop", weight_version=-1)


def _warnings(config: Config, tried: Sequence[Tried]) -> list[str]:
    """Return warnings about the scored ground truths. Raises RewardError if a run cannot begin."""
    settings = config.rewards
    failed = [t for t in tried if t.scores.error is not None]
    scored = [t for t in tried if t.scores.error is None]
    notices: list[str] = []
    if failed:
        problem = (
            f"{failed[0].scores.error}; of {len(tried)} prompts, tried with their own ground truth as the completion, "
            f"{len(failed)} cannot be scored"
        )
        if not scored or settings.on_error == "stop":
            raise RewardError(
                f"{problem}: change the function, or set rewards.check_prompts=0 if it works on the nodes only"
            )
        notices.append(f"{problem}; a run would not learn from them")
    if not scored:
        return notices
    names, name = [reward.name for reward in settings.own], settings.decides
    column, built_in = names.index(name) if name in names else None, name in BUILTIN
    incorrect = [t for t in scored if column is not None and not _correct(t, column, settings.correct_above, built_in)]
    if column is not None and incorrect:
        t = incorrect[0]
        problem = (
            f"{SETTING}: {name!r} counts {(len(scored) - len(incorrect)) or 'none'} of {len(scored)} ground truths as "
            f"correct; the completion {t.completions[0]!r:.300} for the answer "
            f"{t.prompt.answer!r:.100} scores {_shown(t.score(column))} and rewards.correct_above="
            f"{settings.correct_above:g} (prompt {t.prompt.id}: {t.prompt.text!r:.100})"
        )
        remedy = (
            "check data.columns.ground_truth, data.format, the tokenizer's rendering of its markers, and correct_above"
        )
        if built_in and len(incorrect) == len(scored):
            raise RewardError(f"{problem}: {remedy}")
        notices.append(f"{problem}: {remedy}")
    for place, other in enumerate(names):
        best = [t.score(place) for t in scored]
        if np.isnan(best).all() and place != column:
            notices.append(f"{SETTING}: {other!r} applies to none of {len(scored)} ground truths")
        elif other in BUILTIN and place != column and not any(score > 0 for score in best):
            notices.append(
                f"{SETTING}: {other!r} rewards none of {len(scored)} ground truths; the completion "
                f"{scored[0].completions[0]!r:.300} scores {_shown(best[0])}: remove it, or check data.format"
            )
    return [*notices, *_answers(config, name, scored)]


def _correct(tried: Tried, column: int, above: float, built_in: bool) -> bool:
    """Return whether the completion in `data.format` is correct; for a function of the user, whether any of them is."""
    scores = tried.scores.by_function[: 1 if built_in else None, column]
    return bool((scores > above).any())  # comparing with NaN is False


def _answers(config: Config, name: str, scored: Sequence[Tried]) -> list[str]:
    """Return warnings about ground truths that no completion can match, and about `correct_above`."""
    notices, limit, above = [], config.rollout.max_new_tokens, config.rewards.correct_above
    if name == REASONING_GYM and above <= 0.0:
        notices.append(
            f"rewards.correct_above={above:g}: {name!r} gives a part of 1.0 to some wrong answers, which all count as "
            "correct: set it to 0.99"
        )
    if name in BUILTIN and (long := [t.tokens for t in scored if t.tokens > limit]):
        notices.append(
            f"rollout.max_new_tokens={limit} is less than {len(long)} of {len(scored)} ground truths need in the "
            f"format of data.format ({max(long)} tokens): raise it, or check data.columns.ground_truth"
        )
    if name in _COMPARE_TEXTS and (many := [t for t in scored if "\n" in final_answer(t.prompt.answer)]):
        notices.append(
            f"data.columns.ground_truth={config.data.columns.ground_truth!r}: {len(many)} of {len(scored)} ground "
            f"truths have several lines ({many[0].prompt.answer!r:.200}), and {name!r} counts only the same text as "
            "correct; name the column of the final answer"
        )
    return notices


def _closed_thought(format: FormatSettings, rewards: RewardsSettings, prompt: Prompt, rendered: str) -> str:
    """Return a warning if the chat template ends the thought before the completion begins, else ""."""
    end, needing = format.think_end, [name for name in rewards.names if name in _NEED_THINK_END]
    _, found, behind = rendered.rpartition(prompt.text)
    if not (needing and found and end in behind):
        return ""
    return (
        f"the chat template ends the thought in the prompt itself ({behind!r:.200}), and {', '.join(needing)} reward "
        f"only completions with {end!r}: use a template that leaves the thought open, or use exact or latex"
    )


def _shown(score: float) -> str:
    return "nothing (not applicable)" if np.isnan(score) else f"{score:g}"


def _missing_markers(format: FormatSettings, rewards: RewardsSettings, rendered: Sequence[str]) -> str:
    """Return a warning if a reward function needs markers that no prompt asks for, else ""."""
    start, needing = format.answer_start, [name for name in rewards.names if name in _NEED_MARKERS]
    if not needing or any(start in text for text in rendered):
        return ""
    return (
        f"{', '.join(needing)} reward only an answer after {start!r} (data.format), and none of {len(rendered)} "
        "prompts asks for it: set data.system_prompt, ask for it in the prompts, or use latex"
    )
