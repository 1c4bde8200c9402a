"""The text of a completion, and the tokens that end it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from adagrpo_ray.config.data import FormatSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PARTIAL = "\N{REPLACEMENT CHARACTER}"
"""Character that a tokenizer writes for bytes of an incomplete character."""

_PROBE = "0123456789"


class CompletionText:
    """Decodes token ids to the text that is scored, shown and stored.

    Special tokens are left out, unless they are part of a marker of `format`: `</think>` is a special token of some
    models. The token that ended the completion is left out too, special or not, unless it is part of a marker.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, format: FormatSettings) -> None:
        self._tokenizer = tokenizer
        added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items()}
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        special |= set(tokenizer.all_special_ids)
        # Only tokens that the marker contains: a marker that cannot be encoded becomes the unknown token.
        self._named = {
            i
            for marker in format.model_dump().values()
            for i in tokenizer.encode(marker, add_special_tokens=False)
            if added.get(i, "") and added[i].strip() in marker
        }
        self._skipped = special - self._named

    def text(self, ids: Sequence[int], *, ended: bool = False) -> str:
        """Return the text of a whole completion; `ended`: its last token is the one that ended it."""
        return self._decode(self._kept(ids, ended))

    def stream(self) -> TextStream:
        """Return a decoder for one completion that grows."""
        return TextStream(self)

    def _kept(self, ids: Sequence[int], ended: bool) -> list[int]:
        if ended and len(ids) and ids[-1] not in self._named:
            ids = ids[:-1]
        return [int(i) for i in ids if i not in self._skipped]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))


class TextStream:
    """Decodes one completion that grows."""

    def __init__(self, decoder: CompletionText) -> None:
        self._decoder = decoder
        self._ids: list[int] = []
        # The text of `_ids[:_returned]` was returned. Decoding begins a little before, since the text of a token may
        # depend on the token before it.
        self._begin = self._returned = 0

    def grow(self, ids: Sequence[int], finish_reason: str | None) -> str:
        """Add new ids and return the text that they add. An incomplete character is kept for the next call."""
        self._ids += self._decoder._kept(ids, finish_reason == "stop")
        before = self._decoder._decode(self._ids[self._begin : self._returned])
        text = self._decoder._decode(self._ids[self._begin :])
        if finish_reason is None and (text.endswith(PARTIAL) or len(text) <= len(before)):
            return ""
        self._begin, self._returned = self._returned, len(self._ids)
        return text[len(before) :]


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the token that the chat template writes after the assistant's message; None if there is none.

    A model ends its turn with it. It may be neither the tokenizer's `eos_token` nor in `generation_config.json`; then
    the template is the only source of it.
    """
    question, answer = {"role": "user", "content": "?"}, {"role": "assistant", "content": _PROBE}
    for messages in ([question, answer, question], [question, answer]):
        try:
            rendered: Any = tokenizer.apply_chat_template(messages, tokenize=False)
        except Exception:  # a template is a program and may raise anything
            continue
        _, found, behind = str(rendered).rpartition(_PROBE)
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
    """Return the tokens that end a completion: the tokenizer's `eos_token` and the end of a turn."""
    return sorted({i for i in (tokenizer.eos_token_id, end_of_turn(tokenizer)) if i is not None})
