"""The commands that work in a run: the app, `train`, the four phases, `eval`."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from krill_tui.cli.names import fresh_name
from krill_tui.cli.options import Display, Options, in_terminal, needs_terminal, resolve_config
from krill_tui.errors import EXIT_BROKEN_PIPE, DataError, UsageError
from krill_tui.io.files import check_output, write_output
from krill_tui.io.streams import say, show, show_json

if TYPE_CHECKING:
    from krill_tui.config.schema import KrillConfig
    from krill_tui.engine.panel import Panel, PanelPlan
    from krill_tui.engine.session import Session

DEFAULT_TRAJECTORIES = Path("data/trajectories.json")
DEFAULT_BANK = Path("data/skill_bank.json")

PolicyOption = Annotated[
    str | None, typer.Option("--policy", help="Who plays: local, openai, expert or random.")
]
BankOption = Annotated[
    Path | None,
    typer.Option("--skill-bank", help=f"Bank to start from, in any known format [{DEFAULT_BANK}]."),
]
CheckpointOption = Annotated[
    Path | None,
    typer.Option("--checkpoint", help="Checkpoint folder to start from, for instance of `krill sft`."),
]
Finish = Callable[["Session"], None]
"""Prints and exports what completed phases made."""


def bare(options: Options) -> None:
    """Open the app: on `--run`, else on the last run, else on a fresh one."""
    from krill_tui.engine.run_store import list_runs

    needs_terminal()
    runs = list_runs()
    name = (runs[0] if runs else fresh_name(runs)) if options.run is None else options.run
    planned = _plan_run(options, {}, name)
    asyncio.run(_open_app(planned))


def train(options: Options) -> None:
    """All four phases: collect, distill, SFT, RL; with success before and after."""
    _start(options, ["train"], {}, finish=_print_results)


def collect(
    options: Options,
    episodes: Annotated[int | None, typer.Option("--episodes", help="Episodes to play [64].")] = None,
    output: Annotated[
        Path, typer.Option("--output", help="Where the episodes are written.")
    ] = DEFAULT_TRAJECTORIES,
    policy: PolicyOption = None,
) -> None:
    """Phase 1: the base policy plays; successes and failures are kept."""
    typed = {"collect": given(episodes=episodes), "policy": given(kind=policy)}
    check_output(output)

    def finish(session: Session) -> None:
        from krill_tui.skills.formats.trajectories import save_trajectories

        collected = session.episodes.read("collect")
        save_trajectories(output, collected)
        broken = len(session.episodes.broken("collect"))
        lost = f"; {broken} broke and are left out" if broken else ""
        show(f"wrote {output}: {len(collected)} episodes, {sum(t.success for t in collected)} won{lost}")

    _start(options, ["collect"], typed, finish=finish)


def distill(
    options: Options,
    trajectories: Annotated[
        Path | None, typer.Option("--trajectories", help=f"Episodes to learn from [{DEFAULT_TRAJECTORIES}].")
    ] = None,
    output: Annotated[Path, typer.Option("--output", help="Where the skill bank is written.")] = DEFAULT_BANK,
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="openai, or builtin (a program, not an LLM).")
    ] = None,
) -> None:
    """Phase 2: the teacher turns episodes into skills."""

    def finish(session: Session) -> None:
        session.bank.flush()
        write_output(output, session.store.bank_file.read_text(encoding="utf-8"))
        show(f"wrote {output}: {len(session.bank)} skills")

    typed = {"teacher": given(kind=teacher)}
    check_output(output)
    _start(options, ["distill"], typed, trajectories=(trajectories, DEFAULT_TRAJECTORIES), finish=finish)


def sft(
    options: Options,
    skill_bank: BankOption = None,
    num_examples: Annotated[
        int | None,
        typer.Option("--num-examples", help="Demonstrations that were won [7500; tiny preset: fewer]."),
    ] = None,
) -> None:
    """Phase 3: cold start, LoRA fine-tuning on demonstrations that use the skills."""
    typed = {"sft": given(num_examples=num_examples)}
    _start(options, ["sft"], typed, bank=(skill_bank, DEFAULT_BANK), finish=_print_checkpoint)


def rl(
    options: Options,
    skill_bank: BankOption = None,
    steps: Annotated[
        int | None, typer.Option("--steps", help="GRPO steps [150; tiny preset: fewer].")
    ] = None,
    checkpoint: CheckpointOption = None,
) -> None:
    """Phase 4: GRPO, with validations and the evolution of the bank."""
    if options.run is None and checkpoint is None:
        checkpoint = _newest_cold_start(options)
    typed = {"rl": given(training_epochs=steps), "policy": given(adapter=_folder(checkpoint))}
    _start(options, ["rl"], typed, bank=(skill_bank, DEFAULT_BANK), finish=_print_checkpoint)


def evaluate(
    options: Options,
    split: Annotated[
        str | None,
        typer.Option("--split", help="Split to play; default: test, or valid_seen of genuine games."),
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Times each game is played.")] = None,
    episodes: Annotated[int | None, typer.Option("--episodes", help="Games of the split to play.")] = None,
    policy: PolicyOption = None,
    skill_bank: Annotated[
        Path | None,
        typer.Option("--skill-bank", help="Bank whose skills stand in the prompts; default: the run's."),
    ] = None,
    checkpoint: CheckpointOption = None,
    panel: Annotated[
        str | None,
        typer.Option(
            "--panel",
            metavar="FILE",
            help="Play exactly what this panel asks for (krill panel make), or one of Krill's own by name.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Success by category with 95 % Wilson intervals, on games nobody learned from."""
    typed = {
        "evaluation": given(split=split, episodes=episodes, seeds=seeds),
        "policy": given(kind=policy, adapter=_folder(checkpoint)),
    }

    def finish(session: Session) -> None:
        from krill_tui import headless
        from krill_tui.engine.evaluate import broke

        evaluated = session.state.evaluations["eval"]
        if as_json:
            show_json({"run": session.store.name, **_evaluation_facts(session)})
            return
        console = headless.make_console()
        headless.print_line(console, f"{evaluated.split}, {evaluated.overall.episodes} episodes")
        if evaluated.panel:
            headless.print_line(console, f"panel {evaluated.panel}, digest {evaluated.panel_digest}")
            headless.print_line(console, f"what was played: {evaluated.played}")
        console.print(headless.categories_table(evaluated))
        if evaluated.overall.errors:
            headless.print_line(console, broke(evaluated.overall, evaluated.first_error))

    pinned = None
    if panel is not None:
        from krill_tui.config.load import merge
        from krill_tui.engine.panel import find_panel, load_panel, refuse_contradiction

        pinned = load_panel(find_panel(panel))
        refuse_contradiction(pinned, merge(options.overrides(), typed))
    _start(
        options,
        ["evaluate"],
        typed,
        bank=(skill_bank, None),
        finish=finish,
        json_result=as_json,
        panel=pinned,
    )


COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "collect": collect,
    "distill": distill,
    "sft": sft,
    "rl": rl,
    "eval": evaluate,
}


def _start(
    options: Options,
    phases: Sequence[str],
    typed: Mapping[str, object],
    *,
    finish: Finish,
    bank: tuple[Path | None, Path | None] = (None, None),
    trajectories: tuple[Path | None, Path | None] = (None, None),
    json_result: bool = False,
    panel: Panel | None = None,
) -> None:
    """Open the run, show it while it works, then export and print; `bank`, `trajectories`: (typed, default)."""
    from krill_tui.config.load import merge
    from krill_tui.engine.panel import overrides as panel_overrides
    from krill_tui.engine.panel import plan_panel
    from krill_tui.engine.pipeline import check
    from krill_tui.engine.run_store import list_runs, run_path

    name = fresh_name(list_runs()) if options.run is None else options.run
    plan = None
    if panel is not None and not (run_path(name) / "events.jsonl").exists():
        typed = merge(panel_overrides(panel), typed)  # a new run is one of the panel's world
    planned = _plan_run(options, typed, name)
    name, known = planned.name, planned.known
    own_bank = known or planned.bank is not None
    if panel is not None:
        plan = plan_panel(panel, planned.config)
    check(planned.config, phases)
    inputs = {
        "bank": _input_file(bank, own_bank, "krill distill makes one") or planned.bank,
        "trajectories": _input_file(trajectories, known, "krill collect makes one"),
    }
    display = _choose_display(options.display, json_result)
    greeting = f"{'going on with' if known else 'new'} run {name}: {run_path(name)}"
    work = _work(name, greeting, planned.config, inputs, phases, display, finish, json_result, plan)
    raise typer.Exit(asyncio.run(work))


async def _work(
    name: str,
    greeting: str,
    config: KrillConfig,
    inputs: Mapping[str, Path | None],
    phases: Sequence[str],
    display: Display,
    finish: Finish,
    json_result: bool,
    panel: PanelPlan | None = None,
) -> int:
    from krill_tui import headless
    from krill_tui.engine.session import Session

    # How somebody measures a run is nothing it should be trained with when it goes on.
    session = await Session.open(
        name, config, **inputs, keep_config=list(phases) == ["evaluate"], panel=panel
    )
    say(greeting)
    unread = False
    try:
        if display is Display.APP:
            from krill_tui.tui.app import KrillApp

            app = KrillApp(session, autostart=phases)
            await app.run_async()
            outcome = "failed" if app.return_code else session.state.outcome or "cancelled"
        else:
            view = headless.make_view(display, session.state, sys.stderr if json_result else None)
            shown = headless.Guarded(view)
            outcome = await headless.run_session(session, phases, shown)
            unread = isinstance(shown.error, BrokenPipeError)
        if outcome == "completed":
            # With --display json, standard output holds events and nothing else.
            aside = display is Display.JSON and not json_result
            with contextlib.redirect_stdout(sys.stderr) if aside else contextlib.nullcontext():
                finish(session)
            return EXIT_BROKEN_PIPE if unread else 0
        if session.error is not None:
            raise session.error
        return headless.EXIT_CODES[outcome]
    finally:
        await session.close()


async def _open_app(planned: PlannedRun) -> None:
    from krill_tui.engine.session import Session
    from krill_tui.tui.app import KrillApp

    session = await Session.open(planned.name, planned.config, bank=planned.bank)
    try:
        await KrillApp(session).run_async()
    finally:
        await session.close()


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """The run a command works in."""

    name: str
    config: KrillConfig
    known: bool
    """It is there already."""
    bank: Path | None = None
    """Of the run it is a fork of."""


def _plan_run(options: Options, typed: Mapping[str, object], name: str) -> PlannedRun:
    """The run called `name`, or the fork of it that is asked for.

    Raises:
        UsageError: there is nothing to fork, or the fork is there already.
    """
    from krill_tui.engine.run_store import existing_run, run_path, stored_config

    if options.fork is not None and options.run is None:
        raise UsageError("--fork NAME makes a new run from another one", hint="name that one with --run")
    folder = existing_run(name) if options.fork is not None else run_path(name)
    known = (folder / "events.jsonl").exists()
    stored, problem = stored_config(folder)
    if problem:
        say(f"krill: {problem}")
    config = resolve_config(options, typed, stored=stored, stored_path=folder / "config.json")
    if options.fork is None:
        return PlannedRun(name, config, known)
    if (run_path(options.fork) / "events.jsonl").exists():
        raise UsageError(
            f"there is a run '{options.fork}' already", hint="--fork takes the name of a new one"
        )
    return _fork(options.fork, folder, config, stored or {})


def _fork(name: str, origin: Path, config: KrillConfig, stored: Mapping[str, object]) -> PlannedRun:
    """A new run that begins with another run's bank and, where the model fits, its newest checkpoint."""
    from krill_tui.config.identity import differences
    from krill_tui.config.load import public_dict
    from krill_tui.engine.run_store import current_checkpoint

    shape = ("policy.kind", "policy.model", "policy.lora_rank", "policy.lora_alpha")
    same_shape = not differences(stored, public_dict(config), shape)
    typed_adapter = bool(differences(stored, public_dict(config), ["policy.adapter"]))
    checkpoint = current_checkpoint(origin)
    taken = "its bank"
    if checkpoint is not None and config.policy.kind == "local" and same_shape and not typed_adapter:
        policy = config.policy.model_copy(update={"adapter": str(checkpoint.resolve())})
        config = config.model_copy(update={"policy": policy})
        taken += f" and its weights {checkpoint.name}"
    elif not same_shape:
        policy = config.policy.model_copy(update={"adapter": ""})
        config = config.model_copy(update={"policy": policy} if not typed_adapter else {})
        taken += ", not its weights, which are of another model"
    bank = origin / "skill_bank.json"
    say(f"forked from {origin.name}: with {taken}")
    return PlannedRun(
        name, config, known=False, bank=bank if bank.is_file() and bank.stat().st_size else None
    )


def _input_file(choice: tuple[Path | None, Path | None], known_run: bool, hint: str) -> Path | None:
    """The file that was typed, else the default for a new run; a run that goes on has its own."""
    typed, default = choice
    path = typed or (None if known_run else default)
    if path is not None and not path.exists():
        raise DataError(f"{path}: there is no such file", hint=hint)
    return path


def _folder(checkpoint: Path | None) -> str | None:
    """A checkpoint as the config holds it: absolute, so that the run can go on from anywhere."""
    return str(checkpoint.resolve()) if checkpoint else None


def _newest_cold_start(options: Options) -> Path | None:
    """What ended the cold start of the newest run of this world and model: what `krill sft` just made."""
    from krill_tui.engine.run_store import ended_cold_start, existing_run, list_runs

    config = resolve_config(options)
    for name in list_runs():
        folder = ended_cold_start(existing_run(name), config)
        if folder is not None:
            say(f"starting from {folder}")
            return folder
    return None


def _choose_display(wanted: Display | None, json_result: bool) -> Display:
    if wanted in (None, Display.AUTO):
        return Display.APP if in_terminal() and not json_result else Display.PLAIN
    assert wanted is not None
    if wanted is Display.APP:
        needs_terminal()
    return wanted


def _print_results(session: Session) -> None:
    from krill_tui import headless
    from krill_tui.engine.report import broken_lines

    console = headless.make_console()
    console.print(headless.results_table(session.state))
    for line in broken_lines(session.state):
        headless.print_line(console, line)
    headless.print_line(console, f"report: {session.store.path / 'report.md'}")


def _print_checkpoint(session: Session) -> None:
    if session.checkpoint:
        show(f"checkpoint: {session.checkpoint}")
    show(f"skills: {session.store.bank_file}")


def _evaluation_facts(session: Session) -> dict[str, object]:
    evaluated = session.state.evaluations["eval"]
    return {
        "split": evaluated.split,
        "games": session.state.games,
        "notices": list(session.state.notices),
        "policy": session.config.policy.kind,
        "panel": {"name": evaluated.panel, "digest": evaluated.panel_digest} if evaluated.panel else None,
        "played": evaluated.played,
        "weights": evaluated.weights,
        "seed": session.config.seed,
        "overall": _rate_facts(evaluated.overall),
        "categories": {name: _rate_facts(rate) for name, rate in evaluated.categories.items()},
        "errors": evaluated.overall.errors,
        "first_error": evaluated.first_error,
        "mean_steps": evaluated.mean_steps,
        "seconds": evaluated.seconds,
    }


def _rate_facts(rate) -> dict[str, float]:
    return {
        "success": rate.rate,
        "low": rate.low,
        "high": rate.high,
        "wins": rate.wins,
        "episodes": rate.episodes,
        "errors": rate.errors,
        "success_if_errors_lost": rate.if_lost,
    }


def given(**values: object) -> dict[str, object]:
    """The flags that were typed."""
    return {key: value for key, value in values.items() if value is not None}
