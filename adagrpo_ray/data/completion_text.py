"""The text of a completion, and the token that ends it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from adagrpo_ray.config.data import FormatSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PARTIAL = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer writes for bytes that are no whole character."""

_SAID = "0123456789"


class CompletionText:
    """Turns token ids into the text that is scored, shown and stored.

    Special tokens are left out, except those that a marker of `format` names: a marker may be a special token, as
    `</think>` is for some models. The token that ended the completion is left out too, whether or not the tokenizer
    calls it special, unless a marker names it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, format: FormatSettings) -> None:
        self._tokenizer = tokenizer
        added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items()}
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        special |= set(tokenizer.all_special_ids)
        # Not every special token that a marker is encoded to: the unknown token stands for what cannot be encoded.
        self._named = {
            i
            for marker in format.model_dump().values()
            for i in tokenizer.encode(marker, add_special_tokens=False)
            if added.get(i, "") and added[i].strip() in marker
        }
        self._skipped = special - self._named

    def text(self, ids: Sequence[int], *, ended: bool = False) -> str:
        """The text of a whole completion; `ended` says that its last token ended it."""
        return self._decode(self._kept(ids, ended))

    def stream(self) -> TextStream:
        """The same for a completion that grows."""
        return TextStream(self)

    def _kept(self, ids: Sequence[int], ended: bool) -> list[int]:
        if ended and len(ids) and ids[-1] not in self._named:
            ids = ids[:-1]
        return [int(i) for i in ids if i not in self._skipped]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))


class TextStream:
    """The text of one completion that grows."""

    def __init__(self, decoder: CompletionText) -> None:
        self._decoder = decoder
        self._ids: list[int] = []
        # The text of `_ids[:_told]` is out. Decoding begins a little before, since a token's text may depend on the
        # one in front of it.
        self._begin = self._told = 0

    def grow(self, ids: Sequence[int], finish_reason: str | None) -> str:
        """What the completion's text grows by with these new ids; a character that is not whole yet waits."""
        self._ids += self._decoder._kept(ids, finish_reason == "stop")
        before = self._decoder._decode(self._ids[self._begin : self._told])
        text = self._decoder._decode(self._ids[self._begin :])
        if finish_reason is None and (text.endswith(PARTIAL) or len(text) <= len(before)):
            return ""
        self._begin, self._told = self._told, len(self._ids)
        return text[len(before) :]


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that the chat template writes after the assistant's message; None if there is none.

    A model ends its turn with it. If it is neither the tokenizer's `eos_token` nor in `generation_config.json`,
    nothing else names it.
    """
    asked, said = {"role": "user", "content": "?"}, {"role": "assistant", "content": _SAID}
    for messages in ([asked, said, asked], [asked, said]):
        try:
            rendered: Any = tokenizer.apply_chat_template(messages, tokenize=False)
        except Exception:  # a template is a program of its own
            continue
        _, found, behind = str(rendered).rpartition(_SAID)
        if not found:
            continue
        behind = behind.lstrip()
        ends: list[tuple[int, int]] = [
            (len(token.content), i)
            for i, token in tokenizer.added_tokens_decoder.items()
            if token.content.strip() and behind.startswith(token.content.strip())
        ]
        if ends:
            return max(ends)[1]
    return None


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end a completion as far as the tokenizer knows: its own, and the chat template's."""
    return sorted({i for i in (tokenizer.eos_token_id, end_of_turn(tokenizer)) if i is not None})
