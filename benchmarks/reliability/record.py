"""How a figure is shown and kept: a JSON object on standard output, and a section of docs/reliability.md."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"


def show(figure: str, facts: Mapping[str, object], *, keep: bool) -> None:
    """Print the facts of a figure as one line of JSON; with `keep`, write them into the page as well.

    `figure` is a heading of the page. Its section is replaced, or added at the end; the words above the table stay.
    """
    print(json.dumps({"figure": figure, **facts}))
    if keep:
        PAGE.write_text(_with_section(PAGE.read_text(encoding="utf-8"), figure, facts), encoding="utf-8")


def _with_section(page: str, figure: str, facts: Mapping[str, object]) -> str:
    command = f"python -m {_module()} {' '.join(sys.argv[1:])}".strip()
    table = [
        f"`{command}`, {time.strftime('%Y-%m-%d')}, commit {_commit()}:",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {_cell(value)} |" for name, value in facts.items()),
    ]
    heading = f"## {figure}\n"
    if heading not in page:
        page = f"{page.rstrip()}\n\n{heading}\n"
    before, _, rest = page.partition(heading)
    body, separator, after = rest.partition("\n## ")
    words = re.split(r"^`python -m ", body, maxsplit=1, flags=re.MULTILINE)[0].strip()
    section = "\n\n".join(part for part in (words, "\n".join(table)) if part)
    return f"{before}{heading}\n{section}\n{separator}{after}"


def _cell(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else "?"


def _commit() -> str:
    result = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=PAGE.parent, capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or "unknown"
