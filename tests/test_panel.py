"""Panels: an evaluation as a file that plays the same everywhere, or is refused in one line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from krill_tui.cli.app import run
from krill_tui.engine.episodes import read_trajectory_lines
from krill_tui.engine.panel import digest_of, load_panel, panel_text
from krill_tui.engine.run_store import list_runs, run_path
from krill_tui.errors import KrillError
from tests.test_alfworld_listing import HEAT, add_game

SMALL = ("--set", "env.max_steps=6")
Krill = Callable[..., str]


@pytest.fixture
def krill(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Krill:
    """Run one command line in the test's folder; it must exit with 0, and gives its standard output."""
    monkeypatch.chdir(tmp_path)

    def krill(*arguments: object) -> str:
        code = run([str(a) for a in arguments])
        out, err = capfd.readouterr()
        assert code == 0, err
        return out

    return krill


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Krill:
    """Run one command line that must be refused with exit code 2 and one line, which it gives; no run is made."""

    def refused(*arguments: object) -> str:
        before = list_runs()
        code = run([str(a) for a in arguments])
        out, err = capfd.readouterr()
        assert (code, out) == (2, ""), err
        assert len(err.splitlines()) == 1 and err.startswith("krill: "), err
        assert list_runs() == before
        return err

    return refused


def played(name: str) -> list[tuple[str, str, int, list[str], bool]]:
    """What the evaluation of a run did: id, game, seed, replies and outcome of each episode."""
    lines = read_trajectory_lines(run_path(name) / "trajectories.jsonl")
    return sorted((t.id[-4:], t.task_id, t.seed, [s.text for s in t.steps], t.success) for t in lines)


def evaluate(krill: Krill, name: str, *arguments: object) -> dict[str, Any]:
    return json.loads(krill("eval", "--run", name, "--display", "none", "--json", *arguments))


@pytest.mark.parametrize(
    "world",
    [
        ("--mock",),
        ("--env", "webshop"),
        ("--backend", "games"),
        ("--env", "webshop", "--webshop-data", "shop"),
    ],
)
def test_a_panel_plays_what_eval_plays_with_the_same_options(
    krill: Krill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shop: Path, world: tuple[str, ...]
) -> None:
    for name in "abcdef":
        add_game(tmp_path / "data", HEAT, name)
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path / "data"))
    asked = (*world, "--seed", 3, *SMALL, "--episodes", 5, "--seeds", 2)
    out = krill("panel", "make", "mine", *asked)
    panel = load_panel(tmp_path / "mine.json")
    assert out == f"wrote mine.json: 5 games, 10 episodes, digest {panel.digest}\n"
    plain = evaluate(krill, "plain", "--policy", "random", *asked)
    place = world[2:] if "shop" in world else ()
    pinned = evaluate(krill, "pinned", "--policy", "random", "--panel", "mine.json", "--seed", 3, *place)
    assert played("plain") == played("pinned")
    assert pinned["played"] == plain["played"] and pinned["overall"] == plain["overall"]
    assert pinned["panel"] == {"name": "mine", "digest": panel.digest} and plain["panel"] is None
    report = (run_path("pinned") / "report.md").read_text(encoding="utf-8")
    assert f"panel mine, digest {panel.digest}" in report
    assert panel.digest in krill("panel", "show", "mine.json")
    assert json.loads(krill("panel", "show", "mine.json", "--json"))["digest"] == panel.digest


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with product files, drawn from a seed."""
    from krill_tui.envs.webshop.procedural import draw_records

    folder = tmp_path / "shop"
    folder.mkdir()
    items, attributes = draw_records(1, 200)
    (folder / "items_shuffle.json").write_text(json.dumps(items))
    (folder / "items_ins_v2.json").write_text(json.dumps(attributes))
    return folder


@pytest.mark.slow
def test_a_panel_gives_the_same_episodes_at_any_concurrency_and_number_of_threads(
    krill: Krill, tiny_model_dir: Path
) -> None:
    krill(
        *("panel", "make", "p", "--episodes", 9, "--seeds", 2, "--set", "env.max_steps=3"),
        *("--set", "policy.eval_temperature=0.7", "--set", "rl.max_response_length=12"),
        *("--set", "rl.max_prompt_length=490"),
    )
    results = {}
    for name, concurrency, threads in (("a", 1, 1), ("b", 7, 1), ("c", 64, 2)):
        extra = ("--set", f"env.concurrency={concurrency}", "--set", f"policy.threads={threads}")
        facts = evaluate(krill, name, "--policy-model", tiny_model_dir, "--panel", "p.json", *extra)
        results[name] = (facts["played"], facts["overall"], played(name))
    assert results["a"] == results["b"] == results["c"]
    assert len({tuple(texts) for _, _, _, texts, _ in results["a"][2]}) > 4, "sampled, not greedy"


def test_an_existing_run_is_measured_on_a_panel_of_another_world(krill: Krill, tmp_path: Path) -> None:
    krill("panel", "make", "shop", "--env", "webshop", "--episodes", 2, "--set", "env.max_steps=3")
    krill("collect", "--policy", "random", "--episodes", 2, "--run", "mine", "--display", "none", *SMALL)
    before = (run_path("mine") / "config.json").read_text()
    facts = evaluate(krill, "mine", "--panel", "shop.json")
    assert facts["panel"]["name"] == "shop" and facts["overall"]["episodes"] == 2
    assert (run_path("mine") / "config.json").read_text() == before
    kept = run_path("mine") / "panels" / f"{facts['panel']['digest'][:16]}.json"
    assert kept.read_text() == (tmp_path / "shop.json").read_text()
    again = evaluate(krill, "mine", "--panel", "shop.json")
    assert again["played"] == facts["played"]
    assert len(list(read_trajectory_lines(run_path("mine") / "trajectories.jsonl"))) == 4


def test_hashes_are_the_same_in_every_process(krill: Krill, tmp_path: Path) -> None:
    make = ("panel", "make", "--episodes", "3", "--force")
    digests = set()
    for seed in ("1", "2"):
        command = [sys.executable, "-m", "krill_tui", *make, str(tmp_path / f"p{seed}.json")]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True)
        digests.add(load_panel(tmp_path / f"p{seed}.json").digest)
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--seed", 4), r"seed 4 contradicts the panel p, which asks for 0"),
        (("--split", "valid"), r"evaluation.split \"valid\" contradicts"),
        (("--episodes", 2), r"evaluation.episodes 2 contradicts"),
        (("--seeds", 3), r"evaluation.seeds 3 contradicts"),
        (("--env", "webshop"), r"env.name \"webshop\" contradicts"),
        (("--live",), r"env.backend \"http\" contradicts"),
        (("--set", "env.max_steps=9"), r"env.max_steps 9 contradicts"),
        (("--set", "policy.eval_temperature=0.5"), r"policy.eval_temperature 0.5 contradicts"),
        (("--set", 'skill_retrieval.mode="none"'), r"skill_retrieval.mode \"none\" contradicts"),
        (("--set", "rl.max_response_length=9"), r"rl.max_response_length 9 contradicts"),
    ],
)
def test_options_that_contradict_a_panel_are_refused(
    krill: Krill, refused: Krill, options: tuple[object, ...], said: str
) -> None:
    krill("panel", "make", "p", "--episodes", 3)
    assert re.search(said, refused("eval", "--panel", "p.json", "--policy", "random", *options))


def test_a_missing_or_changed_game_is_named(
    krill: Krill, refused: Krill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    games = [add_game(tmp_path / "data", HEAT, name) for name in "abc"]
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path / "data"))
    krill("panel", "make", "p", "--backend", "games")
    evaluation = ("eval", "--panel", "p.json", "--policy", "random")
    whole = games[1].read_text()
    games[1].write_text(whole + " ")
    assert "/b/game.tw-pddl is not the one of the panel p: its content hash is" in refused(*evaluation)
    games[1].write_text(whole.replace('"solvable": true', '"solvable": false'))
    assert "/b/game.tw-pddl is skipped here: not solvable" in refused(*evaluation)
    games[1].unlink()
    assert "/b/game.tw-pddl is not below" in refused(*evaluation)
    monkeypatch.delenv("ALFWORLD_DATA")
    assert "the games backend needs games" in refused(*evaluation)


def test_a_panel_of_a_server_cannot_be_made(refused: Krill) -> None:
    assert "a server's is not" in refused("panel", "make", "p", "--live")


def test_a_file_that_is_there_is_kept(krill: Krill, refused: Krill, tmp_path: Path) -> None:
    krill("panel", "make", "p", "--episodes", 1)
    before = (tmp_path / "p.json").read_text()
    assert "is there already" in refused("panel", "make", "p", "--episodes", 2)
    assert (tmp_path / "p.json").read_text() == before
    krill("panel", "make", "p", "--episodes", 2, "--force")
    (tmp_path / "d.json").mkdir()
    assert "is a folder" in refused("panel", "make", "d")
    assert "no name for a panel" in refused("panel", "make", "[red]x[/red]")


LONG = "9" * 5000


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": "something"}, "is no panel"),
        ({"version": 2}, "has version 2"),
        ({"version": True}, "version"),
        ({"name": "[red]x[/red]"}, "name"),
        ({"name": "../../x"}, "name"),
        ({"split": "\x1b[2J"}, "split"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"seed": "0"}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"settings": {}}, "settings.env is missing"),
        ({"settings": {"env": 3}}, "settings"),
        ({"settings": {"env": {"data_dir": "/etc"}}}, "env.data_dir is no setting of a panel"),
        ({"settings": {"env": {"max_steps": 10**9}}}, "max_steps"),
        ({"settings": {"env": {"max_steps": "6"}}}, "max_steps"),
        ({"settings": {"model": {"policy_api_base": "http://evil.example"}}}, "is no setting of a panel"),
        ({"games": []}, "games"),
        ({"games": "all"}, "games"),
        ({"games": [{"id": "../../etc/passwd", "hash": "0" * 64}]}, "not a procedural world"),
        ({"games": [{"id": f"builtin/small/test/0/{LONG}", "hash": "0" * 64}]}, "id"),
        ({"games": [{"id": "builtin/small/test/0/" + "9" * 30, "hash": "0" * 64}]}, "not a procedural"),
        ({"games": [{"id": "builtin/small/test/0/1", "hash": "0" * 64}]}, "its content hash is"),
        ({"games": [{"id": "builtin/small/test/0/1", "hash": "x"}]}, "hash"),
        ({"games": [{"id": "\x1b[31m\ud800", "hash": "0" * 64}]}, ""),
        ({"games": [{"id": "builtin/small/test/0/1", "hash": "0" * 64}] * 2}, "2 times"),
        ({"episodes": [[0, 1], [0, 1]]}, "2 times"),
        ({"episodes": [[7, 1]]}, "asks for game 7, of 1"),
        ({"episodes": [[0, -1]]}, "episodes"),
        ({"episodes": [[0, 2**31]]}, "episodes"),
        ({"episodes": [[0]]}, "episodes"),
        ({"episodes": [[0, 1, 2]]}, "episodes"),
        ({"episodes": [{"game": 0}]}, "episodes"),
        ({"extra": 1}, "extra"),
        ({"digest": "0" * 64}, "was changed since it was made"),
        ({"digest": ["x"]}, "digest"),
    ],
)
def test_a_hostile_panel_is_refused_in_one_line(
    krill: Krill, refused: Krill, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    krill("panel", "make", "p", "--episodes", 1)
    data = json.loads((tmp_path / "p.json").read_text())
    for section, fields in changes.pop("settings", {}).items() if changes.get("settings") else ():
        changes = {"settings": data["settings"] | {section: fields}}
    data |= changes
    if "digest" not in changes:
        data["digest"] = restated(data)
    (tmp_path / "p.json").write_text(json.dumps(data))
    line = refused("eval", "--panel", "p.json", "--policy", "random")
    assert said in line and len(line) < 600
    assert all(c.isprintable() for c in line.rstrip("\n"))


def restated(data: dict[str, Any]) -> str:
    """The digest somebody would state who changed a panel on purpose."""
    from krill_tui.engine.panel import Panel

    try:
        return digest_of(Panel.model_validate(data))
    except ValueError:
        return "1" * 64


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format": "krill panel", "version": ' + b"9" * 5000 + b"}",
    ],
)
def test_a_file_that_is_no_panel_is_refused_in_one_line(
    refused: Krill, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "p.json").write_bytes(content)
    for command in (("eval", "--panel", tmp_path / "p.json"), ("panel", "show", tmp_path / "p.json")):
        assert "p.json" in refused(*command)


def test_a_panel_that_is_nowhere_is_refused(refused: Krill, tmp_path: Path) -> None:
    assert "there is no panel 'nowhere'" in refused("eval", "--panel", "nowhere")
    assert "there is no panel" in refused("panel", "show", tmp_path)
    assert "there is no panel" in refused("panel", "show", "../panels/x")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_panel_is_read_or_refused_but_never_crashes(
    tmp_path: Path, small_panel: str, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(small_panel)))
    length = data.draw(st.integers(0, 40))
    inserted = data.draw(
        st.sampled_from(["", '"', "{", "[", "]", "1e999", "-1", "null", "\x00", "é", "\\ud800"])
    )
    path = tmp_path / "damaged.json"
    path.write_text(small_panel[:start] + inserted + small_panel[start + length :], encoding="utf-8")
    try:
        assert panel_text(load_panel(path))
    except KrillError as error:
        assert "\n" not in str(error)


@pytest.fixture
def small_panel(krill: Krill, tmp_path: Path) -> str:
    krill("panel", "make", "small", "--episodes", 2)
    return (tmp_path / "small.json").read_text()


def test_krills_own_panel_is_the_evaluation_of_the_embedded_default(krill: Krill) -> None:
    shown = json.loads(krill("panel", "show", "embedded-default", "--json"))
    krill("panel", "make", "mine")
    mine = json.loads(krill("panel", "show", "mine.json", "--json"))
    assert (mine["digest"], mine["games"]) == (shown["digest"], 140)
    assert shown["digest"].startswith(DIGEST), "docs/results.md states it"


DIGEST = "4de69be5665a2042"
