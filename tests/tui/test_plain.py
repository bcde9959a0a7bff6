"""What others wrote is shown as text and nothing else."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krill_tui.io.text import one_line, plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("go to fridge 1", "go to fridge 1"),
        ("[bold]x[/bold]", "[bold]x[/bold]"),
        ("[@click=app.quit]y[/]", "[@click=app.quit]y[/]"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;owned\x07title", "title"),
        ("\x1b]8;;http://x\x1b\\link", "link"),
        ("\x1b[2J\x1bcwiped", "wiped"),
        ("\x9b31mc1", "c1"),
        ("\x1b]never closed", ""),
        ("a\x00b\x07c\x7fd", "abcd"),
        ("zero\u200bwidth\ufeff", "zerowidth"),
        ("\u202egnp.exe\u202c", "gnp.exe"),
        ("lone \ud800 half", "lone  half"),
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("a\tb", "a   b"),
        ("shrimp 🦐", "shrimp 🦐"),
        ("Zürich → 東京", "Zürich → 東京"),
    ],
)
def test_only_visible_text_remains(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_a_long_text_is_cut_with_an_ellipsis() -> None:
    assert plain("x" * 50, limit=10) == "x" * 9 + "…"
    assert len(one_line("word " * 1000, limit=80)) == 80


def test_one_line_has_no_line_ends() -> None:
    assert one_line("  a \n\n b\t c ") == "a b c"


@given(st.text())
def test_no_text_keeps_a_control_or_format_character(text: str) -> None:
    shown = plain(text)
    assert all(c == "\n" or unicodedata.category(c) not in {"Cc", "Cf", "Cs"} for c in shown)
    assert plain(shown) == shown
