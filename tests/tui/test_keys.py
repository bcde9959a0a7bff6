"""The table of keys is what is bound, shown and written down."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.binding import Binding

from krill_tui.tui import keys
from krill_tui.tui.app import KrillApp
from krill_tui.tui.screens.base import KrillScreen, RunScreen
from krill_tui.tui.screens.dashboard import DashboardScreen
from krill_tui.tui.screens.episode import EpisodeScreen
from krill_tui.tui.screens.runs import RunsScreen
from krill_tui.tui.screens.skills import SkillsScreen
from krill_tui.tui.screens.training import TrainingScreen
from krill_tui.tui.widgets.line_list import LineList

OWNERS: dict[keys.Scope, type] = {
    "app": KrillApp,
    "run": RunScreen,
    "replay": RunScreen,
    "dashboard": DashboardScreen,
    "list": LineList,
    "screen": KrillScreen,
    "episode": EpisodeScreen,
    "skills": SkillsScreen,
    "training": TrainingScreen,
    "runs": RunsScreen,
}


@pytest.mark.parametrize("key", keys.KEYS, ids=lambda key: key.id)
def test_every_key_is_bound_where_it_belongs_and_has_its_action(key: keys.Key) -> None:
    owner = OWNERS[key.scope]
    bound = {b.key: b.action for b in vars(owner)["BINDINGS"] if isinstance(b, Binding)}
    name = key.action.split("(")[0]
    assert all(any(alternative in keys_ for keys_ in bound) for alternative in key.keys.split(","))
    assert callable(getattr(owner, f"action_{name}", None))


def test_ids_are_unique() -> None:
    ids = [key.id for key in keys.KEYS]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("scope", keys.SCOPE_TITLES)
def test_no_key_means_two_things_in_one_scope(scope: keys.Scope) -> None:
    names = [name for key in keys.scoped(scope) for name in key.keys.split(",")]
    assert len(names) == len(set(names))


def test_phase_keys_are_bound_on_the_dashboard_only() -> None:
    scopes = {key.scope for key in keys.KEYS if key.id.startswith("phase.")}
    assert scopes == {"dashboard"}
    shared = {name for key in keys.scoped("app", "run") for name in key.keys.split(",")}
    assert not shared & set("cdsrte")


def test_the_written_table_is_this_table() -> None:
    docs = Path(__file__).parents[2] / "docs" / "keys.md"
    assert docs.read_text(encoding="utf-8") == keys.keys_markdown()


def test_keys_are_shown_as_a_keyboard_names_them() -> None:
    assert [keys.display(k) for k in ("question_mark", "ctrl+p", "f1", "X", "escape")] == [
        "?",
        "^p",
        "F1",
        "X",
        "esc",
    ]
