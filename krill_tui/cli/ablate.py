"""The command `ablate`: the paper's ablations as one table."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from krill_tui.cli.names import fresh_name
from krill_tui.cli.options import Display, Options, resolve_config
from krill_tui.errors import EXIT_CANCELLED, DataError, KrillError, UsageError
from krill_tui.io.children import child_command, child_environment
from krill_tui.io.streams import show_json, show_text

if TYPE_CHECKING:
    from krill_tui.engine.ablate import Ablation, Job, JobResult, Plan

_LINE_LIMIT = 1 << 20
_SAVING_SECONDS = 60.0
"""That a run which was told to stop may take to save."""


def ablate(
    options: Options,
    seeds: Annotated[
        str, typer.Option("--seeds", help="How many, from --seed on; or a list with commas: 0,1,7.")
    ] = "3",
    episodes: Annotated[
        int | None, typer.Option("--episodes", min=1, help="Games of each evaluation [140].")
    ] = None,
    conditions: Annotated[
        str, typer.Option("--conditions", help="Names with commas between them [all of them].")
    ] = "",
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, max=1024, help="Runs worked on at once, each a process.")
    ] = 1,
    sampled: Annotated[
        bool | None,
        typer.Option(
            "--sampled/--greedy", help="Evaluate and validate at policy.temperature, or at 0 [as configured]."
        ),
    ] = None,
    free: Annotated[
        bool, typer.Option("--free", help="Evaluate also with free text, where training was constrained.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """The paper's ablations: base, skills, SFT, RL, and all but one part of it, on the same games."""
    from krill_tui.engine.ablate import Ablation, make_plan
    from krill_tui.engine.run_store import list_runs

    display = options.display or Display.AUTO
    if display in (Display.APP, Display.JSON):
        raise UsageError(
            f"ablate has no display '{display}'", hint="--display plain or none; watch its runs in the app"
        )
    typed: dict[str, Any] = {"evaluation": {"episodes": episodes} if episodes is not None else {}}
    config = resolve_config(options, typed)
    if sampled is not None:
        temperature = (config.policy.temperature or 1.0) if sampled else 0.0
        policy = config.policy.model_copy(update={"eval_temperature": temperature})
        config = config.model_copy(update={"policy": policy})
    plan = make_plan(
        options.run or fresh_name(list_runs()),
        config,
        seeds=seeds,
        conditions=conditions,
        free=free,
        command=shlex.join(["krill", *sys.argv[1:]]),
    )
    ablation = Ablation.open(plan)
    try:
        say = _Say(quiet=display is Display.NONE, aside=as_json)
        owed = [job for job in ablation.jobs if job.run not in ablation.results]
        say(f"ablation {plan.name}: {plan.folder}, {len(owed)} of {len(ablation.jobs)} runs to do")
        if free and not plan.free:
            say("krill: every evaluation is free text already: --free adds nothing")
        stopped = asyncio.run(_work(ablation, jobs, say))
        facts = _finish(plan, ablation)
    finally:
        ablation.close()
    if stopped:
        say(f"krill: stopped; the same command with --run {plan.name} goes on")
        raise typer.Exit(EXIT_CANCELLED)
    if as_json:
        show_json(facts)
    else:
        from krill_tui.engine.ablate_report import report_markdown

        show_text(report_markdown(facts))
    if ablation.failures:
        run, reason = next(iter(ablation.failures.items()))
        raise KrillError(f"{len(ablation.failures)} runs failed; {run}: {reason}")


COMMANDS: dict[str, Callable[..., None]] = {"ablate": ablate}


class _Say:
    """Progress: a line for each line of a run, with the run's label before it."""

    def __init__(self, *, quiet: bool, aside: bool) -> None:
        from krill_tui.headless import make_console

        self._console = None if quiet else make_console(sys.stderr if aside else sys.stdout)

    def __call__(self, text: str) -> None:
        if self._console:
            from krill_tui.headless import print_line

            print_line(self._console, text)


async def _work(ablation: Ablation, at_once: int, say: _Say) -> bool:
    """Do what is owed; True where a signal stopped it."""
    from krill_tui.engine.ablate_report import write_reports
    from krill_tui.headless import duration

    task = asyncio.current_task()
    assert task is not None

    def finished(job: Job, result: JobResult) -> None:
        games = result.games
        broke = sum(game.broke for game in games)
        lost = f", {broke} broke" if broke else ""
        won = f": {sum(g.won for g in games)} of {len(games) - broke} games won{lost}" if games else ""
        say(f"[{job.label}] finished in {duration(result.seconds)}{won}")
        write_reports(ablation.plan, ablation.results)

    with _on_signals(task):
        try:
            await ablation.work(lambda job: _execute(job, say), at_once=at_once, on_finished=finished)
        except asyncio.CancelledError:
            return True
    return False


@contextlib.contextmanager
def _on_signals(task: asyncio.Task[Any]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in signals:
        loop.add_signal_handler(number, task.cancel)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


async def _execute(job: Job, say: _Say) -> JobResult:
    """Work on one run in a process of its own.

    Raises:
        KrillError: it failed; the last line it said about that.
    """
    from krill_tui.cli.ablate_job import RESULT_FILE
    from krill_tui.engine.ablate import JobResult, job_order
    from krill_tui.engine.run_store import run_path
    from krill_tui.io.files import read_json

    order = json.dumps(job_order(job))
    process = await asyncio.create_subprocess_exec(
        *child_command("krill_tui.cli.ablate_job", ending=signal.SIGTERM),  # it saves first
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for this process; the child is told by the end of its input
        limit=_LINE_LIMIT,
        env=child_environment(downloads=True),
    )
    assert process.stdin and process.stdout and process.stderr
    errors: list[str] = []

    async def read(stream: asyncio.StreamReader, take: Callable[[str], object]) -> None:
        async for line in stream:
            take(line.decode(errors="replace").rstrip())

    readers = asyncio.gather(
        read(process.stdout, lambda line: say(f"[{job.label}] {line}")), read(process.stderr, errors.append)
    )
    try:
        with contextlib.suppress(ConnectionError):  # it ended at once: what it said tells why
            process.stdin.write(order.encode() + b"\n")
            await process.stdin.drain()
        await readers
        code = await process.wait()
    except asyncio.CancelledError:
        process.stdin.close()
        try:
            async with asyncio.timeout(_SAVING_SECONDS):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        raise
    if code:
        raise KrillError(next((line for line in reversed(errors) if line), f"exit code {code}"))
    path = run_path(job.run) / RESULT_FILE
    try:
        return JobResult.model_validate(read_json(path))
    except ValueError:
        raise DataError(f"{path}: is damaged") from None


def _finish(plan: Plan, ablation: Ablation) -> dict[str, Any]:
    from krill_tui.engine.ablate_report import write_curves, write_reports

    write_curves(plan, ablation.results)
    return write_reports(plan, ablation.results)
