"""Conversations with two sides: their prompts for the model, and the thoughts in its answers. No engine, no page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from adagrpo_ray.config.sampling import PhaseParams, SamplingParams
from adagrpo_ray.config.section import Section
from adagrpo_ray.data.arithmetic import THINK_START
from adagrpo_ray.data.chat import Messages
from adagrpo_ray.data.messages import Chat
from adagrpo_ray.data.plain import plain_text
from adagrpo_ray.data.template import text_head
from adagrpo_ray.errors import ChatError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Side = Literal["base", "adapter"]
SIDES: tuple[Side, ...] = ("base", "adapter")
END_WORDS = {"": "...", "length": "cut off", "stopped": "stopped", "failed": "failed"}


class Message(Section):
    """A message of the user or an answer of a model.

    by: the name of the model that answered.
    tokens, seconds: the length of the answer, and the time that it took.
    end: how the answer ended; "" while it grows.
    thinks: whether the prompt ended within a thought.
    """

    role: Literal["user", "assistant"]
    text: str
    by: str = ""
    tokens: int = Field(0, ge=0)
    seconds: float = Field(0.0, ge=0.0)
    end: Literal["", "stop", "length", "stopped", "failed"] = ""
    thinks: bool = False

    def footer(self) -> str:
        """Its tokens, tokens per second, and how it ended, unless it ended by itself; "..." while it grows."""
        parts = [f"{self.tokens:,} token{'s' if self.tokens > 1 else ''}"] if self.tokens else []
        if self.tokens and self.seconds:
            parts.append(f"{self.tokens / self.seconds:,.0f} tokens/s")
        return " · ".join([*parts, *([END_WORDS[self.end]] if self.end in END_WORDS else [])])


class Conversation(Section):
    """The messages of both sides. The sides get the same messages of the user while both are shown."""

    base: tuple[Message, ...] = ()
    adapter: tuple[Message, ...] = ()

    def on(self, side: Side) -> tuple[Message, ...]:
        """The messages of one side."""
        return self.base if side == "base" else self.adapter

    def ask(self, text: str, sides: tuple[Side, ...]) -> Conversation:
        """The conversation with the user's next message added to `sides`."""
        return self.model_copy(update={side: (*self.on(side), Message(role="user", text=text)) for side in sides})

    def answered(self, answers: Mapping[Side, Message]) -> Conversation:
        """The conversation with these answers at the end of their sides, in place of earlier versions of them."""
        return self.model_copy(
            update={side: (*_without_answer(self.on(side)), answer) for side, answer in answers.items()}
        )


def _without_answer(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    return messages[:-1] if messages and messages[-1].role == "assistant" else messages


@dataclass(frozen=True)
class Rendered:
    """A prompt for the model; `thinks` if it ends within a thought."""

    token_ids: tuple[int, ...]
    thinks: bool


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: tuple[Message, ...],
    system: str,
    thinking: bool,
    think_end: str,
    template_kwargs: Mapping[str, Any] | None = None,
    *,
    plain: bool = False,
) -> Rendered:
    """Render the conversation by the model's chat template and `data.template_kwargs`.

    Thinking is switched off by `enable_thinking` if the template has it, and else by appending the end of a thought.
    If `plain`, the prompt is the text of the only message, as with data.chat_template=none.
    Raises ChatError if the template refuses the messages or omits one, and if a plain prompt has several messages.
    """
    turns: Messages = [{"role": "system", "content": system}] if system.strip() else []
    for message in messages:
        if message.end == "failed" or not message.text.strip():  # leave out the question too
            turns.pop()
        else:
            turns.append({"role": message.role, "content": message.text})

    if plain:
        return _plain(tokenizer, turns, thinking, think_end)

    def rendered(thinks: bool) -> str:
        try:
            return str(
                tokenizer.apply_chat_template(
                    turns,
                    add_generation_prompt=True,
                    tokenize=False,
                    **{**(template_kwargs or {}), "enable_thinking": thinks},
                )
            )
        except Exception as error:  # a template is a program and may raise any error
            raise ChatError(f"the model's chat template refuses this: {' '.join(str(error).split())[:200]}") from None

    text = rendered(thinking)
    for each in turns:
        if each["role"] != "assistant" and each["content"].strip() not in text:
            shown = " ".join(each["content"].split())[:60]
            raise ChatError(f"the model's chat template leaves out {shown!r} of the {each['role']} message")
    begun = text.rstrip().endswith(THINK_START)
    if not thinking and text == rendered(True):  # the template has no enable_thinking
        text = f"{text}{think_end}"
        begun = False
    return Rendered(tuple(tokenizer.encode(text, add_special_tokens=False)), begun)


def _plain(tokenizer: PreTrainedTokenizerBase, turns: Messages, thinking: bool, think_end: str) -> Rendered:
    *before, question = turns
    if any(message["role"] != "system" for message in before):
        raise ChatError("prompts of data.chat_template=none are plain text, which has no turns; clear the chat")
    system = before[0]["content"] if before else None
    text = plain_text(Chat((question,)), system) + ("" if thinking else think_end)
    head, ids = text_head(tokenizer), tokenizer.encode(text, add_special_tokens=False)
    return Rendered((*(() if ids[: len(head)] == head else head), *ids), False)


def split_thought(text: str, think_end: str, thinks: bool) -> tuple[str | None, str | None]:
    """Split a text, which may be incomplete, into thought and answer; None for a part that is missing.

    `thinks`: the prompt ended within a thought.
    """
    head, end, tail = text.partition(think_end)
    begins = head.lstrip().startswith(THINK_START)
    if end or thinks or begins:
        thought = head.lstrip().removeprefix(THINK_START).strip()
        return thought or None, tail.strip() or None if end else None
    return None, text.strip() or None


def sampling_params(sampling: PhaseParams, answer: PhaseParams | None, thinking: bool) -> SamplingParams:
    """The parameters of a request. Without a thought, the parameters of the `answer` apply from the beginning."""
    if answer is not None and not thinking:
        sampling, answer = answer, None
    return SamplingParams(**sampling.model_dump(), answer=answer)
