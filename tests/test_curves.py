"""Curves as SVG: well formed whatever the names and numbers, made from the journal alone."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from krill_tui.cli.app import run as krill
from krill_tui.engine.curves import RateRow, RunCurves, _ticks, curves_svg, rates_svg, read_curves
from krill_tui.engine.evaluate import wilson
from krill_tui.events import schema as ev
from krill_tui.events.bus import EventBus
from krill_tui.events.journal import Journal

HOSTILE = '<script>alert(1)</script> & "x" \x00\x1b[31m \ud800 ]]> ' + "long" * 60
SVG = "{http://www.w3.org/2000/svg}"


def write_run(folder: Path, *, shift: float = 0.0, steps: int = 6) -> Path:
    """A journal of a short training."""
    folder.mkdir(parents=True)
    journal = Journal(folder / "events.jsonl")
    bus = EventBus(journal)
    bus.emit(ev.RunStarted(run=folder.name, config={}, code="0"))
    for step in range(1, 4):
        bus.emit(ev.SftStepped(step=step, total=3, metrics={"loss": 1.0 / step + shift}))
    for step in range(0, steps + 1, 2):
        rate = wilson(4 + step, 16)
        bus.emit(ev.Validated(step=step, overall=rate, categories={"Heat": rate, "Pick": wilson(8, 16)}))
        bus.emit(
            ev.Evolved(
                cycle=step // 2 + 1, step=step, rates={}, accepted=("gen_1",) if step == 2 else (), reason="-"
            )
        )
        for after in (step + 1, step + 2):
            metrics = {"reward": 0.1 * after + shift, "success": 0.5, "kl": 0.001 * after, "entropy": 0.4}
            bus.emit(ev.GrpoStepped(step=after, total=steps, metrics=metrics))
    journal.close()
    return folder


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter(f"{SVG}text")]


def test_the_curves_are_those_of_the_journal(tmp_path: Path):
    run = read_curves(write_run(tmp_path / "one") / "events.jsonl")
    assert run.curves["sft/loss"] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert run.curves["validation/success"] == [(0, 0.25), (2, 0.375), (4, 0.5), (6, 0.625)]
    assert run.cycles == [(2, 1)]


def test_a_figure_has_a_panel_for_each_metric_and_a_line_for_each_run_and_mean(tmp_path: Path):
    runs = [
        read_curves(write_run(tmp_path / name, shift=shift) / "events.jsonl")
        for name, shift in (("a", 0), ("b", 1))
    ]
    svg = curves_svg({"full": runs, "alone": runs[:1]}, "two groups")
    shown = texts(svg)
    for title in (
        "Success on validation",
        "Reward",
        "KL to the reference",
        "Entropy",
        "SFT loss",
        "Validation: Heat",
    ):
        assert title in shown
    assert {"full", "alone", "two groups", "evolution changed the bank"} <= set(shown)
    root = ET.fromstring(svg)
    assert len(list(root.iter(f"{SVG}polyline"))) == 8 * (2 + 1 + 1), (
        "8 panels: two seeds, their mean, one alone"
    )
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for line in root.iter(f"{SVG}polyline"):
        for pair in line.get("points", "").split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= width and 0 <= y <= height
    assert "prefers-color-scheme: dark" in svg


def test_hostile_names_and_numbers_that_are_none_leave_the_file_well_formed():
    points = [(0.0, math.nan), (1.0, math.inf), (2.0, 0.5)]
    curves = {"reward": points, f"validation/{HOSTILE}": [(0.0, 0.5)], "kl": [(0.0, math.nan)]}
    svg = curves_svg({HOSTILE: [RunCurves(HOSTILE, curves, [(0, 2)])]}, HOSTILE)
    svg.encode()
    root = ET.fromstring(svg)
    assert not list(root.iter(f"{SVG}script"))
    assert any("alert(1)" in text for text in texts(svg))
    ET.fromstring(rates_svg([RateRow(HOSTILE, wilson(1, 2), [0.0, 1.0])], HOSTILE))
    ET.fromstring(curves_svg({}, ""))


@pytest.mark.parametrize(("low", "high"), [(0, 0), (5, 5), (-2e-9, 3e-9), (0.1, 0.4), (-3, 1e6), (7, 8)])
@pytest.mark.parametrize("whole", [False, True])
def test_ticks_are_round_and_cover_the_range(low: float, high: float, whole: bool):
    ticks = _ticks(low, high, 4, whole=whole)
    assert ticks[0] <= low + 1e-9 and ticks[-1] >= high - 1e-9
    assert 2 <= len(ticks) <= 8
    assert ticks == sorted(set(ticks))
    assert not whole or all(tick == int(tick) for tick in ticks)


def test_the_report_command_draws_one_run_or_several(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    first, second = write_run(tmp_path / "runs" / "one"), write_run(tmp_path / "runs" / "two", shift=0.2)
    target = tmp_path / "curves.svg"
    assert krill(["report", first.name, second.name, "--svg", str(target)]) == 0
    assert {"one", "two", "one, two"} <= set(texts(target.read_text()))
    assert krill(["report", "one", "two"]) == 2
    assert "a report is of one run" in capfd.readouterr().err
    assert krill(["report", "three", "--svg", str(target)]) == 2
    assert second.exists()
