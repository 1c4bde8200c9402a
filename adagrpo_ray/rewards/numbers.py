"""Reading numbers as people write them. Linear in the length of the text, and safe for any text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

# Longer digit strings are refused: they are no answers, and int() has a limit of its own (4300).
MAX_NUMBER_LENGTH = 1000
# Powers of ten beyond it are refused: the exact value would have as many digits.
MAX_EXPONENT = 1000

# Full-width ASCII, minus signs and dashes, and the spaces that stand between groups of digits.
_PLAIN = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_PLAIN |= dict.fromkeys((0x2010, 0x2011, 0x2012, 0x2013, 0x2212, 0xFE63), ord("-"))
_PLAIN |= dict.fromkeys((0x00A0, 0x2007, 0x2009, 0x202F, 0x3000), ord(" "))

_TIMES = "[x*\N{MULTIPLICATION SIGN}]"


def _digits(gap: str) -> str:
    """The pattern of an unsigned decimal number: groups of three digits have one separator, `gap`, throughout."""
    grouped = rf"[0-9]{{1,3}}(?P<{gap}>,|\{{,\}}|\\,|\\!|[ '_])[0-9]{{3}}(?:(?P={gap})[0-9]{{3}})*"
    return rf"(?:{grouped}(?:\.[0-9]*)?|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"


_POWER = rf" ?(?:\\times|\\cdot|{_TIMES}) ?10 ?\^ ?(?P<power>[+-]?[0-9]{{1,4}}|\{{[+-]?[0-9]{{1,4}}\}})"
_FRACTION = r"\\[dt]?frac(?:\{(?P<frac_top>[0-9]+)\}\{(?P<frac_bottom>[0-9]+)\}|(?P<short>[0-9]{2}))"
_NUMBER = re.compile(
    r"(?P<sign>[+-]?)(?:\\?[$€£¥] ?(?P<inner_sign>[+-]?))?"
    rf"(?:(?P<top>{_digits('gap')})(?:[eE](?P<exponent>[+-]?[0-9]{{1,4}})|{_POWER})?"
    rf"(?: ?/ ?(?P<bottom>{_digits('gap_below')}))?|{_FRACTION})"
    r"(?P<percent> ?\\?%)?"
)
_SIMPLE = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")  # most are so, and need no more
# What stands around an answer and is no part of it.
_WRAPS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), (r"\boxed{", "}"), (r"\text{", "}"))
_MOST_WRAPS = 4


@dataclass(frozen=True)
class Number:
    """An exact value; of "50%" it is 1/2, and `percent` says how it was written."""

    value: Fraction
    percent: bool = False

    def readings(self, other: Number) -> tuple[Fraction, ...]:
        """Values that this number may have next to `other`: "50%" is 1/2, and also 50 if only this one has the sign.

        math-verify reads a percentage in the same two ways.
        """
        return (self.value, self.value * 100) if self.percent and not other.percent else (self.value,)


def normalised(text: str) -> str:
    """The text with full-width characters, minus signs and thin spaces as their ASCII counterparts; as long as it."""
    return text if text.isascii() else text.translate(_PLAIN)


def plain(text: str) -> str:
    r"""An answer without white space, dollars, \boxed{}, bold and a final full stop around it."""
    text = found = text.strip()
    for _ in range(_MOST_WRAPS):
        if found.endswith(".") and not found.endswith(".."):
            found = found[:-1].rstrip()
        inner = next((inner for wrap in _WRAPS if (inner := _inside(found, *wrap)) is not None), None)
        if inner is None:
            break
        found = inner.strip()
    return found or text


def _inside(text: str, start: str, end: str) -> str | None:
    """What one pair of marks holds, if it is all of the text."""
    if len(text) < len(start) + len(end) or not (text.startswith(start) and text.endswith(end)):
        return None
    inner = text[len(start) : -len(end)]
    if end != "}":
        return None if start in inner or end in inner else inner
    return inner if closing_brace(inner + end) == len(inner) else None


def closing_brace(text: str) -> int:
    """Place of the brace that closes one opened before the text; -1 if there is none."""
    depth = 1
    for found in re.finditer(r"[{}]", text):
        depth += 1 if found.group() == "{" else -1
        if depth == 0:
            return found.start()
    return -1


def read_number(text: str) -> Number | None:
    r"""The number that the text is, as people write it; None if it is none.

    Worked examples: "1,000", "1 000", "$1,000.00", "1e3" and "2000/2" are 1000; "50%" and "\frac{1}{2}" are 1/2.
    """
    if len(text) <= MAX_NUMBER_LENGTH and _SIMPLE.fullmatch(text):
        return Number(Fraction(text))
    text = plain(normalised(text))
    found = _NUMBER.fullmatch(text) if len(text) <= MAX_NUMBER_LENGTH else None
    if found is None or (found["sign"] and found["inner_sign"]):
        return None
    if found["top"] is not None:
        power = int((found["exponent"] or found["power"] or "0").strip("{}"))
        if abs(power) > MAX_EXPONENT:
            return None
        top = _decimal(found["top"]) * Fraction(10) ** power
        bottom = _decimal(found["bottom"]) if found["bottom"] else Fraction(1)
    else:
        short = found["short"]
        top = Fraction(short[0] if short else found["frac_top"])
        bottom = Fraction(short[1] if short else found["frac_bottom"])
    if not bottom:
        return None
    negative = "-" in (found["sign"], found["inner_sign"])
    value = (-top if negative else top) / bottom
    return Number(value / 100 if found["percent"] else value, percent=found["percent"] is not None)


def _decimal(text: str) -> Fraction:
    return Fraction(re.sub(r"[^0-9.]", "", text))


def parse_number(text: str) -> Fraction | None:
    """The exact value of a number such as " -1,234.50 "; None if the text is none. "50%" is 1/2."""
    number = read_number(text)
    return None if number is None else number.value


def same_number(a: Number | None, b: Number | None) -> bool:
    """Whether both are numbers of one value."""
    return a is not None and b is not None and not set(a.readings(b)).isdisjoint(b.readings(a))
