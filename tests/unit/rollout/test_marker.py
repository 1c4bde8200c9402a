"""The marker between thought and answer, found in any division of the text into tokens, or as a list of ids."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adagrpo_ray.rollout.marker import Automata, MarkerAutomaton, Spelling, byte_alphabet
from tests.support.scripted import byte_tokenizer

SPECIAL = ("<|im_start|>", "<|im_end|>", "</think>", "<think>", "<answer>", "</answer>")
MERGED = byte_tokenizer(SPECIAL[:2], merged=[".</", "think", ">\n", "</think>!"])
AB = byte_tokenizer(merged=["ab", "ba", "aab"])


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def automaton(marker: str | tuple[int, ...], tokenizer: Any = None) -> MarkerAutomaton:
    return Automata(lambda: tokenizer).of(marker)


def seen(search: MarkerAutomaton, ids: list[int]) -> list[bool]:
    """Whether the marker has been read, before the first id and after each."""
    state, found = 0, [False]
    for token in ids:
        state = search.step(state, token)
        found.append(state == search.last)
    return found


@pytest.mark.parametrize(
    ("marker", "ids", "first"),
    [
        ((5,), [1, 5, 2], 2),
        ((1, 2), [1, 3, 2, 1], None),
        ((1, 1, 2), [1, 1, 1, 2], 4),
        ((1, 2, 1, 3), [1, 2, 1, 2, 1, 3], 6),
        ((1, 1), [1], None),
    ],
)
def test_marker_of_ids_is_found_at_its_last_token_and_stays_found(
    marker: tuple[int, ...], ids: list[int], first: int | None
) -> None:
    found = seen(automaton(marker), [*ids, 9, 9])
    assert found == [first is not None and count >= first for count in range(len(ids) + 3)]


@given(
    marker=st.lists(st.integers(0, 1), min_size=1, max_size=6),
    ids=st.lists(st.integers(0, 2), max_size=60),
)
def test_search_agrees_with_search_of_the_whole_list(marker: list[int], ids: list[int]) -> None:
    naive = [any(ids[i : i + len(marker)] == marker for i in range(n + 1 - len(marker))) for n in range(len(ids) + 1)]
    assert seen(automaton(tuple(marker)), ids) == naive


@pytest.mark.parametrize(
    ("tokenizer", "before", "behind"),
    [
        (MERGED, "sum", "\n42"),
        (MERGED, "sum.", "\n42"),
        (MERGED, "sum.", "!"),
        (byte_tokenizer(SPECIAL), "sum", "\n"),
        (byte_tokenizer(plain=["</think>"]), "sum", ""),
        (byte_tokenizer(), "</thin</think", ""),
    ],
)
def test_marker_is_found_however_it_is_tokenized(tokenizer: Any, before: str, behind: str) -> None:
    marker = "</think>"
    ids = ids_of(tokenizer, f"{before}{marker}{behind}" if before != "</thin</think" else "</thin</think>")
    first = seen(automaton(marker, tokenizer), ids).index(True)
    assert marker in tokenizer.decode(ids[:first], skip_special_tokens=False)
    assert marker not in tokenizer.decode(ids[: first - 1], skip_special_tokens=False)
    assert not any(seen(automaton(marker, tokenizer), ids_of(tokenizer, "sum.</thin k>\n")))


def test_only_text_is_found_if_merged_with_other_text() -> None:
    ids = ids_of(MERGED, "sum.</think>\n42")
    assert not any(seen(automaton(tuple(ids_of(MERGED, "</think>"))), ids))
    assert seen(automaton("</think>", MERGED), ids)[-1]


def test_non_ascii_marker_is_found_in_its_bytes() -> None:
    tokenizer = byte_tokenizer()
    search = automaton("】答", tokenizer)
    assert not any(seen(search, ids_of(tokenizer, "é】\x80")))
    assert seen(search, ids_of(tokenizer, "é】\x80】答"))[-1]
    broken = [*ids_of(tokenizer, "é")[:1] * 9, *ids_of(tokenizer, "</think>")]
    assert seen(automaton("</think>", tokenizer), broken)[-1]


@given(st.text("ab>", max_size=30))
def test_search_agrees_with_search_in_whole_text(text: str) -> None:
    ids = ids_of(AB, text)
    assert seen(automaton("aba>", AB), ids) == ["aba>" in AB.decode(ids[:n]) for n in range(len(ids) + 1)]


@pytest.mark.parametrize("marker", ["</think>", "aba", "é", (3,), (3, 3, 1)])
def test_table_has_the_step_of_every_state_and_token(marker: str | tuple[int, ...]) -> None:
    search = automaton(marker, MERGED)
    table = search.table(len(MERGED))
    assert table.shape == (search.last + 1, len(MERGED))
    assert table.tolist() == [[search.step(s, t) for t in range(len(MERGED))] for s in range(search.last + 1)]
    np.testing.assert_array_equal(table[-1], search.last)


def test_bytes_of_tokens_add_up_to_those_of_the_text() -> None:
    spelling, text = Spelling(lambda: MERGED), "é】 </think>!\n<|im_end|>"
    assert b"".join(map(spelling.of, ids_of(MERGED, text))) == text.encode()


class Named:
    """A tokenizer with byte fallback: token 0 is half of a character, 1 is no bytes, 2 is a character itself."""

    names = ("<0xC3>", "\N{REPLACEMENT CHARACTER}", "▁é")

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [3]

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(["\N{REPLACEMENT CHARACTER}", "\N{REPLACEMENT CHARACTER}", " é", "a"][i] for i in ids)

    def convert_ids_to_tokens(self, token: int) -> str:
        return self.names[token]


def test_bytes_of_tokens_with_byte_fallback() -> None:
    spelling = Spelling(Named)
    assert [spelling.of(token) for token in range(3)] == [b"\xc3", "\N{REPLACEMENT CHARACTER}".encode(), " é".encode()]


def test_alphabet_of_bytes_is_that_of_the_tokenizers() -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    assert sorted(byte_alphabet()) == sorted(ByteLevel.alphabet())
    assert sorted(byte_alphabet().values()) == list(range(256))
    assert byte_alphabet()["Ġ"] == ord(" ")
