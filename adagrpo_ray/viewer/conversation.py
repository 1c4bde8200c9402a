"""A conversation on two sides, and what the model reads and says of it. No engine and no page."""

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
    """What one side said. Of an answer `by` names who gave it, `thinks` whether the prompt left a thought open."""

    role: Literal["user", "assistant"]
    text: str
    by: str = ""
    tokens: int = Field(0, ge=0)
    seconds: float = Field(0.0, ge=0.0)
    end: Literal["", "stop", "length", "stopped", "failed"] = ""
    thinks: bool = False

    def figures(self) -> str:
        """Its tokens and their speed, and how it ended where that was not by itself; dots where it has not yet."""
        parts = [f"{self.tokens:,} token{'s' if self.tokens > 1 else ''}"] if self.tokens else []
        if self.tokens and self.seconds:
            parts.append(f"{self.tokens / self.seconds:,.0f} tokens/s")
        return " · ".join([*parts, *([END_WORDS[self.end]] if self.end in END_WORDS else [])])


class Conversation(Section):
    """What was said on each side, which share the user's messages as long as both are shown."""

    base: tuple[Message, ...] = ()
    adapter: tuple[Message, ...] = ()

    def on(self, side: Side) -> tuple[Message, ...]:
        """The messages of one side."""
        return self.base if side == "base" else self.adapter

    def ask(self, text: str, sides: tuple[Side, ...]) -> Conversation:
        """The conversation with the user's next message on some sides."""
        return self.model_copy(update={side: (*self.on(side), Message(role="user", text=text)) for side in sides})

    def answered(self, answers: Mapping[Side, Message]) -> Conversation:
        """The conversation with answers at the end of some sides, in place of what was there of them."""
        return self.model_copy(update={side: (*_asked(self.on(side)), said) for side, said in answers.items()})


def _asked(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    return messages[:-1] if messages and messages[-1].role == "assistant" else messages


@dataclass(frozen=True)
class Rendered:
    """A prompt for the model; `thinks` says that it has begun a thought for it."""

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
    """The conversation as the model reads it, by its chat template and `data.template_kwargs`.

    Thinking is switched off by the template's own `enable_thinking` where it has that, and else by writing the
    thought's end at once. If `plain`, the prompt is the text of the only message, as with data.chat_template=none.
    Raises ChatError where the template refuses the messages, or plain text does.
    """
    said: Messages = [{"role": "system", "content": system}] if system.strip() else []
    for message in messages:
        if message.end == "failed" or not message.text.strip():  # as if it had not been asked
            said.pop()
        else:
            said.append({"role": message.role, "content": message.text})

    if plain:
        return _plain(tokenizer, said, thinking, think_end)

    def rendered(thinks: bool) -> str:
        try:
            return str(
                tokenizer.apply_chat_template(
                    said,
                    add_generation_prompt=True,
                    tokenize=False,
                    **{**(template_kwargs or {}), "enable_thinking": thinks},
                )
            )
        except Exception as error:  # a template is a program of its own
            raise ChatError(f"the model's chat template refuses this: {' '.join(str(error).split())[:200]}") from None

    text = rendered(thinking)
    for each in said:
        if each["role"] != "assistant" and each["content"].strip() not in text:
            shown = " ".join(each["content"].split())[:60]
            raise ChatError(f"the model's chat template leaves out {shown!r} of the {each['role']} message")
    begun = text.rstrip().endswith(THINK_START)
    if not thinking and text == rendered(True):  # the template knows no such switch
        text = f"{text}{think_end}"
        begun = False
    return Rendered(tuple(tokenizer.encode(text, add_special_tokens=False)), begun)


def _plain(tokenizer: PreTrainedTokenizerBase, said: Messages, thinking: bool, think_end: str) -> Rendered:
    *before, asked = said
    if any(message["role"] != "system" for message in before):
        raise ChatError("data.chat_template=none asks the model in plain text, which has no turns; clear the chat")
    system = before[0]["content"] if before else None
    text = plain_text(Chat((asked,)), system) + ("" if thinking else think_end)
    head, ids = text_head(tokenizer), tokenizer.encode(text, add_special_tokens=False)
    return Rendered((*(() if ids[: len(head)] == head else head), *ids), False)


def split_thought(text: str, think_end: str, thinks: bool) -> tuple[str | None, str | None]:
    """Thought and answer of a text that may not be whole yet; None for what is not there.

    `thinks` says that the prompt had begun a thought.
    """
    head, end, tail = text.partition(think_end)
    begins = head.lstrip().startswith(THINK_START)
    if end or thinks or begins:
        thought = head.lstrip().removeprefix(THINK_START).strip()
        return thought or None, tail.strip() or None if end else None
    return None, text.strip() or None


def sampling_params(sampling: PhaseParams, answer: PhaseParams | None, thinking: bool) -> SamplingParams:
    """The parameters of a request; where there is no thought, those of the `answer` hold from the beginning."""
    if answer is not None and not thinking:
        sampling, answer = answer, None
    return SamplingParams(**sampling.model_dump(), answer=answer)
