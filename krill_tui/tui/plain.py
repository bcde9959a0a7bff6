"""Text of models and worlds, made safe to draw: it is data, never markup, never a control sequence."""

from __future__ import annotations

import re
import unicodedata

_ESCAPE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor moves
    r"|\x1b[\]PX^_].*?(?:\x07|\x1b\\|\x9c|$)"  # OSC, DCS, SOS, PM, APC: titles, links, clipboards
    r"|\x1b[ -/]*[0-~]"  # two-byte escapes
    r"|\x9b[0-?]*[ -/]*[@-~]",  # CSI as one C1 byte
    re.DOTALL,
)
_LINE_ENDS = re.compile(r"\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_UNSAFE = {"Cc", "Cf", "Cs", "Co", "Cn"}
"""Controls, format characters (zero width, bidi overrides, tags), lone surrogates, private and unassigned ones."""


def plain(text: str, *, limit: int = 200_000) -> str:
    """`text` without escape sequences, control and invisible characters; line ends become `\\n`, tabs spaces.

    What remains is at most `limit` characters long, a cut being marked with an ellipsis.
    """
    cut = text[: limit + 1]
    if cut.isascii() and cut.isprintable():
        return _shortened(cut, limit)
    cut = _LINE_ENDS.sub("\n", _ESCAPE.sub("", cut)).expandtabs(4)
    kept = (c for c in cut if c == "\n" or unicodedata.category(c) not in _UNSAFE)
    return _shortened("".join(kept), limit)


def one_line(text: str, *, limit: int = 400) -> str:
    """`plain` text on a single line, runs of blanks made one."""
    return _shortened(" ".join(plain(text[: limit * 8]).split()), limit)


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
