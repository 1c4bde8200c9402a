r"""The registry of benchmarks: source, licence, prompt and ground truth of each published evaluation set.

Prompts are zero-shot, in one message of the user, without a system message. Problems of mathematics end with the
directive that DeepSeek-R1's README recommends for them and that DeepSeek-Math and Qwen2.5-Math evaluate with. Questions
with several choices are asked as in OpenAI's simple-evals (common.py, `QUERY_TEMPLATE_MULTICHOICE`), as DeepSeek-R1 and
lighteval do. Results with another wording are not comparable, so both are quoted word for word.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Literal

from adagrpo_ray.config.benchmarks import BenchmarkName
from adagrpo_ray.data.answers import answer_text
from adagrpo_ray.data.formats import Row
from adagrpo_ray.errors import DataError

BOXED = r"Please reason step by step, and put your final answer within \boxed{}."
CHOICE = (
    "Answer the following multiple choice question. The last line of your response should be of the following format: "
    "'Answer: $LETTER' (without quotes) where LETTER is one of {letters}. Think step by step before answering."
)

_WRONG = tuple(f"Incorrect Answer {number}" for number in (1, 2, 3))

Answers = Literal["number", "formula", "letter"]
"""The kind of a benchmark's ground truths. `formula`: an expression in LaTeX, a number, or a text."""
ANSWERS = "answers"
"""Key in the columns of a benchmark's prompt: the kind of its ground truth."""


@dataclass(frozen=True)
class Question:
    """A problem as it is asked.

    text: the message of the user.
    answer: the ground truth.
    difficulty: the class by which accuracy is reported; "" if there is none.
    """

    text: str
    answer: str
    difficulty: str = ""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark.

    repository, subset, split: the place of its problems on the Hub.
    columns: those of a row that `read` needs.
    optional: those that `read` uses if a row has them.
    read: makes the question of a row. Raises DataError if a value is not as it should be.
    answers: the kind of its ground truths.
    samples: the usual number of completions of a problem.
    max_new_tokens: the limit of a completion in lighteval or lm-evaluation-harness; None if neither has the benchmark.
    licence: as the card on the Hub, or the source of the problems, names it.
    source: the paper, or the site with the problems.
    gated: whether the Hub asks for an account and for consent to terms.
    """

    repository: str
    subset: str | None = None
    split: str = "test"
    columns: tuple[str, ...]
    optional: tuple[str, ...] = ()
    read: Callable[[Row], Question]
    answers: Answers
    samples: int = 1
    max_new_tokens: int | None = None
    licence: str
    source: str
    gated: bool = False


def _text(row: Row, column: str) -> str:
    """Return the value in a column as text, without white space around it. Raises DataError if it is empty or none."""
    found = answer_text(row[column])
    if found is None:
        raise DataError(f"{column!r} is {row[column]!r:.80}; it must be a text or a number")
    return found


def _class(row: Row, column: str) -> str:
    """Return the difficulty class in a column, which a copy may lack; "" if there is none."""
    return answer_text(row.get(column)) or ""


def _boxed(problem: str) -> str:
    return f"{problem}\n{BOXED}"


def _gsm8k(row: Row) -> Question:
    """Return a word problem. Its ground truth is the number after "####", behind the worked solution."""
    _, mark, answer = _text(row, "answer").rpartition("####")
    if not mark:
        raise DataError(f"'answer' is {row['answer']!r:.80}; it must end with #### and the number")
    return Question(_boxed(_text(row, "question")), answer.strip())


def _math500(row: Row) -> Question:
    level = _class(row, "level")
    return Question(_boxed(_text(row, "problem")), _text(row, "answer"), level and f"level {level}")


def _problem(row: Row) -> Question:
    return Question(_boxed(_text(row, "problem")), _text(row, "answer"))


def _question(row: Row) -> Question:
    return Question(_boxed(_text(row, "question")), _text(row, "answer"))


def _olympiad(row: Row) -> Question:
    """Return a problem of OlympiadBench, after its context if it has one. Its ground truth is a list of texts."""
    answers = row["final_answer"]
    if isinstance(answers, str):
        answers = [answers]
    if not isinstance(answers, Sequence) or not answers or not all(answer_text(each) for each in answers):
        raise DataError(f"'final_answer' is {answers!r:.80}; it must be a list of texts")
    context = answer_text(row.get("context"))
    problem = _text(row, "question") if context is None else f"{context}\n{_text(row, 'question')}"
    return Question(_boxed(problem), ", ".join(str(answer_text(each)) for each in answers), _class(row, "subfield"))


def _gpqa(row: Row) -> Question:
    """Return a question with its choices in an order that depends on the words of the row alone."""
    question, correct = _text(row, "Question"), _text(row, "Correct Answer")
    wrong = [_text(row, column) for column in _WRONG]
    choices = sorted([correct, *wrong], key=lambda choice: _rank(question, choice))
    letter = ascii_uppercase[choices.index(correct)]
    return Question(_choice(question, choices), letter, _class(row, "High-level domain"))


def _mmlu_pro(row: Row) -> Question:
    options = row["options"]
    if not isinstance(options, Sequence) or isinstance(options, str) or not 2 <= len(options) <= len(ascii_uppercase):
        raise DataError(f"'options' is {options!r:.80}; it must be a list of choices")
    choices = [answer_text(option) or "" for option in options]
    letter = _text(row, "answer")
    if letter not in [*ascii_uppercase[: len(choices)]]:
        raise DataError(f"'answer' is {letter!r:.80}, and there are {len(choices)} options; it must be a letter of one")
    return Question(_choice(_text(row, "question"), choices), letter, _class(row, "category"))


def _choice(question: str, choices: Sequence[str]) -> str:
    letters = ascii_uppercase[: len(choices)]
    listed = "\n".join(f"{letter}) {choice}" for letter, choice in zip(letters, choices, strict=True))
    return f"{CHOICE.format(letters=letters)}\n\n{question}\n\n{listed}"


def _rank(question: str, choice: str) -> bytes:
    return hashlib.sha256(f"{question}\0{choice}".encode(errors="surrogatepass")).digest()


_MAA = "none named on the card; the problems are those of the MAA"
_AIME = "https://artofproblemsolving.com/wiki/index.php/AIME_Problems_and_Solutions"
_AMC = "https://artofproblemsolving.com/wiki/index.php/AMC_12_Problems_and_Solutions"

BENCHMARKS: Mapping[BenchmarkName, Benchmark] = {
    "gsm8k": Benchmark(
        repository="openai/gsm8k",
        subset="main",
        columns=("question", "answer"),
        read=_gsm8k,
        answers="number",
        max_new_tokens=256,
        licence="MIT",
        source="https://arxiv.org/abs/2110.14168",
    ),
    "math500": Benchmark(
        repository="HuggingFaceH4/MATH-500",
        columns=("problem", "answer"),
        optional=("level",),
        read=_math500,
        answers="formula",
        max_new_tokens=32768,
        licence="MIT (of MATH, and of PRM800K, which chose the problems)",
        source="https://arxiv.org/abs/2305.20050",
    ),
    "aime24": Benchmark(
        repository="HuggingFaceH4/aime_2024",
        split="train",
        columns=("problem", "answer"),
        read=_problem,
        answers="number",
        samples=32,
        max_new_tokens=32768,
        licence=_MAA,
        source=_AIME,
    ),
    "aime25": Benchmark(
        repository="math-ai/aime25",
        columns=("problem", "answer"),
        read=_problem,
        answers="number",
        samples=32,
        max_new_tokens=32768,
        licence="Apache-2.0 by the card; the problems are those of the MAA",
        source=_AIME,
    ),
    "amc23": Benchmark(
        repository="math-ai/amc23",
        columns=("question", "answer"),
        read=_question,
        answers="number",
        samples=32,
        licence=_MAA,
        source=_AMC,
    ),
    "minerva_math": Benchmark(
        repository="math-ai/minervamath",
        columns=("question", "answer"),
        read=_question,
        answers="formula",
        licence="none named on the card; the problems are from MIT OpenCourseWare (CC BY-NC-SA 4.0)",
        source="https://arxiv.org/abs/2206.14858",
    ),
    "olympiadbench": Benchmark(
        repository="Hothan/OlympiadBench",
        subset="OE_TO_maths_en_COMP",
        split="train",
        columns=("question", "final_answer"),
        optional=("context", "subfield"),
        read=_olympiad,
        answers="formula",
        licence="Apache-2.0",
        source="https://arxiv.org/abs/2402.14008",
    ),
    "gpqa_diamond": Benchmark(
        repository="Idavidrein/gpqa",
        subset="gpqa_diamond",
        split="train",
        columns=("Question", "Correct Answer", *_WRONG),
        optional=("High-level domain",),
        read=_gpqa,
        answers="letter",
        samples=4,
        max_new_tokens=32768,
        licence="CC BY 4.0; its terms forbid publishing the questions",
        source="https://arxiv.org/abs/2311.12022",
        gated=True,
    ),
    "mmlu_pro": Benchmark(
        repository="TIGER-Lab/MMLU-Pro",
        columns=("question", "options", "answer"),
        optional=("category",),
        read=_mmlu_pro,
        answers="letter",
        max_new_tokens=2048,
        licence="MIT",
        source="https://arxiv.org/abs/2406.01574",
    ),
}
"""All benchmarks. Their places and columns are those of the cards on the Hub and of public code that reads them.

The usual number of completions is 32 for the three sets of few problems, as DAPO (Yu et al., 2025) reports AIME 2024, 4
for GPQA, as in simple-evals, and 1 for the others.
"""
