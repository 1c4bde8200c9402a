"""Reading numbers as people write them, in linear time in the length of the text, and safe for any text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

# Longer texts are refused: they are no answers, and int() has a limit of its own (4300 digits).
MAX_NUMBER_LENGTH = 1000
# Larger powers of ten are refused: the exact value would have as many digits.
MAX_EXPONENT = 1000

# Full-width ASCII, minus signs and dashes, and the spaces used between groups of digits.
_PLAIN = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_PLAIN |= dict.fromkeys((0x2010, 0x2011, 0x2012, 0x2013, 0x2212, 0xFE63), ord("-"))
_PLAIN |= dict.fromkeys((0x00A0, 0x2007, 0x2009, 0x202F, 0x3000), ord(" "))

_TIMES = "[x*\N{MULTIPLICATION SIGN}]"


def _digits(gap: str) -> str:
    """Return the pattern of an unsigned decimal number; all groups of three digits have the same separator, `gap`."""
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
_SIMPLE = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")  # the fast path for most numbers
# Marks around an answer that are no part of it.
_WRAPS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), (r"\boxed{", "}"), (r"\text{", "}"))
_MOST_WRAPS = 4


@dataclass(frozen=True)
class Number:
    """An exact value. `percent`: it was written as a percentage; "50%" has the value 1/2."""

    value: Fraction
    percent: bool = False

    def readings(self, other: Number) -> tuple[Fraction, ...]:
        """Return the values to compare with `other`: "50%" is 1/2, and also 50 if `other` is no percentage.

        math-verify reads a percentage in the same two ways.
        """
        return (self.value, self.value * 100) if self.percent and not other.percent else (self.value,)


def normalised(text: str) -> str:
    """Return the text with full-width characters, minus signs and thin spaces as ASCII, of the same length."""
    return text if text.isascii() else text.translate(_PLAIN)


def plain(text: str) -> str:
    r"""Return an answer without white space, dollars, \boxed{}, bold and a final full stop around it."""
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
    """Return the text between one pair of marks if they enclose the whole text, else None."""
    if len(text) < len(start) + len(end) or not (text.startswith(start) and text.endswith(end)):
        return None
    inner = text[len(start) : -len(end)]
    if end != "}":
        return None if start in inner or end in inner else inner
    return inner if closing_brace(inner + end) == len(inner) else None


def closing_brace(text: str) -> int:
    """Return the index of the brace that closes one opened before the text; -1 if there is none."""
    depth = 1
    for found in re.finditer(r"[{}]", text):
        depth += 1 if found.group() == "{" else -1
        if depth == 0:
            return found.start()
    return -1


def read_number(text: str) -> Number | None:
    r"""Return the number that the text is, as people write it; None if it is none.

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
    """Return the exact value of a number such as " -1,234.50 "; None if the text is no number. "50%" is 1/2."""
    number = read_number(text)
    return None if number is None else number.value


def same_number(a: Number | None, b: Number | None) -> bool:
    """Return whether both are numbers with the same value."""
    return a is not None and b is not None and not set(a.readings(b)).isdisjoint(b.readings(a))
