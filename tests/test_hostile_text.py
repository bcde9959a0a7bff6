"""Text of models, worlds and files never reaches a terminal as more than text."""

from __future__ import annotations

import ast
import io
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

import krill_tui
from krill_tui import headless
from krill_tui.cli.app import run
from krill_tui.io.text import ascii_json, json_line, markdown_text, one_line, plain, plain_line
from krill_tui.tui.app import KrillApp
from krill_tui.tui.replay import ReplaySource
from tests.hostile import EVENTS, EVIL, filled, forbidden, hostile_events, write_hostile_run
from tests.tui.conftest import shown

Krill = Callable[..., str]


@pytest.fixture
def krill(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Krill:
    """Everything that a command writes, in a folder with the hostile run `bad`."""
    monkeypatch.chdir(tmp_path)
    write_hostile_run(tmp_path / "runs" / "bad")
    from krill_tui.trajectory import Trajectory

    episode = filled(Trajectory).model_dump(mode="json")
    (tmp_path / "episodes.json").write_text(json.dumps([episode]), encoding="utf-8")
    (tmp_path / "c.json").write_text(json.dumps({EVIL: 1}), encoding="utf-8")

    def krill(*arguments: str) -> str:
        run(arguments)
        out, err = capfd.readouterr()
        assert out + err, "the command printed nothing"
        return out + err

    return krill


@pytest.mark.parametrize(
    "arguments",
    [
        ["runs"],
        ["runs", "--json"],
        ["replay", "bad", "--display", "plain"],
        ["replay", "bad", "--display", "json"],
        ["watch", "bad", "--display", "plain"],
        ["watch", "bad", "--display", "json"],
        ["report", "bad"],
        ["report", "bad", "--json"],
        ["report", EVIL],
        ["report", "bad", EVIL, "--svg", "x.svg"],
        ["inspect", "runs/bad"],
        ["inspect", "runs/bad", "--json"],
        ["inspect", "episodes.json"],
        ["inspect", "episodes.json", "--json"],
        ["inspect", EVIL],
        ["lint", "episodes.json"],
        ["lint", "episodes.json", "--json"],
        ["lint", "bad"],
        ["convert", "to-rust", "episodes.json", "out.json"],
        ["convert", "eto", "episodes.json", "out.json"],
        ["convert", "eto", "episodes.json", "out.json", "--json"],
        ["convert", EVIL, "a", "b"],
        ["doctor", "--config", "c.json"],
        ["doctor", "--set", f"env.webshop_data={EVIL}"],
        ["doctor", "--json", "--set", f"policy.model={EVIL}"],
        ["train", "--run", EVIL],
        ["play", "--split", EVIL],
        ["collect", "--policy", "random", "--output", "/\x1b[31m/\u202e/x", "--episodes", "1"],
    ],
    ids=lambda arguments: " ".join(arguments).encode("ascii", "replace").decode()[:40],
)
def test_no_command_lets_a_control_character_through(krill: Krill, arguments: list[str]) -> None:
    said = krill(*arguments)
    assert not forbidden(said)


def test_each_kind_of_event_and_its_fields_are_tried() -> None:
    events = hostile_events()
    assert {type(event) for event in events} == set(EVENTS)
    silent = [event.kind for event in events if not set(EVIL) & set(event.model_dump_json())]  # pyright: ignore[reportAttributeAccessIssue]
    assert set(silent) <= {"control_changed"}


def test_an_old_report_with_escapes_is_printed_as_text(krill: Krill, tmp_path: Path) -> None:
    (tmp_path / "runs" / "bad" / "report.md").write_text(f"# Run\n\n{EVIL}\n- end\n", encoding="utf-8")
    said = krill("report", "bad")
    assert not forbidden(said)
    assert said.startswith("# Run\n\n") and said.endswith("- end\n")


def test_a_report_shows_text_and_no_markup(krill: Krill, tmp_path: Path) -> None:
    krill("runs")
    report = (tmp_path / "runs" / "bad" / "report.md").read_text(encoding="utf-8")
    body = "\n".join(line for line in report.splitlines() if not line.startswith("    "))
    assert not forbidden(report)
    assert "<script>" not in body and "![i](" not in body and "| ```" not in body
    rows = [line for line in body.splitlines() if line.startswith("| ")]
    assert rows and all(line.replace("\\|", "").count("|") in (4, 6) for line in rows)


def test_curves_hold_hostile_names_as_text(krill: Krill, tmp_path: Path) -> None:
    krill("report", "bad", "--svg", "out.svg")
    drawing = (tmp_path / "out.svg").read_text(encoding="utf-8")
    assert not forbidden(drawing)
    tags = {element.tag.partition("}")[2] for element in ET.fromstring(drawing).iter()}
    assert "script" not in tags


def test_the_console_is_a_gate_of_its_own() -> None:
    """Whatever a later command hands to it, in whatever shape."""
    out = io.StringIO()
    console = headless.make_console(out)
    console.print(EVIL, Text(EVIL), Panel(EVIL, title=EVIL), Columns([EVIL, EVIL]))
    assert not forbidden(out.getvalue())
    coloured = io.StringIO()
    terminal = type(console)(file=coloured, force_terminal=True, color_system="standard", markup=False)
    assert isinstance(terminal, Console)
    terminal.print(Text("red", style="red"), Text(EVIL))
    assert coloured.getvalue().startswith("\x1b[31mred\x1b[0m")
    assert not forbidden(coloured.getvalue().replace("\x1b[31mred\x1b[0m", ""))


@pytest.mark.parametrize("clean", [plain, one_line, plain_line, markdown_text, ascii_json])
def test_each_way_out_takes_control_characters_away(clean: Callable[[str], str]) -> None:
    for text in (EVIL, EVIL * 2, "\x1b", "\x1b]", "\x1b[", "\x9b", "\ud800", "a\x1b[" + "1;" * 5000, ""):
        if clean is ascii_json:
            text = json.dumps(text, ensure_ascii=False)
        assert not forbidden(clean(text))


def test_json_has_no_number_that_json_has_not() -> None:
    value = {"a": [float("nan"), {"b": float("-inf")}], "c": (1.5, "é\x7f\U000e0041"), "d": 10**400}
    text = json_line(value)
    assert text.isascii() and text.isprintable()
    assert json.loads(text) == {"a": [None, {"b": None}], "c": [1.5, "é\x7f\U000e0041"], "d": 10**400}


def test_commands_print_only_through_the_gate() -> None:
    """`show`, `show_text`, `show_json`, `say`, or a console of `make_console`."""
    root = Path(krill_tui.__file__).parent
    for path in (*root.glob("cli/*.py"), root / "headless.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            assert name not in ("print", "sys.stdout.write", "sys.stderr.write", "typer.echo"), (
                path,
                node.lineno,
            )
            assert name != "Console", (path, node.lineno)


async def test_the_app_shows_it_as_text_on_every_screen() -> None:
    events = hostile_events()
    stamped = [e.model_copy(update={"seq": n, "time": 1e9 + n}) for n, e in enumerate(events, start=1)]
    source = ReplaySource(events=stamped, playing=False)  # pyright: ignore[reportArgumentType]
    source.seek(len(stamped) - 1)
    app = KrillApp(source=source)
    async with app.run_test(size=(120, 40)) as pilot:
        for keys in ([], ["f2"], ["escape", "f3"], ["escape", "f4"], ["escape", "enter"], ["question_mark"]):
            await pilot.press(*keys)
            app.redraw()
            await pilot.pause()
            assert not forbidden(shown(app))
