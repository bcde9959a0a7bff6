"""The one table of keys: bindings, footer, help, palette and `docs/keys.md` are made from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from textual.binding import Binding, BindingType

Scope = Literal[
    "app", "run", "dashboard", "replay", "list", "screen", "episode", "skills", "training", "runs"
]
"""Where a key works: everywhere, on the views of a run, on one screen, in a replay, in a list."""
When = Literal["always", "idle", "running", "replay"]
"""When the footer offers it; the key itself always answers, if only with the reason why not."""

SCOPE_TITLES: dict[Scope, str] = {
    "app": "Everywhere",
    "run": "While a run is in view",
    "dashboard": "Dashboard",
    "replay": "Replay",
    "list": "In a list",
    "screen": "Any other screen",
    "episode": "Episode",
    "skills": "Skills",
    "training": "Training",
    "runs": "Runs",
}


@dataclass(frozen=True, slots=True)
class Key:
    id: str
    """Stable name, for remapping."""
    keys: str
    """Textual's names, with commas between alternatives."""
    action: str
    label: str
    """One or two words for the footer."""
    help: str
    scope: Scope
    footer: int = 0
    """0: not in the footer; else its rank, where 1 is the last to give way to a narrow terminal."""
    when: When = "always"
    priority: bool = False
    """Handled before the focused widget sees it."""

    @property
    def shown(self) -> str:
        """The keys as a person reads them: `? F1`."""
        return " ".join(display(key) for key in self.keys.split(","))


# fmt: off
KEYS: tuple[Key, ...] = (
    Key("app.help", "question_mark,f1", "help", "help", "This table of keys", "app", 1),
    Key("app.palette", "ctrl+p", "command_palette", "palette", "Find any command, skill or episode", "app", 8),
    Key("app.skills", "f2", "show('skills')", "skills", "Skills: read, add, edit, disable, undo", "app", 9),
    Key("app.training", "f3", "show('training')", "training", "Training: large curves", "app", 9),
    Key("app.runs", "f4", "show('runs')", "runs", "Runs: open another one", "app", 9),
    Key("app.theme", "f9", "toggle_theme", "theme", "Light or dark", "app"),
    Key("app.quit", "q,ctrl+q", "leave", "quit", "Close this screen; on the dashboard, quit", "app", 2),
    Key("run.pause", "space", "pause", "pause", "Pause or resume: no new model calls while paused", "run", 3, "running"),
    Key("run.step", "full_stop", "step_once", "step", "Let one more turn through while paused", "run", 5, "running"),
    Key("run.cancel", "X", "cancel", "cancel", "Stop the phase; it can be resumed", "run", 4, "running"),
    Key("replay.play", "space", "pause", "play/pause", "Play or pause the replay", "replay", 1, "replay"),
    Key("replay.back", "left_square_bracket", "seek(-1)", "−1", "One event back", "replay", 2, "replay", True),
    Key("replay.on", "right_square_bracket", "seek(1)", "+1", "One event on", "replay", 2, "replay", True),
    Key("replay.back10", "left_curly_bracket", "seek(-10)", "−10", "Ten events back", "replay", 6, "replay", True),
    Key("replay.on10", "right_curly_bracket", "seek(10)", "+10", "Ten events on", "replay", 6, "replay", True),
    Key("replay.start", "home", "seek_start", "start", "To the start", "replay", 5, "replay", True),
    Key("replay.end", "end", "seek_end", "end", "To the end", "replay", 5, "replay", True),
    Key("replay.slower", "less_than_sign", "speed(-1)", "slower", "Half the speed", "replay", 3, "replay"),
    Key("replay.faster", "greater_than_sign", "speed(1)", "faster", "Twice the speed", "replay", 3, "replay"),
    Key("phase.train", "t", "launch('train')", "train all", "All four phases, one after the other", "dashboard", 2, "idle"),
    Key("phase.collect", "c", "launch('collect')", "collect", "1 Collect: the base policy plays episodes", "dashboard", 3, "idle"),
    Key("phase.distill", "d", "launch('distill')", "distill", "2 Distill: episodes become skills", "dashboard", 3, "idle"),
    Key("phase.sft", "s", "launch('sft')", "sft", "3 SFT: fine-tune on demonstrations that use the skills", "dashboard", 3, "idle"),
    Key("phase.rl", "r", "launch('rl')", "rl", "4 RL: GRPO, while failures evolve the skills", "dashboard", 3, "idle"),
    Key("phase.evaluate", "e", "launch('evaluate')", "eval", "Evaluate on games nobody learns from", "dashboard", 4, "idle"),
    Key("dashboard.pane", "1,2,3,4", "pane", "", "Go to a pane", "dashboard"),
    Key("dashboard.next", "tab", "cycle_pane(1)", "", "Next pane", "dashboard"),
    Key("dashboard.previous", "shift+tab", "cycle_pane(-1)", "", "Previous pane", "dashboard"),
    Key("dashboard.maximise", "plus", "maximise_pane", "max", "Maximise or restore the pane", "dashboard", 7),
    Key("dashboard.search", "slash", "search", "search", "Search in the pane; esc clears", "dashboard", 6),
    Key("dashboard.clear", "escape", "clear_search", "", "Clear the search", "dashboard"),
    Key("list.up", "up,k", "move(-1)", "", "Up", "list"),
    Key("list.down", "down,j", "move(1)", "", "Down", "list"),
    Key("list.page_up", "pageup,ctrl+u", "page(-1)", "", "A page up", "list"),
    Key("list.page_down", "pagedown,ctrl+d", "page(1)", "", "A page down", "list"),
    Key("list.first", "home,g", "edge(-1)", "", "To the first", "list"),
    Key("list.last", "end,G", "edge(1)", "", "To the last; a log follows again", "list"),
    Key("list.open", "enter", "pick", "open", "Open", "list"),
    Key("screen.back", "escape,b", "back", "back", "Back", "screen", 1),
    Key("episode.previous", "left,h", "scrub(-1)", "step −", "One step back", "episode", 2),
    Key("episode.next", "right,l", "scrub(1)", "step +", "One step on", "episode", 2),
    Key("episode.first", "home,g", "scrub_edge(-1)", "first", "First step", "episode", 4),
    Key("episode.last", "end,G,f", "scrub_edge(1)", "follow", "Last step; a live episode is followed", "episode", 3),
    Key("episode.older", "left_square_bracket", "neighbour(-1)", "episode −", "Previous episode", "episode", 5),
    Key("episode.newer", "right_square_bracket", "neighbour(1)", "episode +", "Next episode", "episode", 5),
    Key("episode.up", "up,k,pageup", "scroll_text(-5)", "", "Scroll up", "episode"),
    Key("episode.down", "down,j,pagedown", "scroll_text(5)", "", "Scroll down", "episode"),
    Key("skills.search", "slash", "search", "search", "Search names, principles and ids", "skills", 2),
    Key("skills.add", "a", "add", "add", "Add a skill", "skills", 3),
    Key("skills.edit", "e", "edit", "edit", "Edit the skill", "skills", 3),
    Key("skills.disable", "x", "toggle_skill", "disable/enable", "Keep the skill out of prompts, or put it back", "skills", 4),
    Key("skills.retire", "D", "retire", "retire", "Take the skill out of use for good; its history stays", "skills", 5),
    Key("skills.undo", "u", "undo", "undo", "Undo the last change", "skills", 4),
    Key("training.toggle", "x", "toggle_metric", "show/hide", "Show or hide the metric", "training", 2),
    Key("training.search", "slash", "search", "search", "Search metrics", "training", 3),
    Key("runs.watch", "w", "watch", "open", "Open the run; it is followed while it grows", "runs", 2),
    Key("runs.replay", "p", "replay", "replay", "Replay the run from its start", "runs", 2),
    Key("runs.reload", "ctrl+r", "reload", "reload", "Read the list again", "runs", 3),
)
# fmt: on

_DISPLAY = {
    "question_mark": "?",
    "full_stop": ".",
    "plus": "+",
    "slash": "/",
    "left_square_bracket": "[",
    "right_square_bracket": "]",
    "left_curly_bracket": "{",
    "right_curly_bracket": "}",
    "less_than_sign": "<",
    "greater_than_sign": ">",
    "escape": "esc",
    "up": "↑",
    "down": "↓",
    "left": "←",
    "right": "→",
    "pageup": "pgup",
    "pagedown": "pgdn",
}


def display(key: str) -> str:
    """Textual's key name as it is printed on a keyboard."""
    if key.startswith("ctrl+"):
        return "^" + display(key.removeprefix("ctrl+"))
    if len(key) > 1 and key[0] == "f" and key[1:].isdigit():
        return key.upper()
    return _DISPLAY.get(key, key)


def scoped(*scopes: Scope) -> list[Key]:
    """The keys of some scopes, in the table's order."""
    return [key for key in KEYS if key.scope in scopes]


def bindings(*scopes: Scope) -> list[BindingType]:
    """Textual bindings of some scopes; a pane's number becomes an argument of its action."""
    made: list[BindingType] = []
    for key in scoped(*scopes):
        if key.action == "pane":
            made += [
                Binding(n, f"pane({n})", key.help, show=False, id=f"{key.id}{n}") for n in key.keys.split(",")
            ]
            continue
        made.append(
            Binding(
                key.keys,
                key.action,
                key.help,
                show=False,
                key_display=key.shown,
                id=key.id,
                priority=key.priority,
            )
        )
    return made


def footer_keys(scopes: tuple[Scope, ...], when: When) -> list[Key]:
    """What the footer offers right now, the screen's own keys first."""
    order = {scope: position for position, scope in enumerate(scopes)}
    offered = [k for k in scoped(*scopes) if k.footer and k.when in ("always", when)]
    return sorted(offered, key=lambda k: order[k.scope])


def keys_markdown() -> str:
    """The table as `docs/keys.md` holds it."""
    lines = ["# Keys", "", "Made from `krill_tui/tui/keys.py`; the app shows the same table under `?`.", ""]
    for scope, title in SCOPE_TITLES.items():
        lines += [f"## {title}", "", "| key | does |", "|---|---|"]
        lines += [
            f"| {' '.join(f'`{k}`' for k in key.shown.split())} | {key.help} |" for key in scoped(scope)
        ]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"
