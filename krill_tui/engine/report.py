"""`report.md`: what a run did and reached, made from its state alone."""

from __future__ import annotations

from pathlib import Path

from krill_tui.engine.evaluate import broke
from krill_tui.engine.state import EvolutionView, RunState
from krill_tui.events.schema import Evaluated, Rate
from krill_tui.io.files import write_atomically
from krill_tui.io.text import markdown_text, plain

TEXT_SHOWN = 4000
"""Characters of a teacher's prompt or reply in a report."""
PROGRAMS = ("expert", "random")
"""Policies that are no model."""
STAGES = {"base": "base", "sft": "after SFT", "rl": "after RL", "eval": "evaluation"}


def percent(rate: Rate) -> str:
    """A rate with its interval, e.g. `71.2 % [64.0, 77.4] of 140`, and how many others broke."""
    lost = f", {rate.errors} broke" if rate.errors else ""
    if not rate.episodes:
        return f"none played{lost}"
    return f"{100 * rate.rate:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}] of {rate.episodes}{lost}"


def broken_lines(state: RunState) -> list[str]:
    """One line for each evaluation that some episodes broke in: how many, why, and what it would be with them."""
    return [
        f"{title}: {broke(evaluated.overall, evaluated.first_error)}"
        for title, evaluated in result_rows(state)
        if evaluated.overall.errors
    ]


def result_rows(state: RunState) -> list[tuple[str, Evaluated]]:
    """The evaluations there are, in the order of the phases."""
    return [
        (title, state.evaluations[stage]) for stage, title in STAGES.items() if stage in state.evaluations
    ]


def _evolution_lines(view: EvolutionView) -> list[str]:
    """One cycle: what failed, what was read, what changed and why, and the categories at the next validation."""
    event = view.event
    failing = ", ".join(
        f"{markdown_text(c)} {percent(event.rates[c])}" for c in event.failing if c in event.rates
    )
    lines = [f"### Cycle {event.cycle}, step {event.step}", "", f"- failing: {failing or 'none'}"]
    if event.failures:
        lines.append(
            f"- failures read: {len(event.failures)} ({', '.join(map(markdown_text, event.failures))})"
        )
    for id_ in event.accepted:
        skill, reason = view.skills.get(id_, (None, ""))
        if skill is None:
            lines.append(f"- changed: {markdown_text(id_)}")
            continue
        change = f"refined (version {skill.version})" if skill.version > 1 else "added"
        why = f"; because: {markdown_text(reason)}" if reason else ""
        lines.append(
            f"- {change}: {markdown_text(id_)} ({markdown_text(skill.tier)}) {markdown_text(skill.principle)}{why}"
        )
    lines += [f"- refused: {markdown_text(line)}" for line in event.refused]
    if event.reason:
        lines.append(f"- {markdown_text(event.reason)}")
    if effects := view.effects():
        assert view.next is not None
        lines += ["", f"| category | at step {event.step} | at step {view.next.step} |", "|---|---|---|"]
        lines += [f"| {markdown_text(c)} | {percent(b)} | {percent(a)} |" for c, (b, a) in effects.items()]
    for title, text in (("The teacher's prompt:", event.prompt), ("Its reply:", event.reply)):
        if text:
            lines += ["", title, "", *_quoted(text)]
    return [*lines, ""]


def _quoted(text: str) -> list[str]:
    """As an indented block, which no text can end; a long one is cut, and it says where all of it is."""
    lines = [f"    {line}" for line in plain(text[:TEXT_SHOWN]).splitlines()]
    if len(text) > TEXT_SHOWN:
        lines.append(f"    [{len(text) - TEXT_SHOWN} more characters: krill report RUN --json has all of it]")
    return lines


def write_report(state: RunState, path: Path) -> None:
    """Write the report beside and rename."""
    config = state.config
    lines = [f"# Run {markdown_text(state.run)}", ""]
    if config:

        def said(*names: str) -> str:
            """A setting; `?` where the config of another version has it not."""
            value: object = config
            for name in names:
                value = value.get(name) if isinstance(value, dict) else None
            return "?" if value is None else markdown_text(str(value))

        choice = ", free text" if said("policy", "constrained") == "False" else ", among admissible actions"
        kind = said("policy", "kind")
        if kind in PROGRAMS:
            policy = kind
        elif kind == "openai":
            policy = f"openai {said('model', 'policy_model_id')}{choice}"
        else:
            policy = f"{kind} {said('policy', 'model') or 'krill-tiny'}{choice}"
        lines += [
            f"- outcome: {state.outcome or 'running'}{': ' + markdown_text(state.message) if state.message else ''}",
            f"- world: {said('env', 'name')}/{said('env', 'backend')}, up to {said('env', 'max_steps')} steps",
            f"- games: content hash {markdown_text(state.games) or 'unknown'}",
            *(f"- {markdown_text(notice)}" for notice in state.notices),
            f"- policy: {policy}; teacher: {said('teacher', 'kind')}",
            *(f"- {markdown_text(change)}" for change in (state.worker.changes if state.worker else ())),
            f"- preset {said('preset')}, seed {said('seed')}",
            f"- episodes: {state.episodes_done}, skills in the bank: {len(state.skills)}",
        ]
        if state.broken:
            first = markdown_text(next(iter(state.broken.values())))
            lines.append(f"- {len(state.broken)} episodes broke and are owed; the first: {first}")
        lines.append("")
    rows = result_rows(state)
    if rows:
        categories = sorted({name for _, e in rows for name in e.categories})
        lines += [
            "## Success (95 % Wilson intervals)",
            "",
            "| stage | split | all | " + " | ".join(map(markdown_text, categories)) + " | steps of wins |",
            "|---" * (len(categories) + 4) + "|",
        ]
        for title, e in rows:
            cells = [percent(e.categories[c]) if c in e.categories else "" for c in categories]
            lines.append(
                f"| {title} | {markdown_text(e.split)} | {percent(e.overall)} | {' | '.join(cells)} | {e.mean_steps:.1f} |"
            )
        notes = [
            f"- {title}: panel {markdown_text(e.panel)}, digest {markdown_text(e.panel_digest)};"
            f" what was played: {markdown_text(e.played)}"
            for title, e in rows
            if e.panel
        ]
        notes += [f"- {title}: weights {markdown_text(e.weights)}" for title, e in rows if e.weights]
        notes += [f"- {markdown_text(line)}" for line in broken_lines(state)]
        lines += ["", *notes] if notes else []
        lines.append("")
    finished = [view for view in state.phases if view.finished]
    if finished:
        lines += ["## Phases", ""]
        lines += [
            f"- {markdown_text(view.title)}: {markdown_text(view.summary)} ({view.seconds:.1f} s)"
            for view in finished
        ]
        lines.append("")
    if state.validations:
        lines += ["## Validation on the evolve split", ""]
        lines += [f"- step {v.step}: {percent(v.overall)}" for v in state.validations]
        lines.append("")
    if state.evolutions:
        lines += ["## Evolution", ""]
        lines += [line for view in state.evolutions for line in _evolution_lines(view)]
    write_atomically(path, "\n".join(lines))
