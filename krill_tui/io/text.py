"""The one sanitizer. Text of models, worlds and files is data: never markup, never a control sequence.

`storable` and `clean_text` stand where text enters, `plain`, `one_line` and `markdown_text` where it leaves for a
terminal or a report.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from krill_tui.io.secrets import masked

# Controls, line and paragraph separators, lone surrogates, bidi embeddings, overrides and isolates, zero-width
# blanks, and the invisible tags of U+E0000 that can hide a sentence. Joiners stay: emoji and scripts need them.
_UNSTORED = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\u202a-\u202e\u2066-\u206f\u200b\u2060-\u2064\ufeff\U000e0000-\U000e007f]"
)
_SURROGATES = re.compile("[\ud800-\udfff]")
_ESCAPE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor moves
    r"|\x1b[\]PX^_][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c|$)?"  # OSC, DCS, SOS, PM, APC: titles, links, clipboards
    r"|\x1b[ -/]*[0-~]"  # two-byte escapes
    r"|\x9b[0-?]*[ -/]*[@-~]"  # CSI as one C1 byte
)
_NOT_ASCII = re.compile("[^\x00-\x7e]")
_MARKUP = re.compile(r"[\\`*\[\]<>#|~&]|!(?=\[)|(?<![^\W_])_|_(?![^\W_])")
"""What Markdown reads as more than itself; a `_` inside a word is none."""
_LINE_ENDS = re.compile(r"\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Cn"}
"""Controls, format characters (zero width, bidi overrides, tags), lone surrogates, private and unassigned ones."""
_JOINERS = "\u200c\u200d"
"""Format characters that emoji and several scripts are written with."""


def storable(text: str) -> str:
    """`text` that any file can hold: a lone surrogate becomes U+FFFD, all else stays."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


def clean_text(text: str, limit: int = 2000) -> str:
    """One line of printable text of at most `limit` characters, to be kept.

    Skills come from models and files: a control character could move a terminal's cursor, a line
    break could forge a second skill in a prompt.
    """
    line = " ".join(text.split())
    if not line.isascii() or not line.isprintable():
        # Blanks that stood around what is taken out are one blank: cleaned text is clean for good.
        line = " ".join(_UNSTORED.sub("", line).split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def cut_middle(text: str, limit: int) -> str:
    """`text` where it has at most `limit` characters; else its first and last half of `limit`, and how much is cut."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters cut …]\n{text[-half:]}"


def plain(text: str, *, limit: int = 200_000) -> str:
    """`text` without escape sequences, control and invisible characters; line ends become `\\n`, tabs spaces.

    Known secrets and those of addresses are masked. What remains is at most `limit` characters long, a cut being marked
    with an ellipsis.
    """
    cut = masked(text)[: limit + 1]
    if cut.isascii() and cut.isprintable():
        return _shortened(cut, limit)
    cut = _LINE_ENDS.sub("\n", _ESCAPE.sub("", cut)).expandtabs(4)
    kept = (c for c in cut if c == "\n" or c in _JOINERS or unicodedata.category(c) not in _UNSAFE)
    return _shortened("".join(kept), limit)


def one_line(text: str, *, limit: int = 400) -> str:
    """`plain` text on a single line, runs of blanks made one."""
    return _shortened(" ".join(plain(text[: limit * 8]).split()), limit)


def plain_line(text: str) -> str:
    """`plain` text whose line ends are blanks; unlike `one_line` it keeps columns that blanks align."""
    return plain(text).replace("\n", " ").rstrip()


def ascii_json(json_text: str) -> str:
    """JSON with every character that is not printable ASCII escaped: the same value in any encoding and terminal."""
    return (
        json_text if json_text.isascii() and "\x7f" not in json_text else _NOT_ASCII.sub(_escaped, json_text)
    )


def json_line(value: Any, indent: int | None = None) -> str:
    """`value` as `ascii_json`; numbers that JSON has not, infinities and NaN, are null."""
    try:
        return ascii_json(json.dumps(value, indent=indent, allow_nan=False))
    except ValueError:
        return ascii_json(json.dumps(_finite(value), indent=indent, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _escaped(match: re.Match[str]) -> str:
    return json.dumps(match[0])[1:-1] if match[0] != "\x7f" else "\\u007f"


def markdown_text(text: str) -> str:
    """`text` on one line so that Markdown shows it as it is."""
    return _MARKUP.sub(r"\\\g<0>", one_line(text, limit=2000))


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
