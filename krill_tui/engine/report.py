"""`report.md`: what a run did and reached, made from its state alone."""

from __future__ import annotations

from pathlib import Path

from krill_tui.engine.state import RunState
from krill_tui.events.schema import Evaluated, Rate
from krill_tui.files import write_atomically

STAGES = {"base": "base", "sft": "after SFT", "rl": "after RL", "eval": "evaluation"}


def percent(rate: Rate) -> str:
    """A rate with its interval, e.g. `71.2 % [64.0, 77.4] of 140`."""
    return f"{100 * rate.rate:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}] of {rate.episodes}"


def result_rows(state: RunState) -> list[tuple[str, Evaluated]]:
    """The evaluations there are, in the order of the phases."""
    return [
        (title, state.evaluations[stage]) for stage, title in STAGES.items() if stage in state.evaluations
    ]


def write_report(state: RunState, path: Path) -> None:
    """Write the report beside and rename."""
    config = state.config
    lines = [f"# Run {state.run}", ""]
    if config:
        env, policy = config["env"], config["policy"]
        choice = "among admissible actions" if policy["constrained"] else "free text"
        lines += [
            f"- outcome: {state.outcome or 'running'}{': ' + state.message if state.message else ''}",
            f"- world: {env['name']}/{env['backend']}, up to {env['max_steps']} steps",
            f"- games: content hash {state.games or 'unknown'}",
            f"- policy: {policy['kind']} {policy['model'] or 'krill-tiny'}, {choice}; teacher: {config['teacher']['kind']}",
            f"- preset {config['preset']}, seed {config['seed']}",
            f"- episodes: {state.episodes_done}, skills in the bank: {len(state.skills)}",
            "",
        ]
    rows = result_rows(state)
    if rows:
        categories = sorted({name for _, e in rows for name in e.categories})
        lines += [
            "## Success (95 % Wilson intervals)",
            "",
            "| stage | split | all | " + " | ".join(categories) + " | steps of wins |",
            "|---" * (len(categories) + 4) + "|",
        ]
        for title, e in rows:
            cells = [percent(e.categories[c]) if c in e.categories else "" for c in categories]
            lines.append(
                f"| {title} | {e.split} | {percent(e.overall)} | {' | '.join(cells)} | {e.mean_steps:.1f} |"
            )
        lines.append("")
    finished = [view for view in state.phases if view.finished]
    if finished:
        lines += ["## Phases", ""]
        lines += [f"- {view.title}: {view.summary} ({view.seconds:.1f} s)" for view in finished]
        lines.append("")
    if state.validations:
        lines += ["## Validation on the evolve split", ""]
        lines += [f"- step {v.step}: {percent(v.overall)}" for v in state.validations]
        lines.append("")
    evolved = [line.text for line in state.log if line.kind == "evolved"]
    if evolved:
        lines += ["## Evolution", "", *(f"- {text}" for text in evolved), ""]
    write_atomically(path, "\n".join(lines))
