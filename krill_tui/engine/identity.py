"""Whether a run can go on as it is asked to: what its results were made with is compared with what is asked for."""

from __future__ import annotations

from typing import Any

from krill_tui.config.identity import Difference, differences, fixed_fields, listed
from krill_tui.config.load import public_dict
from krill_tui.config.schema import KrillConfig, Since
from krill_tui.engine.state import RunState
from krill_tui.errors import UsageError
from krill_tui.io.secrets import masked

FORK_HINT = "leave them as they were, or begin a new run from this one with --fork NAME"

_LATER: dict[Since, tuple[str, ...]] = {
    "world": ("rl", "sft", "collect", "evaluate"),
    "collect": ("rl", "sft", "collect"),
    "sft": ("rl", "sft"),
    "rl": ("rl",),
}
"""Phases that fix a field, the newest first."""


def check_identity(run: str, state: RunState, config: KrillConfig, games: str, *, measuring: bool) -> None:
    """Refuse to go on where the results of before and those to come would not be of one kind.

    `games` is the content hash of the games now. An evaluation (`measuring`) has a key of its own, so it may ask
    other things of other policies; only its world has to be the run's.

    Raises:
        UsageError: a fixed field has another value; names all of them.
    """
    asked = public_dict(config)
    found: list[Difference] = []
    fixed = fixed_fields()
    for since, phases in _LATER.items():
        worked = next((state.worked[phase] for phase in phases if phase in state.worked), None)
        if worked is None or (measuring and since != "world"):
            continue
        found += differences(worked.config, asked, [name for name, mark in fixed.items() if mark == since])
        if since == "world" and worked.games and worked.games != games and _has_data_folder(config):
            found.append(Difference("content of the games", worked.games, games))
    if found:
        raise UsageError(
            masked(f"run '{run}' cannot go on with other settings: {listed(found)}"), hint=FORK_HINT
        )


def changed_settings(old: dict[str, Any], config: KrillConfig) -> str:
    """The fields that differ from an earlier config, in one line; empty where none does."""
    return masked(listed(differences(old, public_dict(config)), limit=40))


def _has_data_folder(config: KrillConfig) -> bool:
    """Whether the games come from files of the user's; procedural ones change with Krill, servers cannot be hashed."""
    return config.env.backend in ("games", "textworld") or bool(config.env.webshop_data)
