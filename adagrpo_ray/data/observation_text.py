"""The text between two turns of the policy: messages of an environment, as the chat template writes them.

The tokens of a turn stay as the policy wrote them. So the text that follows a turn cannot be rendered together with it.
It is rendered after a turn of fixed words, cut off there, and tokenized on its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adagrpo_ray.data.completion_text import end_of_turn
from adagrpo_ray.data.messages import Message
from adagrpo_ray.data.template import PROBE
from adagrpo_ray.errors import ConfigError, DataError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTION, SAID, SEEN = PROBE.format("q"), PROBE.format("s"), PROBE.format("o")
"""Fixed words of a question, of a turn of the policy, and of an observation."""
REMEDY = "give a template that only appends, as data.chat_template"


class ObservationTemplate:
    """Renders the messages that follow a turn of the policy, by the tokenizer's chat template.

    `kwargs` are the arguments of the template, `tools` the schemas of the tools in the prompts.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any], tools: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self._tokenizer: Any = tokenizer
        self._kwargs, self._tools = dict(kwargs), [dict(tool) for tool in tools]
        self.end = end_of_turn(tokenizer)
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self._end_text = "" if self.end is None else str(added[self.end].content)
        control = [token.content for token in added.values() if token.special]
        self._control = re.compile("|".join(map(re.escape, control))) if control else None

    def text(self, messages: Sequence[Message]) -> str:
        """Return the text from the end of the policy's turn up to the head of its next one.

        The token that ends a turn is not part of it. Control tokens in the contents are removed, since an environment
        may not write turns of its own. Raises DataError if the template does not render the messages there.
        """
        cleaned = [{**message, "content": self._without_control(str(message["content"]))} for message in messages]
        rendered = self._render([_question(), _said(cleaned), *cleaned], more=True)
        _, found, rest = rendered.rpartition(SAID)
        if found and self._end_text:
            _, found, rest = rest.partition(self._end_text)
        elif found and "tool_calls" in _said(cleaned):
            found = ""  # the end of the call cannot be found without an end of the turn
        if not found:
            raise DataError(
                f"the model's chat template does not render a turn of the policy before {_roles(messages)}; {REMEDY}"
            )
        return rest

    def token_ids(self, messages: Sequence[Message], last: int) -> list[int]:
        """Return the tokens of `text` after a turn whose last token is `last`.

        If that is not the token with which the template ends a turn, the result begins with that one.
        """
        return self.encode(self.text(messages), last)

    def encode(self, text: str, last: int) -> list[int]:
        """Return the tokens of a result of `text`; see `token_ids`."""
        ids: list[int] = self._tokenizer.encode(self._end_text + text, add_special_tokens=False)
        if self.end is None:
            return ids
        if ids[0] != self.end:  # a tokenizer that writes something before each text
            ids = [self.end, *self._tokenizer.encode(text, add_special_tokens=False)]
        return ids[1:] if last == self.end else ids

    def check(self, roles: Sequence[str]) -> None:
        """Raise ConfigError unless the template only appends if messages of these roles follow a turn.

        An earlier part of the chat must stay the same when turns are added, and each message must be in the text.
        """
        of_tool = {"name": "f", "tool_call_id": _call_id(0)}
        for role in roles:
            seen = [{"role": role, "content": SEEN, **(of_tool if role == "tool" else {})}]
            messages = [_question(), _said(seen), *seen]
            try:
                first = self._render(messages, more=False)
                second = self._render([*messages, _said(seen), *seen], more=True)
                text = self.text(seen)
            except DataError as error:
                raise ConfigError(f"environment: {error}") from None
            if not second.startswith(first):
                raise ConfigError(
                    f"environment: the model's chat template changes earlier parts of a chat when a message of the "
                    f"role {role} is added, and an episode keeps the tokens that the policy has seen; {REMEDY}"
                )
            if SEEN not in text:
                raise ConfigError(
                    f"environment: the model's chat template leaves out a message of the role {role}; {REMEDY}"
                )

    def written_call(self) -> tuple[str, str, Mapping[str, str]]:
        """Return a turn with a tool call as the chat template writes it, with the name and the arguments of the call.

        The text is "" if the template does not write tool calls.
        """
        name, arguments = PROBE.format("f"), {PROBE.format("k"): SAID}
        call = {"type": "function", "id": _call_id(0), "function": {"name": name, "arguments": arguments}}
        turn = {"role": "assistant", "content": "", "tool_calls": [call]}
        try:
            before = self._render([_question()], more=True)
            whole = self._render([_question(), turn], more=False)
        except DataError:
            return "", name, arguments
        text = whole.removeprefix(before) if whole.startswith(before) else whole.rpartition(QUESTION)[2]
        return (text.rpartition(self._end_text)[0] if self._end_text else text), name, arguments

    def _without_control(self, text: str) -> str:
        return text if self._control is None else self._control.sub("", text)

    def _render(self, messages: Sequence[Message], *, more: bool) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    tools=self._tools or None,
                    tokenize=False,
                    add_generation_prompt=more,
                    **self._kwargs,
                )
            )
        except Exception as error:  # a template is a program and may raise anything
            raise DataError(
                f"the model's chat template refuses {_roles(messages)} after a turn of the policy: "
                f"{first_line(error)}; {REMEDY}"
            ) from None


def _question() -> Message:
    return {"role": "user", "content": QUESTION}


def _said(following: Sequence[Message]) -> Message:
    """Return a turn of fixed words; with a call for each tool message that follows, which strict templates require."""
    tools = [message for message in following if message["role"] == "tool"]
    calls = [
        {
            "type": "function",
            "id": str(message.get("tool_call_id", _call_id(number))),
            "function": {"name": str(message.get("name", "f")), "arguments": {"x": SAID}},
        }
        for number, message in enumerate(tools)
    ]
    said: Message = {"role": "assistant", "content": SAID}
    return {**said, "tool_calls": calls} if calls else said


def _call_id(number: int) -> str:
    """Return an id of nine letters and digits, the form that templates of Mistral accept."""
    return f"call{number:05d}"


def _roles(messages: Sequence[Message]) -> str:
    return f"messages of the roles {', '.join(str(message['role']) for message in messages)}"
