"""Damaged and hostile inputs for every parser: each is read, or refused in one line, in time.

`python -m benchmarks.reliability.fuzz --count 10000` gives each parser that many inputs: valid ones with bytes flipped,
cut, doubled, spliced and replaced by numbers, nestings, escapes and surrogates that files should not hold. Then each gets
inputs of 60,000 characters, made of what its grammar repeats, and must be done with each within 0.1 s. What is read from
a bank or from trajectories is written and read again as well.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.reliability.fuzz_inputs import Corpus, long_inputs, make_corpus, mutate
from benchmarks.reliability.record import show
from krill_tui.agent.actions import citations, parse_reply
from krill_tui.cli.options import parse_assignment
from krill_tui.cli.play import read_script
from krill_tui.config.load import load_config
from krill_tui.engine.lint import lint
from krill_tui.engine.report import write_report
from krill_tui.engine.state import RunState
from krill_tui.engine.tokens import TokenStore
from krill_tui.envs.alfworld import text as household
from krill_tui.envs.alfworld.grammar import compile_grammar
from krill_tui.envs.alfworld.pddl import parse_domain, parse_expression
from krill_tui.envs.alfworld.problem import load_game
from krill_tui.envs.clients.site_pages import read_site_page
from krill_tui.envs.serve.protocols import HouseholdError, Service
from krill_tui.envs.webshop.catalogue import parse_products
from krill_tui.envs.webshop.reading import read_page, read_wish
from krill_tui.errors import KrillError
from krill_tui.events.journal import JournalFollower, last_outcome, read_journal
from krill_tui.models.base import ChatModel
from krill_tui.models.remembering import RememberingChat
from krill_tui.models.scripted import ScriptedChat
from krill_tui.models.worker_protocol import reply_adapter
from krill_tui.skills.bank import SkillBank
from krill_tui.skills.builtin_teacher import BuiltinTeacher
from krill_tui.skills.formats.bank_writers import write_krill
from krill_tui.skills.formats.banks import load_bank
from krill_tui.skills.formats.trajectories import convert_file, load_trajectories, save_trajectories
from krill_tui.skills.replies import UnreadableReply
from krill_tui.skills.replies import parse_reply as parse_teacher_reply
from krill_tui.training.worker import serve
from krill_tui.trajectory import Trajectory

SECONDS = 0.1
"""That a parser may take for an input of 60,000 characters."""
LENGTH = 60_000
HANG = 5.0
"""Seconds after which an input is given up, and counted as a fault."""


class Hung(BaseException):
    """Raised by the alarm; no parser catches it."""


@dataclass(frozen=True)
class Parser:
    name: str
    seeds: list[bytes]
    """Valid inputs."""
    parse: Callable[[bytes, Path], object]
    """Reads an input; a folder is there for parsers of files."""
    refuses: tuple[type[Exception], ...] = (KrillError,)
    is_text: bool = False
    """Fed by models and worlds: must be done with long inputs in time."""


def parsers(corpus: Corpus) -> list[Parser]:
    """Everything that reads what somebody else wrote."""
    loop = asyncio.new_event_loop()
    service = Service(corpus.source)

    def in_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes, Path], object]:
        def parse(data: bytes, folder: Path) -> object:
            path = folder / name
            path.write_bytes(data)
            return read(path)

        return parse

    def bank(path: Path) -> None:
        loaded = load_bank(path)
        write_krill(path.with_name("again.json"), loaded.skills)
        load_bank(path.with_name("again.json"))

    def own_bank(path: Path) -> None:
        with contextlib.closing(SkillBank.open(path)) as opened:
            opened.skills(active_only=False)
            opened.history()

    def trajectories(path: Path) -> list[Trajectory]:
        loaded = load_trajectories(path)
        if loaded:
            save_trajectories(path.with_name("again.json"), loaded)
            load_trajectories(path.with_name("again.json"))
        return loaded

    def convert(kind: str) -> Callable[[Path], object]:
        def read(path: Path) -> None:
            report = convert_file(path, kind)
            if report.converted:
                save_trajectories(path.with_name("again.json"), report.converted)
                load_trajectories(path.with_name("again.json"))

        return read

    def taught(path: Path) -> None:
        episodes = load_trajectories(path)
        lint(episodes)
        teacher = BuiltinTeacher()
        loop.run_until_complete(teacher.distill(episodes, [], env="alfworld"))

    def journal(path: Path) -> None:
        state = RunState()
        for event in read_journal(path):
            state.apply(event)
        write_report(state, path.with_name("report.md"))
        JournalFollower(path).read_new()

    def tokens(path: Path) -> None:
        TokenStore(path.parent).read(path.stem)

    def observation(data: bytes, _: Path) -> None:
        said = data.decode("utf-8", "replace")
        for read in (
            household.parse_task,
            household.task_sentence,
            household.room_receptacles,
            household.sight,
        ):
            read(said)
        for read in (household.seen_objects, household.taken, household.placed, household.treated):
            read(said)
        read_wish(said)
        read_page(said, ())

    def served(data: bytes, _: Path) -> None:
        for call in (service.reset, service.step):
            with contextlib.suppress(KrillError, HouseholdError):
                loop.run_until_complete(call(data))

    def worker(data: bytes, _: Path) -> None:
        serve(io.BytesIO(data.replace(b"\n", b" ") + b"\n"), io.BytesIO())

    def decoded(read: Callable[[str], object]) -> Callable[[bytes, Path], object]:
        return lambda data, _: read(data.decode("utf-8", "surrogateescape"))

    def products(data: bytes, _: Path) -> object:
        return parse_products(json.loads(data), {}, {})

    def assignment(data: bytes, _: Path) -> object:
        return load_config(overrides=parse_assignment(data.decode("utf-8", "surrogateescape")), environ={})

    def acted(said: str) -> object:
        reply = parse_reply(said)
        return citations(reply.thought, frozenset({"gen_001"}))

    def remembered(path: Path) -> ChatModel:
        return RememberingChat(ScriptedChat([]), path)

    return [
        Parser("config file", corpus.config, in_file("c.json", lambda p: load_config(p, environ={}))),
        Parser("--set", corpus.assignments, assignment),
        Parser("play --script", corpus.script, in_file("s.jsonl", read_script)),
        Parser("banks to import", corpus.banks, in_file("b.json", bank)),
        Parser("the bank of a run", corpus.own_bank, in_file("skill_bank.json", own_bank)),
        Parser("trajectories", corpus.trajectories, in_file("t.json", trajectories)),
        Parser("trajectories.jsonl", corpus.trajectory_lines, in_file("trajectories.jsonl", trajectories)),
        Parser("convert eto", corpus.conversations, in_file("e.json", convert("eto"))),
        Parser("convert agentgym", corpus.conversations, in_file("g.json", convert("agentgym"))),
        Parser("convert rust", corpus.rust, in_file("r.json", convert("rust"))),
        Parser("builtin teacher, lint", corpus.trajectories, in_file("d.json", taught)),
        Parser("journal, report", corpus.journal, in_file("events.jsonl", journal)),
        Parser(
            "end of a journal", corpus.journal, in_file("events.jsonl", last_outcome), (KrillError, OSError)
        ),
        Parser("tokens", corpus.tokens, in_file("rl-1.jsonl", tokens)),
        Parser("teacher_replies.jsonl", corpus.teacher_replies, in_file("teacher_replies.jsonl", remembered)),
        Parser("replies of a policy", corpus.replies, decoded(acted), is_text=True),
        Parser(
            "replies of a teacher",
            corpus.taught,
            decoded(parse_teacher_reply),
            (KrillError, UnreadableReply),
            is_text=True,
        ),
        Parser("requests to the worker", corpus.requests, worker),
        Parser(
            "replies of the worker",
            corpus.worker_replies,
            lambda data, _: reply_adapter.validate_json(data),
            (KrillError, ValueError),
        ),
        Parser("game files", corpus.games, in_file("game.tw-pddl", load_game)),
        Parser("PDDL", corpus.pddl, decoded(parse_domain), is_text=True),
        Parser("PDDL expressions", corpus.expressions, decoded(parse_expression), is_text=True),
        Parser("text grammars", corpus.grammars, decoded(compile_grammar), is_text=True),
        Parser("shop files", corpus.products, products, (KrillError, ValueError, RecursionError)),
        Parser("pages of a shop", corpus.pages, decoded(read_site_page), is_text=True),
        Parser("observations", corpus.observations, observation, is_text=True),
        Parser("calls of serve-env", corpus.calls, served),
    ]


def fuzz(count: int, seed: int, only: str = "") -> dict[str, object]:
    """Feed every parser; returns what was tried and each kind of fault with the first input that shows it."""
    faults: dict[str, str] = {}
    tried: Counter[str] = Counter()
    slow: list[str] = []
    slowest = 0.0
    signal.signal(signal.SIGALRM, _hung)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        folder = Path(name)
        corpus = make_corpus(folder)
        for parser in parsers(corpus):
            if only not in parser.name:
                continue
            rng = random.Random(f"{seed}/{parser.name}")
            for _ in range(count):
                data = mutate(rng, parser.seeds)
                tried[parser.name] += 1
                _try(parser, data, folder, faults)
            if parser.is_text:
                for data in long_inputs(LENGTH):
                    began = time.perf_counter()
                    _try(parser, data, folder, faults)
                    seconds = time.perf_counter() - began
                    slowest = max(slowest, seconds)
                    if seconds > SECONDS:
                        slow.append(f"{parser.name}: {seconds:.2f} s for {data[:24]!r}…")
    return {
        "parsers": len(tried),
        "inputs": sum(tried.values()),
        f"slowest of {LENGTH:,} characters": f"{slowest * 1000:.0f} ms",
        "slow": slow,
        "faults": [f"{kind}: {example}" for kind, example in sorted(faults.items())],
    }


def _try(parser: Parser, data: bytes, folder: Path, faults: dict[str, str]) -> None:
    signal.setitimer(signal.ITIMER_REAL, HANG)
    try:
        parser.parse(data, folder)
    except Hung:
        faults.setdefault(f"{parser.name}: hangs", repr(data[:200]))
    except parser.refuses as error:
        message = str(error)
        if "\n" in message.strip() or "Traceback" in message:
            faults.setdefault(f"{parser.name}: a refusal of several lines", repr(data[:200]))
    except Exception as error:  # what this program looks for
        faults.setdefault(f"{parser.name}: {type(error).__name__}: {str(error)[:80]}", repr(data[:400]))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _hung(*_: object) -> None:
    raise Hung


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="inputs for each parser")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="parsers whose name holds this")
    parser.add_argument("--keep", action="store_true", help="write the result into docs/reliability.md")
    arguments = parser.parse_args()
    facts = fuzz(arguments.count, arguments.seed, arguments.only)
    show("Damaged and hostile inputs", facts, keep=arguments.keep)
    return 1 if facts["faults"] or facts["slow"] else 0


if __name__ == "__main__":
    sys.exit(main())
