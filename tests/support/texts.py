"""Texts of users that break code which uses names or texts carelessly."""

from __future__ import annotations

from hypothesis import strategies as st

MEAN = (
    *("facile é", "a/b", "a", "..", ".", "../../etc/passwd", "/", "//", "a//b", ".hidden", " lead", "trail ", " ", "%"),
    *("50 %", "%41", "A", "%H", "%Habc", ":41", "::", ":H", "a:b", "my_rewards:short", "~", "a\nb", "a\tb", "a\rb"),
    *("\x00", "\x1b[31mred", "[red]x[/red]", "$x$", r"\frac{1}", "$", '"quoted"', "'", "<script>alert(1)</script>"),
    *("|", "a|b", "\\|", "*bold*", "[x](javascript:1)", "`", "```", "# head", "---", "&amp;", "{{difficulty}}", "${x}"),
    *("\N{GRINNING FACE}", "\u202e gnp", "\ud800", "\ud83d\ude00", "e\u0301", "\xe9", "\u200b", "数学", "prüfe"),
    *("x" * 199, "x" * 200, "x" * 201, "x" * 5000, "é" * 5000, "é" * 5001, "9" * 5000, "nan", "None", "null", "-1"),
)

texts = st.text(st.characters(), max_size=80) | st.text(st.sampled_from("%:HA41/. é\ud800\n"), max_size=12)
"""Any text, or one of characters with a meaning in names."""
