"""A page of HTML as tags and texts, in one pass whose time is linear in the page's length, whatever the page is.

The standard library's parser starts anew at every tag that is never closed, which takes minutes on a hostile page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import unescape
from typing import Literal

_NAME = re.compile(r"[A-Za-z][^\s/>]*+")
_ATTRIBUTE = re.compile(r"[\s/]*+([^\s/>=][^\s/>=]*+)(?:\s*+=\s*+(\"[^\"]*+\"|'[^']*+'|[^\s>\"'][^\s>]*+)?)?")
_TAG_END = re.compile(r"[\s/]*+>")
_RAW = {name: re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE) for name in ("script", "style")}
"""Elements whose content is no HTML, with what ends them."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece of a page, in page order."""

    kind: Literal["start", "end", "comment", "text"]
    text: str = ""
    """Name of the tag, in lower case, or the text itself with its character references resolved."""
    attributes: dict[str, str] = field(default_factory=dict)
    closed: bool = False
    """A start that is its own end: `<div/>`, as the original's reader takes it."""


def scan(html: str) -> Iterator[Piece]:
    """All pieces; a tag or comment that the page breaks off in is dropped, as browsers do."""
    position = 0
    text: list[str] = []
    while position < len(html):
        start = html.find("<", position)
        if start < 0:
            text.append(html[position:])
            break
        text.append(html[position:start])
        piece, end = _markup(html, start)
        if piece is None:
            if end == start:  # a lone `<` is text
                text.append("<")
            position = max(end, start + 1)
            continue
        if any(text):
            yield Piece("text", unescape("".join(text)))
        text = []
        yield piece
        position = end
        if piece.closed:
            yield Piece("end", piece.text)
        elif piece.kind == "start" and piece.text in _RAW:
            closing = _RAW[piece.text].search(html, position)
            raw_end = closing.start() if closing else len(html)
            if raw_end > position:
                yield Piece("text", html[position:raw_end])
            position = raw_end
    if any(text):
        yield Piece("text", unescape("".join(text)))


def _markup(html: str, start: int) -> tuple[Piece | None, int]:
    """The piece that begins with the `<` at `start`, and where it ends; (None, start) where it is only text.

    What never ends takes the rest of the page with it: (None, length of the page).
    """
    if html.startswith("<!--", start):
        return _until(html, "-->", start + 2)  # `<!-->` is a whole comment
    if html.startswith(("<!", "<?"), start):
        return _until(html, ">", start + 2)
    if html.startswith("</", start):
        name = _NAME.match(html, start + 2)
        if name is None:
            return (None, start) if start + 2 >= len(html) else _until(html, ">", start + 2)
        end = html.find(">", name.end())
        return (None, len(html)) if end < 0 else (Piece("end", name[0].lower()), end + 1)
    name = _NAME.match(html, start + 1)
    return (None, start) if name is None else _start_tag(html, name)


def _start_tag(html: str, name: re.Match[str]) -> tuple[Piece | None, int]:
    attributes: dict[str, str] = {}
    position = name.end()
    while (end := _TAG_END.match(html, position)) is None:
        match = _ATTRIBUTE.match(html, position)
        if match is None:
            position += 1  # a stray sign
        else:
            position = match.end()
            value = match[2] or ""
            if value[:1] in ("'", '"'):
                value = value[1:-1]
            elif not value and html[position : position + 1] in ("'", '"'):
                return None, len(html)  # a quoted value that never ends
            attributes[match[1].lower()] = unescape(value)
        if position >= len(html):
            return None, len(html)
    return Piece("start", name[0].lower(), attributes, closed=end[0].endswith("/>")), end.end()


def _until(html: str, closing: str, position: int) -> tuple[Piece | None, int]:
    end = html.find(closing, position)
    return (None, len(html)) if end < 0 else (Piece("comment"), end + len(closing))
