"""Rendering chats by the model's chat template, with checks that the template leaves nothing out."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adagrpo_ray.config.data import PLAIN, TEMPLATE_RESERVED, DataSettings
from adagrpo_ray.data.arithmetic import THINK_START
from adagrpo_ray.data.messages import REASONING, SYSTEM_ROLES, Chat, Message
from adagrpo_ray.data.plain import plain_text
from adagrpo_ray.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

THINK_END = "</think>"
"""The text after which chat templates cut the thought off an earlier turn (Qwen3, DeepSeek-R1)."""
PROBE = "qzx{}qzx"
"""Pattern of texts that no template contains."""


class ChatTemplate:
    """Renders and tokenizes prompts by the tokenizer's template and `data.template_kwargs`, or as plain text.

    The tokenizer must have the template of `data.chat_template`. Raises ConfigError if the template does not read one
    of the arguments.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, data: DataSettings) -> None:
        self._tokenizer: Any = tokenizer
        self._kwargs = dict(data.template_kwargs)
        self._thought_ends = (data.format.think_end, THINK_END)
        self._probed = set[tuple[Any, ...]]()
        self.plain = data.chat_template == PLAIN
        self._head = text_head(tokenizer)
        self._unbegun = 0
        check_kwargs(tokenizer, self._kwargs)
        markers = (*data.format.model_dump().values(), THINK_START, THINK_END)
        tokens = getattr(tokenizer, "added_tokens_decoder", {}).values()
        control = [token.content for token in tokens if token.special and token.content not in markers]
        self._control = re.compile("|".join(map(re.escape, control))) if control else None

    def render(self, chat: Chat, system: str | None = None) -> str:
        """Return the text of the prompt, up to the head of the assistant's turn or the end of the assistant's message.

        `system` is the system message of a chat that has none of its own. Raises DataError if the template, or plain
        text, refuses the chat or leaves out a part of it.
        """
        if self.plain:
            return plain_text(chat, system)
        chat = chat if system is None else chat.after(system)
        rendered = self._with_one_thought(chat, self._render(chat))
        for message, part in _parts(chat, self._thought_ends):
            if not any(all(piece in rendered for piece in pieces) for pieces in part):
                raise DataError(_left_out(message, part[0][0]))
        self._probe(chat)
        return rendered

    def token_ids(self, rendered: str) -> list[int]:
        """Return the tokens of a result of `render`.

        A template writes all special tokens, so none is added, as in `apply_chat_template`. A plain text gets the
        tokens at the beginning of a text, such as a BOS, once.
        """
        ids: list[int] = self._tokenizer.encode(rendered, add_special_tokens=False)
        begun = ids[: len(self._head)] == self._head
        if self.plain:
            return ids if begun else [*self._head, *ids]
        self._unbegun += not begun
        return ids

    def note(self) -> str | None:
        """Return a notice if prompts do not begin as the tokenizer begins a text; None if they do."""
        if not self._unbegun:
            return None
        begin = self._tokenizer.decode(self._head)
        return (
            f"the chat template does not write {begin!r}, with which the tokenizer begins plain texts; if the model "
            "was trained with it, write it at the beginning of data.chat_template"
        )

    def holds_control_tokens(self, chat: Chat) -> bool:
        """Return whether a text of the user or a tool has a control token, such as the end of a turn."""
        texts = (m["content"] for m in chat.messages if m["role"] in ("user", "tool"))
        return self._control is not None and any(self._control.search(text) for text in texts)

    def _with_one_thought(self, chat: Chat, rendered: str) -> str:
        """Return the rendering without the empty thought that some templates write before a thought of the data.

        If the data begin a thought, the result is the head of the assistant's turn and the text of the data, with one
        beginning of a thought.
        """
        begun = str(chat.messages[-1]["content"]).lstrip() if chat.continues else ""
        if not begun.startswith(THINK_START):
            return rendered
        head = self._render(Chat(chat.messages[:-1], chat.tools))
        if head.rstrip().endswith(THINK_START):
            return head.rstrip().removesuffix(THINK_START) + begun
        before = rendered.rstrip().removesuffix(begun.rstrip())
        return rendered if before.count(THINK_START) <= head.count(THINK_START) else head + begun

    def _render(self, chat: Chat) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    [dict(message) for message in chat.messages],
                    tools=list(chat.tools) or None,
                    tokenize=False,
                    add_generation_prompt=not chat.continues,
                    continue_final_message=chat.continues,
                    **self._kwargs,
                )
            )
        except Exception as error:  # a template is a program and may raise anything
            roles = ", ".join(m["role"] for m in chat.messages)
            hint = "if it knows no system message, set data.system_prompt to null"
            raise DataError(
                f"the model's chat template refuses messages of the roles {roles}: "
                f"{' '.join(str(error).split())[:300]}; "
                f"{hint if chat.has_system_message else 'use a model whose template takes them, or other data'}"
            ) from None

    def _probe(self, chat: Chat) -> None:
        """Raise DataError if the template leaves out a message in a chat of this shape with other words.

        A short message or the name of a tool may also be a part of the template, so that finding it in the rendering
        proves nothing. The words of this check are in no template.
        """
        shape = (
            *((m["role"], *sorted(m), bool(m["content"].strip()), len(m.get("tool_calls", ()))) for m in chat.messages),
            len(chat.tools),
        )
        if shape in self._probed:
            return
        self._probed.add(shape)
        try:
            rendered = self._render(_probes(chat))
        except DataError:  # a template that wants certain words has been rendered with them
            return
        for number, message in enumerate(chat.messages):
            if message["content"].strip() and PROBE.format(number) not in rendered:
                raise DataError(_left_out(message, message["content"]))
            for call in message.get("tool_calls", ()):
                if PROBE.format(f"c{call['function']['name']}") not in rendered:
                    raise DataError(_left_out(message, call["function"]["name"]))
        for tool in chat.tools:
            name = tool.get("function", tool)["name"]
            if PROBE.format(f"t{name}") not in rendered:
                raise DataError(f"the model's chat template leaves out the tool {name!r}; use a model that takes tools")


def _probes(chat: Chat) -> Chat:
    """Return the chat with contents and names that no template contains."""

    def message(number: int, found: Message) -> Message:
        content = PROBE.format(number) if found["content"].strip() else found["content"]
        calls = {"tool_calls": [named(call, "c") for call in found["tool_calls"]]} if "tool_calls" in found else {}
        name = {"name": PROBE.format(f"c{found['name']}")} if found["role"] == "tool" and found.get("name") else {}
        return {**found, "content": content, **calls, **name}

    def named(tool: Mapping[str, Any], kind: str) -> dict[str, Any]:
        function = tool.get("function", tool)
        other = {**function, "name": PROBE.format(f"{kind}{function['name']}")}
        return {**tool, "function": other} if "function" in tool else other

    messages = tuple(message(number, found) for number, found in enumerate(chat.messages))
    return Chat(messages, tuple(named(tool, "t") for tool in chat.tools))


def text_head(tokenizer: Any) -> list[int]:
    """Return the tokens that the tokenizer adds before a text, such as a BOS; not those that it adds after one."""
    plain: list[int] = tokenizer.encode("a", add_special_tokens=False)
    whole: list[int] = tokenizer.encode("a")
    return next((whole[:i] for i in range(len(whole)) if whole[i : i + len(plain)] == plain), [])


def check_kwargs(tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any]) -> None:
    """Raise ConfigError if the chat template does not read one of `kwargs`. Jinja ignores such an argument."""
    if not kwargs:
        return
    known = template_arguments(tokenizer)
    for name in kwargs:
        if name not in known:
            raise ConfigError(
                f"data.template_kwargs.{name}: the model's chat template reads no such argument; it reads "
                f"{', '.join(sorted(known)) or 'none'}"
            )


def template_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return 16 hex digits of the text of the tokenizer's chat templates."""
    return hashlib.sha256(json.dumps(tokenizer.chat_template, sort_keys=True).encode()).hexdigest()[:16]


def template_arguments(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Return the names of the arguments that the tokenizer's chat templates read and that a caller may set."""
    from jinja2 import Environment, TemplateError, meta
    from jinja2.defaults import DEFAULT_NAMESPACE  # names that Jinja defines, such as range and dict

    templates: Any = tokenizer.chat_template or ""
    found = set[str]()
    for text in templates.values() if isinstance(templates, dict) else [templates]:
        try:
            tree = Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False).parse(without_own_tags(text))
        except TemplateError:  # rendering raises a clear error for it
            continue
        set_first = _set_first(tree)
        found |= {name for name in meta.find_undeclared_variables(tree) if name not in set_first}
    return found - TEMPLATE_RESERVED - set(DEFAULT_NAMESPACE) - set(tokenizer.special_tokens_map)


def without_own_tags(text: str) -> str:
    """Return a template without the tags that Transformers adds to Jinja."""
    return re.sub(r"\{%-?\s*(?:end)?generation\s*-?%\}", "", text)


def _set_first(tree: Any) -> set[str]:
    """Return the names that a template sets before it reads them: a value of the caller has no effect."""
    from jinja2 import nodes

    first: dict[str, str] = {}

    def visit(node: Any) -> None:
        if isinstance(node, nodes.Name):
            first.setdefault(node.name, node.ctx)
        children = list(node.iter_child_nodes())
        for child in reversed(children) if isinstance(node, nodes.Assign) else children:  # the value before the name
            visit(child)

    visit(tree)
    return {name for name, context in first.items() if context == "store"}


Alternatives = Sequence[Sequence[str]]


def _parts(chat: Chat, thought_ends: Sequence[str]) -> Iterator[tuple[Message, Alternatives]]:
    """Yield the parts of each message that the rendering must have: all texts of one of the alternatives.

    The first alternative is the text of the row. Templates may strip white space around a content, change the layout
    of a thought, and leave out thoughts of turns before the user's last message.
    """
    last_user = max(n for n, m in enumerate(chat.messages) if m["role"] == "user")
    for number, message in enumerate(chat.messages):
        content = message["content"].strip()
        if content:
            alternatives = [[content]]
            end = next((mark for mark in thought_ends if mark in content), None)
            if message["role"] == "assistant" and end is not None:
                thought, _, answer = content.rpartition(end)
                kept = [thought.strip().removeprefix(THINK_START).strip()] if number > last_user else []
                alternatives.append([*kept, answer.strip()])
            yield message, alternatives
        for key in REASONING:
            if message.get(key, "").strip() and number > last_user:
                yield message, [[message[key].strip()]]
        if message.get("name"):
            yield message, [[message["name"]]]
        for call in message.get("tool_calls", ()):
            yield message, [[call["function"]["name"]]]
            for text in _leaves(call["function"]["arguments"]):
                yield message, [[text], [json.dumps(text, ensure_ascii=False)[1:-1]], re.findall(r"\w+", text)]


def _leaves(value: Any) -> Iterator[str]:
    """Yield the names, texts and whole numbers in the arguments of a call."""
    if isinstance(value, Mapping):
        for key, held in value.items():
            yield str(key)
            yield from _leaves(held)
    elif isinstance(value, list | tuple):
        for held in value:
            yield from _leaves(held)
    elif isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        yield str(value)


def _left_out(message: Message, text: str) -> str:
    shown = " ".join(text.split())[:60]
    remedy = (
        "set data.system_prompt to null and ask for the format in the prompts"
        if message["role"] in SYSTEM_ROLES
        else "use a model whose template renders it, or remove it from the data"
    )
    return f"the model's chat template leaves out {shown!r} of the {message['role']} message; {remedy}"
