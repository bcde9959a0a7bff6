"""The scanner of site pages against the standard library's parser, on pages that are whole."""

from __future__ import annotations

from html import escape
from html.parser import HTMLParser

from hypothesis import example, given, settings
from hypothesis import strategies as st

from krill_tui.envs.clients.html_scan import scan

Seen = list[tuple[str, str, dict[str, str]]]


class _Standard(HTMLParser):
    """All pieces as the standard library sees them, neighbouring texts joined."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.seen: Seen = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(("start", tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        self.seen.append(("end", tag, {}))

    def handle_comment(self, data: str) -> None:
        self.seen.append(("comment", "", {}))

    def handle_data(self, data: str) -> None:
        if self.seen and self.seen[-1][0] == "text":
            self.seen[-1] = ("text", self.seen[-1][1] + data, {})
        else:
            self.seen.append(("text", data, {}))


_TEXT = st.text("ab <>&;\n é'\"/=", max_size=12).map(escape)
_NAME = st.sampled_from(["p", "div", "H4", "a", "button", "form", "br", "custom-x"])
_VALUE = st.text("ab <>&\n é'/=", max_size=8).map(escape)
_ATTRIBUTE = st.one_of(
    st.tuples(st.sampled_from(["class", "HREF", "data-url", "hidden"]), _VALUE).map(
        lambda p: f'{p[0]}="{p[1]}"'
    ),
    st.sampled_from(["hidden", "class=btn", "id = 'x'", "value=a/b", "required"]),
)


def _tag(parts: tuple[str, list[str], str, str]) -> str:
    name, attributes, inner, end = parts
    head = " ".join([name, *attributes])
    return f"<{head}/>" if end == "/" else f"<{head}{end}>{inner}</{name}>"


_ELEMENT = st.recursive(
    _TEXT | st.text("a -b", max_size=5).map(lambda text: f"<!--{text}x-->"),
    lambda inner: st.tuples(
        _NAME,
        st.lists(_ATTRIBUTE, max_size=3),
        st.lists(inner, max_size=3).map("".join),
        st.sampled_from(["", " ", "/"]),
    ).map(_tag),
    max_leaves=10,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_ELEMENT, max_size=4).map("".join))
@example('<style>h4 { color: "<p>" }</style><script>var x = "<h4>";</script><p>a &amp;lt; b</p>')
@example('<input id="search_input" type="text" required/><br><i class="icon"></i>a < b && c')
def test_whole_pages_are_seen_as_the_standard_library_sees_them(html: str) -> None:
    standard = _Standard()
    standard.feed(html)
    standard.close()
    seen = [(p.kind, p.text, p.attributes) for p in scan(html)]
    assert seen == standard.seen


@given(st.text("<>/!-?ab=\"' &;", max_size=60))
def test_broken_pages_are_read_to_some_end(html: str) -> None:
    for piece in scan(html):
        assert piece.kind in ("start", "end", "comment", "text")
