"""The commands that print facts and convert files: `inspect`, `convert`, `lint`."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from krill_tui.cli.options import Options
from krill_tui.errors import EXIT_FAILURE, DataError, UsageError
from krill_tui.io.files import check_output
from krill_tui.io.streams import show_json
from krill_tui.io.text import one_line

if TYPE_CHECKING:
    from krill_tui.agent.prompts import PromptOptions
    from krill_tui.engine.lint import LintReport
    from krill_tui.skills.formats.banks import BankFacts
    from krill_tui.skills.formats.records import ConvertReport
    from krill_tui.trajectory import Trajectory

REFUSED_SHOWN = 10


def inspect(
    options: Options,
    path: Annotated[
        Path,
        typer.Argument(
            help="A skill bank or trajectories in any known format, a folder of SKILL.md files, or a run's folder."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
) -> None:
    """Print what a skill bank holds; with --env, what of it a world can use. Also reads trajectories."""
    from krill_tui.skills.formats.banks import inspect_bank
    from krill_tui.skills.formats.trajectories import holds_trajectories, read_trajectories

    path = bank_path(path)
    try:
        bank = inspect_bank(path)
    except DataError as no_bank:
        if os.path.isdir(path):
            raise
        try:
            report = read_trajectories(path)
        except DataError as no_trajectories:
            raise _neither(path, no_bank, no_trajectories, holds_trajectories(path)) from None
        _print_trajectories(path, report, as_json)
        return
    _print_bank(path, bank, as_json, options.env)


def bank_path(path: Path) -> Path:
    """The file of a bank that was named: a run's folder holds one, a folder of SKILL.md files is one.

    Raises:
        DataError: there is no such file.
    """
    if os.path.isfile(path / "skill_bank.json"):
        return path / "skill_bank.json"
    if not os.path.exists(path):
        raise DataError(f"{path}: there is no such file")
    return path


def _neither(
    path: Path, no_bank: DataError, no_trajectories: DataError, holds_trajectories: bool
) -> DataError:
    """The error of what the file seems to be; of both, where it seems to be neither."""
    if holds_trajectories or no_bank.message == no_trajectories.message:
        return no_trajectories
    said = [error.message.removeprefix(f"{path}: ") for error in (no_bank, no_trajectories)]
    return DataError(f"{path}: read as a skill bank, it {said[0]}; as trajectories, it {said[1]}")


def convert(
    options: Options,
    source_format: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help="eto, rust, skillrl, agentgym or messages: what IN holds; to-rust: what OUT shall hold.",
        ),
    ],
    source: Annotated[Path, typer.Argument(metavar="IN", help="File to read: a JSON list, or .jsonl.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Trajectories to write.")],
    limit: Annotated[
        int | None, typer.Option("--max", min=1, help="Records to convert at most; eto: 100, others: all.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Convert trajectories of other projects to Krill's, or Krill's to the Rust project's (to-rust)."""
    from krill_tui.skills.formats import trajectories as formats

    if source_format not in (*formats.FOREIGN, "to-rust"):
        known = ", ".join((*formats.FOREIGN, "to-rust"))
        raise UsageError(f"'{source_format}' cannot be converted", hint=f"known: {known}")
    if os.path.exists(output) and os.path.exists(source) and os.path.samefile(output, source):
        raise UsageError(f"{output} would be written over what is read", hint="name another file for OUT")
    check_output(output)
    if source_format == "to-rust":
        made = formats.convert_to_rust(source, limit)
        formats.save_rust(output, made.trajectories)
        categories = Counter(str(record["task_category"]) for record in made.trajectories)
        _print_converted(source_format, output, made, categories, as_json)
        return
    report = formats.convert_file(source, source_format, limit or formats.DEFAULT_MAX.get(source_format))
    formats.save_trajectories(output, report.trajectories)
    _print_converted(source_format, output, report, Counter(t.category for t in report.trajectories), as_json)


def lint(
    options: Options,
    source: Annotated[
        str, typer.Argument(metavar="RUN_OR_FILE", help="A run, or trajectories in any known format.")
    ],
    model: Annotated[
        str,
        typer.Option(
            "--tokenizer", help="Model whose tokenizer counts the tokens; a run's own where it has one."
        ),
    ] = "",
    context: Annotated[
        int | None, typer.Option("--context", min=1, help="Tokens the model holds; a run's own setting.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 where there is a warning.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
) -> None:
    """Look over fine-tuning data: who quotes skills, what is cut off, what repeats; and warn."""
    from krill_tui.engine import lint as linter

    demonstrations, prompts, run_model, run_context = _demonstrations(source)
    model, context = model or run_model, context or run_context
    lengths = _count_tokens(demonstrations, prompts, model) if model and demonstrations else None
    found = linter.lint(demonstrations, lengths=lengths, context=context or 0)
    if as_json:
        show_json({"source": source, **found.model_dump(mode="json")})
    else:
        _print_lint(source, found)
    if strict and found.warnings:
        raise typer.Exit(EXIT_FAILURE)


COMMANDS: dict[str, Callable[..., None]] = {"inspect": inspect, "convert": convert, "lint": lint}


def _demonstrations(source: str) -> tuple[list[Trajectory], PromptOptions, str, int]:
    """(demonstrations, how prompts are shown, model, context) of a run or a file; "" and 0 where it does not say."""
    from krill_tui.agent.prompts import PromptOptions
    from krill_tui.skills.formats.trajectories import load_trajectories

    if os.path.isfile(source):
        return load_trajectories(source), PromptOptions(), "", 0
    from krill_tui.config.load import load_config
    from krill_tui.engine.build import policy_model
    from krill_tui.engine.episodes import read_trajectory_lines
    from krill_tui.engine.phases import chosen_demonstrations
    from krill_tui.engine.run_store import existing_run, stored_config

    if Path(source).suffix in (".json", ".jsonl"):
        raise DataError(f"{source}: there is no such file")
    path = existing_run(source)
    stored, _ = stored_config(path)
    config = load_config(path / "config.json", stored=stored)
    played = (t for t in read_trajectory_lines(path / "trajectories.jsonl") if t.purpose == "demonstrate")
    demonstrations = chosen_demonstrations(list(played), config.sft.num_examples)
    if not demonstrations:
        raise DataError(
            f"run '{path.name}' has no demonstrations", hint="krill sft makes them; or name a file"
        )
    style = PromptOptions(config.policy.prompt_style, config.policy.list_admissible)
    model = policy_model(config) if config.policy.kind == "local" else ""
    return demonstrations, style, model, config.rl.max_prompt_length + config.rl.max_response_length


def _count_tokens(
    demonstrations: Sequence[Trajectory], prompts: PromptOptions, model: str
) -> list[tuple[int, int]]:
    """Of each demonstration: tokens of the sequence that fine-tuning builds, and those of its replies."""
    from krill_tui.engine.phases import sft_example
    from krill_tui.training.tokens import ChatTokenizer, load_tokenizer

    chat = ChatTokenizer(load_tokenizer(model))
    lengths = []
    for trajectory in demonstrations:
        example = sft_example(trajectory, prompts)
        tokens = chat.conversation([{"role": m.role, "content": m.content} for m in example.messages])
        lengths.append((len(tokens.ids), sum(tokens.mask)))
    return lengths


def _print_lint(source: str, found: LintReport) -> None:
    from krill_tui.headless import make_console, print_line

    console = make_console()
    counted = "estimated" if found.estimated else "counted"
    print_line(console, f"{source}: {found.episodes} demonstrations of {found.games} games, {found.won} won")
    lines = (
        f"{found.citing:.1%} of {found.outputs} replies quote a skill of their prompt,"
        f" {found.citing_unknown:.1%} one that is not in it",
        f"{found.citing_episodes:.1%} of the episodes quote a skill; {found.without_skills:.1%} have none in the prompt",
        f"{found.skill_blocks} different sets of skills in prompts",
        f"{found.finished:.1%} finished, {found.duplicates:.1%} repeat another",
        f"{found.invalid:.1%} of the actions were not possible",
        f"{found.mean_tokens:.0f} tokens on average ({counted}), {found.longest} at most,"
        f" {found.policy_tokens} of {found.tokens} are learned"
        + (f", {found.cut:.1%} past the context of {found.context}" if found.context else ""),
        "actions: " + ", ".join(f"{verb} {count}" for verb, count in found.verbs.items()),
    )
    for line in lines:
        print_line(console, f"  {line}")
    for warning in found.warnings:
        print_line(console, f"warning: {warning.message}", "yellow")
    if not found.warnings:
        print_line(console, "no warnings")


def _print_converted(
    source_format: str, output: Path, report: ConvertReport, categories: Counter[str], as_json: bool
) -> None:
    counts = {"read": report.read, "converted": report.converted, "refused": len(report.refused)}
    if as_json:
        facts = {
            "format": source_format,
            "output": str(output),
            **counts,
            "left": report.left,
            "categories": dict(sorted(categories.items())),
            "refusals": [{"record": index, "reason": why} for index, why in report.refused],
        }
        show_json(facts)
        return
    from krill_tui.headless import make_console, print_line

    console = make_console()
    print_line(console, f"wrote {output}: {report.converted} trajectories of {report.read} records")
    for index, why in report.refused[:REFUSED_SHOWN]:
        print_line(console, f"  record {index} left out: {why}")
    if len(report.refused) > REFUSED_SHOWN:
        print_line(console, f"  and {len(report.refused) - REFUSED_SHOWN} more left out")
    print_line(console, ", ".join(f"{name} {count}" for name, count in counts.items()))
    if report.left:
        print_line(console, f"{report.left} more records were not read: --max takes more")


def _print_bank(path: Path, bank: BankFacts, as_json: bool, env: str | None) -> None:
    from krill_tui.skills.tiers import categories_of, reach

    reached = reach(bank.skills, env, categories_of(env)) if env else None
    if as_json:
        facts = {"kind": "skill bank", **bank.model_dump(mode="json")}
        if reached:
            facts |= {"never_in_prompts": dict(reached.never), "in_prompts_by_name": dict(reached.by_name)}
        show_json(facts)
        return
    from krill_tui.headless import make_console, print_line

    console = make_console()
    tiers = ", ".join(f"{tier} {count}" for tier, count in bank.tiers.items())
    print_line(console, f"{path}: skill bank ({bank.format}), {len(bank.skills)} skills, cycle {bank.cycle}")
    print_line(console, f"tiers: {tiers or 'none'}")
    if told := bank.told():
        print_line(console, told, "yellow")
    if reached and (unreached := reached.told()):
        print_line(console, unreached, "yellow")
    for key, value in (bank.extra.get("metadata") or {}).items():
        print_line(console, f"{key}: {value if isinstance(value, str) else json.dumps(value)}")
    tier = None
    for skill in sorted(bank.skills, key=lambda s: list(bank.tiers).index(s.tier)):
        if skill.tier != tier:
            tier = skill.tier
            print_line(console, "")
            print_line(console, tier, "bold")
        mark = "" if skill.status == "active" else f" ({skill.status})"
        lesson = " [lesson]" if skill.kind == "lesson" else ""
        lesson += f" [also {', '.join(skill.also)}]" if skill.also else ""
        print_line(console, f"  {skill.id}  {skill.name}{lesson}{mark}")
        print_line(console, f"      {skill.principle}")
        if skill.when_to_apply:
            print_line(console, f"      when: {skill.when_to_apply}")
        stats = skill.stats
        if stats.injected:
            print_line(console, f"      in {stats.injected} prompts, cited {stats.cited}, won {stats.wins}")


def _print_trajectories(path: Path, report: ConvertReport[Trajectory], as_json: bool) -> None:
    trajectories = report.trajectories
    facts = trajectory_facts(trajectories)
    if as_json:
        refusals = [{"record": index, "reason": why} for index, why in report.refused]
        show_json({"path": str(path), "kind": "trajectories", **facts, "refusals": refusals})
        return
    from rich.table import Table

    from krill_tui.engine.evaluate import broke, first_error, success_rates
    from krill_tui.headless import make_console, print_line, rate_cells

    console = make_console()
    print_line(console, f"{path}: {len(trajectories)} trajectories, {facts['steps']} steps")
    if told := report.told():
        print_line(console, told, "yellow")
    table = Table("category", box=None, pad_edge=False)
    for heading in ("success", "95 % interval", "won"):
        table.add_column(heading, justify="right")
    overall, categories = success_rates(trajectories)
    for name, rate in [*categories.items(), ("all", overall)]:
        table.add_row(one_line(name, limit=40), *rate_cells(rate))
    console.print(table)
    if overall.errors:
        print_line(console, broke(overall, first_error(trajectories)))


def trajectory_facts(trajectories: Sequence[Trajectory]) -> dict[str, object]:
    """Counts over trajectories, as `inspect --json` prints them."""
    return {
        "trajectories": len(trajectories),
        "successes": sum(t.success for t in trajectories),
        "steps": sum(len(t.steps) for t in trajectories),
        "invalid_actions": sum(t.invalid_actions for t in trajectories),
        "categories": dict(sorted(Counter(t.category for t in trajectories).items())),
        "stop_reasons": dict(sorted(Counter(t.stop_reason.value for t in trajectories).items())),
        "policies": dict(sorted(Counter(t.policy for t in trajectories).items())),
        "splits": dict(sorted(Counter(t.split for t in trajectories).items())),
    }
