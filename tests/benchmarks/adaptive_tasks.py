"""Tasks of reasoning-gym for the section `real`: candidates, and the ones of the section.

`make bench-adaptive ARGS="--rates --section real"` measures the success rate of each candidate on the untrained model.
"""

from __future__ import annotations

SUM = (
    "{name: basic_arithmetic, config: {min_terms: 2, max_terms: 2, min_digits: 1, max_digits: 1, operators: [+], "
    "allow_parentheses: false}}"
)

LONG_SUM = "{name: chain_sum, config: {min_terms: 3, max_terms: 3, min_digits: 2, max_digits: 2}}"
PRODUCT = "{name: products, config: {max_terms: 2, max_digits: 1}}"
LCM = "{name: lcm, config: {max_value: 15}}"
BITS = "{name: count_bits, config: {max_n: 127}}"
LETTERS = "{name: letter_counting, config: {min_words: 1, max_words: 2}}"
LARGER = "{name: number_format, config: {max_num_candidates: 2, min_n: 1000, max_n: 9999, max_delta: 1000}}"
BACKWARD = "{name: spell_backward, config: {min_word_len: 3, max_word_len: 4}}"

MIX = (SUM, LONG_SUM, PRODUCT, LCM, BITS, LETTERS, LARGER, BACKWARD)
"""The tasks of the section. Their success rates have to run from 0 to over 0.5."""

CANDIDATES = (
    *MIX,
    "{name: chain_sum, config: {min_terms: 2, max_terms: 2, min_digits: 1, max_digits: 1}}",
    "{name: chain_sum, config: {min_terms: 2, max_terms: 2, min_digits: 2, max_digits: 2}}",
    "{name: gcd, config: {max_value: 20}}",
    "{name: gcd, config: {max_value: 100}}",
    "{name: count_bits, config: {max_n: 1023}}",
    "{name: count_primes, config: {max_n: 40}}",
    "{name: letter_counting, config: {min_words: 1, max_words: 1}}",
    "{name: letter_counting, config: {min_words: 3, max_words: 5}}",
    "{name: spell_backward, config: {min_word_len: 5, max_word_len: 6}}",
    "{name: simple_equations, config: {max_terms: 2, max_value: 9}}",
    "{name: number_sequence, config: {max_terms: 5, min_value: 0, max_value: 20, max_complexity: 1}}",
    "{name: fraction_simplification, config: {max_value: 10, max_factor: 5, styles: [plain]}}",
    "{name: ransom_note, config: {max_note_length: 3, max_magazine_length: 6}}",
    "{name: isomorphic_strings, config: {max_string_length: 4}}",
    "{name: syllogism}",
)
"""Tasks whose success rates `--rates` measures; prompts and answers of each are short."""
