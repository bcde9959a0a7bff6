"""How facts are put into words and small pictures: durations, rates, marks, sparklines, citations."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from math import isfinite
from typing import Any

from textual.content import Content

from krill_tui.engine.state import EpisodeView
from krill_tui.events.schema import Purpose, Rate
from krill_tui.io.text import one_line
from krill_tui.skill import Skill, SkillKind, SkillStatus
from krill_tui.trajectory import StopReason

MUTED = "$muted"
GOOD = "$success"
BAD = "$error"
WARN = "$warning"
KEY = "bold $primary"
CITED = "bold $accent"
HEADING = "bold $secondary"

STATUS_MARKS = {SkillStatus.ACTIVE: "●", SkillStatus.DISABLED: "○", SkillStatus.RETIRED: "✖"}
KIND_WORDS = {SkillKind.STRATEGY: "strategy, from successes", SkillKind.LESSON: "lesson, from failures"}
PHASE_TITLES = {"collect": "Collect", "distill": "Distill", "sft": "SFT", "rl": "RL", "evaluate": "Evaluate"}
PHASE_NUMBERS = {"collect": 1, "distill": 2, "sft": 3, "rl": 4}
PURPOSE_WORDS: dict[Purpose, str] = {
    "collect": "coll",
    "demonstrate": "demo",
    "rl": "rl",
    "validate": "val",
    "evaluate": "eval",
}
_BLOCKS = "▁▂▃▄▅▆▇█"
_EIGHTHS = " ▏▎▍▌▋▊▉"
_REFERENCE = re.compile(r"\[([A-Za-z0-9_.:-]{1,64})\]")


def duration(seconds: float) -> str:
    """`42s`, `2m10s`, `1h05m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def number(value: float) -> str:
    """A metric's value in at most eight characters."""
    if not isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 100_000:
        return str(int(value))
    if 0.001 <= abs(value) < 10_000:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{value:.1e}"


def percent(rate: Rate) -> str:
    """`71 % [59, 81]`: rate and 95 % Wilson interval; `‼ 3` where episodes broke."""
    lost = f" ‼ {rate.errors}" if rate.errors else ""
    if not rate.episodes:
        return f"–{lost}"
    return f"{rate.rate:.0%} [{rate.low * 100:.0f}, {rate.high * 100:.0f}]".replace("%", " %") + lost


def bar(fraction: float, width: int) -> str:
    """A horizontal bar of `width` cells, exact to an eighth of a cell."""
    eighths = round(min(max(fraction, 0.0), 1.0) * width * 8)
    full, part = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[part] if part else "")).ljust(width)


def sparkline(values: Sequence[float], width: int) -> str:
    """The course of `values` in at most `width` cells; each cell is the mean of its share."""
    finite = [v for v in values if isfinite(v)]
    if not finite or width <= 0:
        return ""
    cells = min(width, len(finite))
    means = []
    for cell in range(cells):
        share = finite[cell * len(finite) // cells : (cell + 1) * len(finite) // cells]
        means.append(sum(share) / len(share))
    low, high = min(means), max(means)
    if high == low:
        return _BLOCKS[3] * cells
    return "".join(_BLOCKS[int((v - low) / (high - low) * 7.999)] for v in means)


def outcome_mark(episode: EpisodeView) -> tuple[str, str]:
    """Mark and style of an episode: ▸ live, ✔ won, ✖ lost, ‼ broken, – stopped by a person."""
    if episode.finished is None:
        return "▸", "$primary"
    if episode.finished.success:
        return "✔", GOOD
    if episode.finished.stop_reason is StopReason.ERROR:
        return "‼", WARN
    if episode.finished.stop_reason is StopReason.CANCELLED:
        return "–", MUTED
    return "✖", BAD


def cited(text: str, ids: Collection[str], style: str = "") -> Content:
    """`text` with every `[id]` of a known skill highlighted; nothing in it is taken for markup."""
    content = Content(text)
    if style:
        content = content.stylize(style)
    for match in _REFERENCE.finditer(text):
        if match[1] in ids:
            content = content.stylize(CITED, match.start(), match.end())
    return content


def citations(text: str) -> set[str]:
    """All ids a text quotes in brackets."""
    return {match[1] for match in _REFERENCE.finditer(text)}


def skill_label(skill: Skill) -> str:
    return one_line(f"{skill.id} {skill.name}")


def setting(config: Mapping[str, Any], *path: str) -> Any:
    """A field of a run's config, None where it is missing."""
    value: Any = config
    for name in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def policy_words(config: Mapping[str, Any], *, short: bool = False) -> str:
    """Who plays, and whether it may only choose among admissible actions."""
    kind = setting(config, "policy", "kind") or "?"
    model = setting(config, "policy", "model") or ""
    if kind == "local":
        name = one_line(str(model).rstrip("/").rsplit("/", 1)[-1], limit=30) or "krill-tiny"
    elif kind == "openai":
        name = one_line(str(setting(config, "model", "policy_model_id") or "openai"), limit=30)
    else:
        name = one_line(str(kind))
    if kind != "local" or not setting(config, "policy", "constrained"):
        return name
    return f"{name} constrained" if short else f"{name}, constrained to admissible actions"


def teacher_words(config: Mapping[str, Any], *, short: bool = False) -> str:
    """Who teaches; the built-in one says that it is no LLM."""
    if setting(config, "teacher", "kind") == "builtin":
        return "miner, no LLM" if short else "builtin miner (not an LLM)"
    return one_line(str(setting(config, "model", "teacher_model_id") or "openai"), limit=30)
