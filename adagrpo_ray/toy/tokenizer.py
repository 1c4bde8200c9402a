"""The tokenizer of the tiny model: characters, and one token for each word that every prompt has.

Encoding and decoding keeps any printable ASCII text. A word of the system prompt includes the spaces around it, which
keeps a rendered prompt under 40 tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from adagrpo_ray.config.data import FormatSettings
from adagrpo_ray.data.arithmetic import SYSTEM_PROMPT, THINK_START

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, START, END, UNKNOWN = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>"
ROLES = ("system", "user", "assistant")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def words(markers: FormatSettings) -> list[str]:
    """Return the texts of more than one character that are one token each."""
    in_prompt = dict.fromkeys(re.findall("[A-Za-z]+", re.sub(r"<.*?>|{.*?}", "", SYSTEM_PROMPT)))
    spaced = [before + word + after for word in in_prompt for before in ("", " ") for after in ("", " ")]
    roles = [role + "\n" for role in ROLES]
    return [*dict.fromkeys([THINK_START, *markers.model_dump().values(), *roles, *spaced])]


def build_tokenizer(
    markers: FormatSettings, more: Sequence[str] = (), template: str = CHAT_TEMPLATE
) -> PreTrainedTokenizerFast:
    """Return the tokenizer for these markers; each marker and each text of `more` is one token, and none is special."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = [*words(markers), *more]
    characters = ["\n", *map(chr, range(ord(" "), ord("~") + 1))]
    vocabulary = dict.fromkeys([PAD, START, END, UNKNOWN, *characters, *known])
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token=UNKNOWN))
    longest_first = sorted(known, key=len, reverse=True)
    pattern = "|".join([*map(re.escape, longest_first), r"[\s\S]"])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=[START],
        clean_up_tokenization_spaces=False,
        chat_template=template,
        model_max_length=512,
    )
