"""Settings of the data: the source of prompts and their rendering."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, JsonValue, StringConstraints

from adagrpo_ray.config.section import Count, Digits, Location, PositiveInt, Section, Share

PLAIN = "none"
"""Value of `data.chat_template` for prompts of plain text."""

TEMPLATE_RESERVED = {
    *("conversation", "conversations", "messages", "tools", "documents", "chat_template", "add_generation_prompt"),
    *("continue_final_message", "tokenize", "tokenizer_kwargs", "padding", "truncation", "max_length"),
    *("return_tensors", "return_dict", "return_assistant_tokens_mask", "raise_exception", "strftime_now", "self"),
    *("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"),
}
"""Arguments of `apply_chat_template` and of templates that this library or Transformers sets."""


def _not_reserved(name: str) -> str:
    if name in TEMPLATE_RESERVED:
        raise ValueError(f"{name} is set for every chat template already; remove it")
    return name


def _no_word_for_a_boolean(value: JsonValue) -> JsonValue:
    if isinstance(value, str) and value.strip().lower() in ("yes", "no", "true", "false"):
        raise ValueError("a text is true in every template; write true or false without quotes")
    return value


TemplateArgument = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*$"), AfterValidator(_not_reserved)]

TemplateValue = Annotated[JsonValue, AfterValidator(_no_word_for_a_boolean)]


class ArithmeticSettings(Section):
    """The embedded task: additions of two numbers, one difficulty class for each number of digits.

    The tiny base model keeps the carry with the probability given here and drops it otherwise. So the probability is
    its success rate on the class.
    """

    keep_carry: dict[Digits, Share] = Field(
        {2: 0.75, 3: 0.35, 4: 0.12, 5: 0.04},
        min_length=1,
        description="digits of the summands, 2 to 9: success rate of the tiny base model",
    )
    seed: Count = Field(0, description="seed of the problems and of the tiny base model")
    episodes: Literal["calculator", "guessing"] | None = Field(
        None,
        description="model.path=tiny is a base model of episodes instead: one that seldom calls a calculator for these "
        "sums, or one that guesses letters at random; null: that of the embedded task",
    )


class ColumnSettings(Section):
    """Names of the columns of the data set; a dot reaches into a nested value."""

    prompt: str = Field("prompt", min_length=1, description="the problem: text, or a list of chat messages")
    ground_truth: str = Field("solution", min_length=1, description="ground truth for the reward functions")
    difficulty: str | None = Field(None, min_length=1, description="difficulty class for the reports")
    problem: str | None = Field(
        None,
        min_length=1,
        description="identifies the problem of a row; of the rows of one problem all are held out or none; null: the "
        "last user message, with white space normalised",
    )


class FormatSettings(Section):
    """Markers that the prompt asks for and the reward functions look for."""

    think_end: str = Field("</think>", min_length=1, description="marker after the thought")
    answer_start: str = Field("SOLUTION_START_FLAG", min_length=1, description="marker before the answer")
    answer_end: str = Field("SOLUTION_END_FLAG", min_length=1, description="marker after the answer")


class DataSettings(Section):
    """Prompts to train on, and held-out prompts for the evaluation."""

    source: Location = Field(
        "arithmetic",
        description="'arithmetic' or 'reasoning_gym' (generated), 'environment' (the rows of environment.name), a "
        ".jsonl, .json, .csv, .tsv or .parquet file, a pattern of such files (*), a folder, or a Hub name",
    )
    subset: str | None = Field(None, min_length=1, description="configuration of a Hub data set or of a copy of one")
    split: str = Field(
        "train", min_length=1, description="split of a Hub data set or of a folder; a single file is 'train'"
    )
    columns: ColumnSettings = Field(ColumnSettings(), description="names of the columns")
    format: FormatSettings = Field(FormatSettings(), description="markers of the answer format")
    system_prompt: str | None = Field(
        None,
        description="system message; a name of data.format in braces stands for that marker; null: none, or that of "
        "the data",
    )
    chat_template: str | None = Field(
        None,
        min_length=1,
        description="Jinja file in place of the model's chat template; 'none': prompts are plain text; null: the "
        "template of the model",
    )
    template_kwargs: dict[TemplateArgument, TemplateValue] = Field(
        {}, description="arguments of the chat template by name, as in enable_thinking: false"
    )
    train_prompts: PositiveInt | None = Field(
        None, description="number of prompts to train on; null: all, or 2000 generated ones"
    )
    eval_prompts: Count = Field(128, description="number of held-out prompts for the evaluation")
    length_quantile: float = Field(1.0, gt=0.0, le=1.0, description="drop prompts longer than this quantile of lengths")
    shuffle: bool = Field(True, description="shuffle the prompts for each pass over them")

    def conflicts(self) -> Iterator[str]:
        """Yield a conflict if arguments of a chat template are set and prompts are plain text."""
        if self.chat_template == PLAIN and self.template_kwargs:
            yield (
                f"data.template_kwargs={self.template_kwargs} are arguments of a chat template, and "
                "data.chat_template=none renders prompts without one; remove them"
            )
