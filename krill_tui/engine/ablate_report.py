"""What an ablation found: rates of its conditions, pairs on the same games, tables and curves."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from krill_tui.config.load import public_dict
from krill_tui.engine.ablate import CONDITIONS, REPORTED, Game, Job, JobResult, Plan, plan_jobs
from krill_tui.engine.curves import RateRow, RunCurves, curves_svg, rates_svg, read_curves
from krill_tui.engine.evaluate import UNKNOWN, mcnemar_exact, newcombe_paired, wilson
from krill_tui.engine.report import percent
from krill_tui.engine.run_store import run_path
from krill_tui.errors import KrillError
from krill_tui.events.schema import Rate
from krill_tui.io.files import write_atomically
from krill_tui.io.text import markdown_text, plain_line


def report(plan: Plan, results: Mapping[str, JobResult]) -> dict[str, Any]:
    """All numbers of the ablation so far, as `report.json` holds them."""
    jobs = plan_jobs(plan)
    facts: dict[str, Any] = {
        "name": plan.name,
        "command": plan.command,
        "settings": plan.settings,
        "seeds": list(plan.seeds),
        "config": public_dict(plan.config),
        "written": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
        "owed": [job.label for job in jobs if job.run not in results],
        "conditions": [],
        "runs": {
            job.label: {"run": job.run, "seconds": results[job.run].seconds}
            for job in jobs
            if job.run in results
        },
    }
    for free in (False, True) if plan.free else (False,):
        for name in plan.conditions:
            mine = [job for job in jobs if job.condition == name and job.free == free and job.run in results]
            if not mine:
                continue
            entry = _condition_facts(mine, jobs, results)
            entry |= {"condition": name, "free": free, "what": CONDITIONS[name].what}
            for reference in ("full", "base"):
                if reference != name:
                    others = {
                        job.seed: results[job.run].games
                        for job in jobs
                        if job.condition == reference and job.free == free and job.run in results
                    }
                    own = {job.seed: results[job.run].games for job in mine}
                    compared = compare(own, others)
                    if compared:
                        entry[f"against_{reference}"] = compared
            facts["conditions"].append(entry)
    return facts


def _condition_facts(
    mine: Sequence[Job], jobs: Sequence[Job], results: Mapping[str, JobResult]
) -> dict[str, Any]:
    asked = [game for job in mine for game in results[job.run].games]
    games = [game for game in asked if not game.broke]
    categories: dict[str, list[Game]] = {}
    for game in asked:
        categories.setdefault(game.category or UNKNOWN, []).append(game)
    won = [game.steps for game in games if game.won]
    by_run = {job.run: job for job in jobs}
    chain: set[str] = set()
    owed = [job.run for job in mine]
    while owed:
        run = owed.pop()
        if run not in chain:
            chain.add(run)
            owed += by_run[run].needs
    return {
        "overall": _rate(asked),
        "seeds": {str(job.seed): _rate(results[job.run].games) for job in mine},
        "categories": {category: _rate(categories[category]) for category in sorted(categories)},
        "steps_of_wins": sum(won) / len(won) if won else None,
        "steps": sum(game.steps for game in games) / max(1, len(games)),
        "prompt_tokens": sum(game.tokens for game in games) / max(1, len(games)),
        "valid_actions": 1 - sum(game.invalid for game in games) / max(1, sum(game.steps for game in games)),
        "seconds": sum(results[job.run].seconds for job in mine),
        "seconds_with_shared": sum(results[run].seconds for run in chain if run in results),
    }


def compare(own: Mapping[int, Sequence[Game]], others: Mapping[int, Sequence[Game]]) -> dict[str, Any] | None:
    """A condition against another on the same games, the seeds pooled; None where they share no seed.

    Raises:
        KrillError: the games are not the same.
    """
    counts = {(True, True): 0, (True, False): 0, (False, True): 0, (False, False): 0}
    for seed in own.keys() & others.keys():
        if [game.task for game in own[seed]] != [game.task for game in others[seed]]:
            raise KrillError(f"two conditions of seed {seed} played different games: they cannot be paired")
        for one, other in zip(own[seed], others[seed], strict=True):
            if not (one.broke or other.broke):
                counts[one.won, other.won] += 1
    n = sum(counts.values())
    if n == 0:
        return None
    first, second = counts[True, False], counts[False, True]
    difference, low, high = newcombe_paired(counts[True, True], first, second, counts[False, False])
    return {
        "games": n,
        "only_this_won": first,
        "only_other_won": second,
        "points": 100 * difference,
        "low": 100 * low,
        "high": 100 * high,
        "p": mcnemar_exact(first, second),
    }


def _as_rate(facts: Mapping[str, Any]) -> Rate:
    return Rate(
        wins=facts["wins"],
        episodes=facts["games"],
        low=facts["low"],
        high=facts["high"],
        errors=facts.get("errors", 0),
    )


def _rate(games: Sequence[Game]) -> dict[str, Any]:
    played = [game.won for game in games if not game.broke]
    rate = wilson(sum(played), len(played), errors=len(games) - len(played))
    facts = {"wins": rate.wins, "games": rate.episodes, "rate": rate.rate, "low": rate.low, "high": rate.high}
    return facts | ({"errors": rate.errors} if rate.errors else {})


def report_markdown(facts: Mapping[str, Any]) -> str:
    """The tables of `report.json`, ready for a document."""
    config, seeds = facts["config"], [str(seed) for seed in facts["seeds"]]
    entries = facts["conditions"]
    env, policy, rl, sft = config["env"], config["policy"], config["rl"], config["sft"]
    sampled = (
        f"sampled at temperature {policy['eval_temperature']}" if policy["eval_temperature"] else "greedy"
    )
    lines = [
        f"# Ablations: {markdown_text(facts['name'])}",
        "",
        "```sh",
        plain_line(facts["command"]).replace("```", "` ` `"),
        "```",
        "",
        f"World {env['name']}/{env['backend']}, up to {env['max_steps']} steps; policy"
        f" {markdown_text(Path(policy['model']).name) or 'krill-tiny'}, evaluation {sampled}; settings {facts['settings']};"
        f" seeds {', '.join(seeds)}. Budget of whatever is trained: {sft['num_examples']} demonstrations x"
        f" {sft['epochs']}, {rl['training_epochs']} GRPO steps of {rl['batch_size']} episodes.",
        "",
    ]
    if facts["owed"]:
        lines += [f"Not finished yet: {', '.join(facts['owed'])}.", ""]
    for free in (False, True):
        rows = [entry for entry in entries if entry["free"] == free]
        if rows:
            choice = "free text" if free or not policy["constrained"] else "a choice among admissible actions"
            lines += [f"## Success, {choice} (95 % Wilson intervals)", "", *_success_table(rows, seeds), ""]
            if any("against_full" in entry or "against_base" in entry for entry in rows):
                lines += ["### On the same games", "", *_paired_table(rows), ""]
    lines += ["## Conditions", ""]
    lines += [f"- `{entry['condition']}`: {entry['what']}" for entry in entries if not entry["free"]]
    lines += [
        "",
        "Differences are in percentage points with Newcombe's interval for pairs (1998, method 10); p is McNemar's exact"
        " test. All seeds are pooled: the interval is about games, the columns of the seeds show what training adds to"
        " it. Minutes are wall time; in brackets with the phases a condition shares with others.",
    ]
    return "\n".join(lines) + "\n"


def _success_table(rows: Sequence[Mapping[str, Any]], seeds: Sequence[str]) -> list[str]:
    categories = sorted({category for entry in rows for category in entry["categories"]})
    heads = ["condition", "all", *(f"seed {seed}" for seed in seeds), *map(markdown_text, categories)]
    heads += ["steps of wins", "valid actions", "minutes"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for entry in rows:
        steps = f"{entry['steps_of_wins']:.1f}" if entry["steps_of_wins"] is not None else "-"
        cells = [
            entry["condition"],
            percent(_as_rate(entry["overall"])),
            *(_short(entry["seeds"].get(seed)) for seed in seeds),
            *(_short(entry["categories"].get(category)) for category in categories),
            steps,
            f"{100 * entry['valid_actions']:.1f} %",
            f"{entry['seconds'] / 60:.1f} ({entry['seconds_with_shared'] / 60:.1f})",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _short(rate: Mapping[str, float] | None) -> str:
    return f"{100 * rate['rate']:.1f} %" if rate and rate["games"] else ""


def _paired_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| condition | against full, points | won alone / full alone | p | against base, points | p |",
        "|---" * 6 + "|",
    ]
    for entry in rows:
        full, base = entry.get("against_full"), entry.get("against_base")
        alone = f"{full['only_this_won']} / {full['only_other_won']}" if full else ""
        cells = [entry["condition"], _points(full), alone, _p(full), _points(base), _p(base)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _points(compared: Mapping[str, Any] | None) -> str:
    if not compared:
        return ""
    return f"{compared['points']:+.1f} [{compared['low']:+.1f}, {compared['high']:+.1f}]"


def _p(compared: Mapping[str, Any] | None) -> str:
    if not compared:
        return ""
    return "< 0.001" if compared["p"] < 0.001 else f"{compared['p']:.3f}"


def write_curves(plan: Plan, results: Mapping[str, JobResult]) -> None:
    """Write `curves.svg`: the course of all that was trained, a colour for each condition."""
    groups: dict[str, list[RunCurves]] = {}
    for job in plan_jobs(plan):
        if job.run in results and {"sft", "rl"} & set(job.stages):
            run = read_curves(run_path(job.run) / "events.jsonl", job.label)
            groups.setdefault(job.condition, []).append(run)
    if groups:
        ordered = {name: groups[name] for name in REPORTED if name in groups}
        seeds = ", ".join(map(str, plan.seeds))
        write_atomically(plan.folder / "curves.svg", curves_svg(ordered, f"{plan.name}: seeds {seeds}"))


def write_reports(plan: Plan, results: Mapping[str, JobResult]) -> dict[str, Any]:
    """Write `report.json`, `report.md` and `success.svg` into the ablation's folder; returns the facts."""
    facts = report(plan, results)
    rows = [
        RateRow(
            entry["condition"] + (", free text" if entry["free"] else ""),
            _as_rate(entry["overall"]),
            [seed["rate"] for seed in entry["seeds"].values()],
        )
        for entry in facts["conditions"]
    ]
    title = f"{plan.name}: success with 95 % intervals (small dots: seeds)"
    write_atomically(plan.folder / "success.svg", rates_svg(rows, title))
    write_atomically(plan.folder / "report.json", json.dumps(facts, indent=1) + "\n")
    write_atomically(plan.folder / "report.md", report_markdown(facts))
    return facts
