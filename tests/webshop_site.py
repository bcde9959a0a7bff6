"""A stand-in for the WebShop site: the same hooks, forms and addresses by session, over a shop of ours."""

from __future__ import annotations

from html import escape
from urllib.parse import parse_qs, quote, unquote

from krill_tui.envs.webshop.pages import Piece
from krill_tui.envs.webshop.procedural import build_catalogue, draw_goal
from krill_tui.envs.webshop.session import Session

_SHELL = """<!DOCTYPE html>
<html>
  <head><title>WebShop</title><style>h4 {{ color: red }}</style><script>var x = "<h4>not shown</h4>";</script></head>
  <body>
    <!-- <h4>old layout</h4> -->
    <div class="container">
      {}
    </div>
  </body>
  <script>$("input:radio").each(function() {{ window.location.href = this.dataset.url; }});</script>
</html>"""


class Site:
    """Answers (method, path, form) with (status, headers, body)."""

    def __init__(self, seed: int, size: int) -> None:
        self.catalogue = build_catalogue(seed, size)
        self.seed = seed
        self.sessions: dict[str, Session] = {}

    def session(self, name: str) -> Session:
        if name not in self.sessions:
            assert "fixed" in name
            goal = draw_goal(self.catalogue, self.seed, "test", int(name.split("_")[-1]))
            self.sessions[name] = Session(self.catalogue, goal, name=name)
        return self.sessions[name]

    def answer(self, method: str, path: str, body: str) -> tuple[int, dict[str, str], str]:
        name, _, click = path.strip("/").partition("/go/")
        name = name.removesuffix("/results")
        session = self.session(name)
        form = parse_qs(body)
        if click:
            session.step(f"click[{unquote(click)}]")
        elif method == "POST" and "search_query" in form:
            session.step(f"search[{form['search_query'][0]}]")
            return 302, {"Location": f"/{name}/results"}, ""
        elif not path.endswith("/results"):
            session.step("click[back to search]")
        return 200, {}, self.page(session, name)

    def page(self, session: Session, name: str) -> str:
        pieces = [self.piece(piece, name) for piece in session.page]
        if session.has_search_bar:
            button = pieces.pop()
            box = '<input id="search_input" type="text" name="search_query" required/>'
            pieces.append(button.replace("<button", f"{box}\n<button"))
        if session.done:
            texts = [piece.text for piece in session.page]
            shown, hidden = texts[:4], texts[4:-4]
            pieces = [f"<h3>{escape(text)}</h3>" for text in shown]
            pieces += [
                f'<div style="display:none"><div>{escape(" ".join(hidden))}</div><p>Goal: a red hat</div>'
            ]
            pieces += [f'<h3 id="reward">{escape(texts[-4])}<pre>{texts[-3]}</pre></h3>']
            pieces += ["<h4 hidden>Reward Details <div><pre>{}</pre></div></h4>"]
        return _SHELL.format("\n      ".join(pieces))

    def piece(self, piece: Piece, name: str) -> str:
        kind, text, group = piece
        address = f"/{name}/go/{quote(text.strip().lower(), safe='')}"
        if kind == "button":
            target = f"/{name}" if text in ("Back to Search", "Search") else address
            form = f'<form method="post" action="{target}">'
            return f'{form}\n<button type="submit" class="btn btn-lg"><i class="icon"></i>{escape(text)}</button>\n</form>'
        if kind == "product":
            return f'<h4 class="product-asin"><a class="product-link" href="{address}">{text}</a></h4>'
        if kind == "option":
            value = escape(text)
            radio = f'<input type="radio" id="r" name="{escape(group)}" value="{value}" data-url="{address}">'
            return f'{radio}<label for="r">{value}</label>'
        return f"<p>{escape(text)}</p>" if text else ""
