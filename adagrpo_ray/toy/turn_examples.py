"""Base models of episodes: dialogues with a calculator, and a guessing game, for the tiny model to imitate.

Each shows a good and a bad behaviour. The base model takes the good one with a fixed probability, so that training has
something to find:

    calculator    call the tool and copy its result, or answer at once with a wrong number
    guessing      guess the middle of the letters that are left, or any letter
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from adagrpo_ray.config.data import ArithmeticSettings, FormatSettings
from adagrpo_ray.data.arithmetic import draw_problem
from adagrpo_ray.data.messages import Message
from adagrpo_ray.data.observation_text import ObservationTemplate
from adagrpo_ray.toy.tokenizer import build_tokenizer
from adagrpo_ray.toy.training import Batches, Example, prompt_frame

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SUM_PROMPT = "put the final number between {answer_start} and {answer_end}"
"""System message of the sums, with names of markers in braces; the configuration has to set it."""
CALCULATOR = "calculator"
CALL_START, CALL_END = f'<tool_call>\n{{"name": "{CALCULATOR}", "arguments": {{"expression": "', '"}}\n</tool_call>'
"""The texts around the expression in a call; each is one token."""
CALL_RATE = 0.1
"""Probability that the base model calls the calculator."""

LETTERS = "abcdefghijklmno"
QUESTION = f" guess a letter from {LETTERS[0]} to {LETTERS[-1]}"
"""The question after the number of a game; one token."""
BEFORE, AFTER, NO_GUESS = "before", "after", "no guess"
"""Replies to a guess."""
MIDDLE_RATE = 0.4
"""Probability that the base model guesses the middle; else it guesses any letter."""
GUESSES, GAMES = 4, 1000
"""Guesses of a game, and different numbers of games."""

TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}"
    "{{ '<tool_call>\n{\"name\": \"' + call['function']['name'] + '\", \"arguments\": ' }}"
    "{{ call['function']['arguments'] | tojson }}{{ '}\n</tool_call>' }}"
    "{% endfor %}"
    "{% if loop.first %}{% for tool in tools or [] %}{{ ' ' + tool['function']['name'] }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The chat template: the names of the tools stand at the end of the first message."""
WORDS = (CALL_START, CALL_END, f" {CALCULATOR}", "tool\n", QUESTION, BEFORE, AFTER, NO_GUESS)
"""Texts that are one token each, in addition to those of the embedded task."""
RECIPE = (CALL_RATE, MIDDLE_RATE, SUM_PROMPT, TEMPLATE, WORDS)
"""Constants that these base models depend on."""


def turn_tokenizer(markers: FormatSettings) -> PreTrainedTokenizerFast:
    """Return the tokenizer of these base models."""
    return build_tokenizer(markers, WORDS, TEMPLATE)


def turn_examples(
    tokenizer: PreTrainedTokenizerFast, arithmetic: ArithmeticSettings, markers: FormatSettings, size: int
) -> tuple[list[int], Batches]:
    """Return the head and the batches of `size` examples for the base model of `arithmetic.episodes`."""
    rng = np.random.default_rng(arithmetic.seed)
    template = ObservationTemplate(tokenizer, {})
    if arithmetic.episodes == "guessing":
        head, tail = prompt_frame(tokenizer, None)

        def batch(step: int) -> list[Example]:
            return [guessing_example(tokenizer, template, tail, rng) for _ in range(size)]

    else:
        system = SUM_PROMPT.format(**markers.model_dump())
        head, tail = prompt_frame(tokenizer, system, ({"type": "function", "function": {"name": CALCULATOR}},))
        digits = sorted(arithmetic.keep_carry)

        def batch(step: int) -> list[Example]:
            shown = digits[step % len(digits)]
            return [calculator_example(tokenizer, template, tail, rng, shown, markers) for _ in range(size)]

    return head, batch


def calculator_example(
    tokenizer: PreTrainedTokenizerFast,
    template: ObservationTemplate,
    tail: Sequence[int],
    rng: np.random.Generator,
    digits: int,
    markers: FormatSettings,
) -> Example:
    """Return a random sum, solved by a call or answered with the first summand, each half of the time.

    The first token decides which it is. It alone has a weight that depends on CALL_RATE, as in `training_example`.
    """
    problem, calls = draw_problem(rng, digits), rng.random() < 0.5
    answer = problem.answer if calls else str(problem.a)
    turns = [f"{markers.answer_start}{answer}{markers.answer_end}"]
    seen: list[Message] = []
    if calls:
        turns = [f"{CALL_START}{problem.text}{CALL_END}", *turns]
        seen = [{"role": "tool", "name": CALCULATOR, "content": answer, "tool_call_id": "call00000"}]
    example = _dialogue(tokenizer, template, [*tokenizer.encode(problem.text), *tail], turns, [[each] for each in seen])
    first = next(place for place, weight in enumerate(example.weights) if weight)
    example.weights[first] = 2 * (CALL_RATE if calls else 1 - CALL_RATE)
    return example


def guessing_example(
    tokenizer: PreTrainedTokenizerFast, template: ObservationTemplate, tail: Sequence[int], rng: np.random.Generator
) -> Example:
    """Return a random game, up to the correct guess or the last one."""
    hidden, low, high = int(rng.integers(len(LETTERS))), 0, len(LETTERS) - 1
    turns, seen = list[str](), list[list[Message]]()
    for _ in range(GUESSES):
        middle = (low + high) // 2
        guess = middle if rng.random() < MIDDLE_RATE else int(rng.integers(len(LETTERS)))
        turns.append(LETTERS[guess])
        if guess == hidden:
            break
        seen.append([{"role": "user", "content": BEFORE if hidden < guess else AFTER}])
        if hidden < guess:
            high = min(high, guess - 1)
        else:
            low = max(low, guess + 1)
    question = f"{rng.integers(GAMES):03d}{QUESTION}"
    return _dialogue(tokenizer, template, [*tokenizer.encode(question), *tail], turns, seen[: len(turns) - 1])


def questions(count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Yield `count` games as (question, hidden letter); all letters are hidden equally often."""
    rng = np.random.default_rng([seed, 1])
    for number in rng.permutation(GAMES)[:count].tolist():
        yield f"{number:03d}{QUESTION}", LETTERS[number % len(LETTERS)]


def _dialogue(
    tokenizer: PreTrainedTokenizerFast,
    template: ObservationTemplate,
    prompt: list[int],
    turns: Sequence[str],
    seen: Sequence[Sequence[Message]],
) -> Example:
    """Return the tokens of a dialogue after the head of its prompt; only those of the turns have a weight."""
    end = int(tokenizer.eos_token_id)
    ids, weights = list(prompt), [0.0] * len(prompt)
    for number, turn in enumerate(turns):
        written = [*tokenizer.encode(turn), end]
        observed = template.token_ids(seen[number], end) if number < len(seen) else []
        ids += [*written, *observed]
        weights += [1.0] * len(written) + [0.0] * len(observed)
    return Example(ids, weights)
