"""What the fuzzer starts from, how it damages that, and the long inputs that quadratic parsers choke on."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from krill_tui.config.load import load_config, public_dict
from krill_tui.config.schema import KrillConfig
from krill_tui.engine.build import build_source
from krill_tui.engine.session import Session
from krill_tui.engine.tokens import TokenStore
from krill_tui.envs.base import TaskSource
from krill_tui.skills.formats.bank_writers import write_rust, write_skillrl
from krill_tui.skills.formats.banks import load_bank
from krill_tui.skills.formats.rust import to_rust
from krill_tui.skills.formats.trajectories import load_trajectories
from krill_tui.trajectory import EpisodeTokens
from tests.alfworld_games import PROBLEM, domain, grammar, newer_grammar, write_game
from tests.test_formats_foreign import HOUSE
from tests.test_webshop_files import item
from tests.webshop_site import Site

_EPISODES = 6
_SPLICES = (
    *(
        b"null",
        b"true",
        b"-0",
        b"1e308",
        b"-1e999",
        b"NaN",
        b"Infinity",
        b"9" * 5000,
        b"0.1e-400",
        b'""',
        b"[]",
        b"{}",
    ),
    *(
        b"\\ud800",
        b"\\udfff\\ud800",
        b"\xed\xa0\x80",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\x00",
        b"\\u0000",
        b"\x1b]0;t\x07",
    ),
    *(
        b"\x1b[2J",
        b"\xe2\x80\xae",
        b"\xe2\x80\xa8",
        b"\xf3\xa0\x81\x81",
        b"\r\n",
        b"\n",
        b"\t",
        b'"',
        b"\\",
        b"}",
        b"]",
    ),
    *(
        b"[" * 3000,
        b'{"a":' * 2000,
        b"(" * 3000,
        b"<",
        b"<think>",
        b"</think>",
        b"<action>",
        b"Action:",
        b"[SEP]",
        b"../",
    ),
    *(
        b"/etc/passwd",
        b"$(id)",
        b"{0}",
        b"%s%n",
        b"__proto__",
        b"A" * 3000,
        b"\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x92\xbb",
    ),
)


@dataclass(frozen=True)
class Corpus:
    """Valid inputs of every parser, made by the parts that write them."""

    source: TaskSource
    config: list[bytes]
    assignments: list[bytes]
    script: list[bytes]
    banks: list[bytes]
    own_bank: list[bytes]
    trajectories: list[bytes]
    trajectory_lines: list[bytes]
    conversations: list[bytes]
    rust: list[bytes]
    journal: list[bytes]
    tokens: list[bytes]
    teacher_replies: list[bytes]
    replies: list[bytes]
    taught: list[bytes]
    requests: list[bytes]
    worker_replies: list[bytes]
    games: list[bytes]
    pddl: list[bytes]
    expressions: list[bytes]
    grammars: list[bytes]
    products: list[bytes]
    pages: list[bytes]
    observations: list[bytes]
    calls: list[bytes]


def make_corpus(folder: Path) -> Corpus:
    """Play a short run in `folder` and gather what it and the writers of other formats leave."""
    os.environ["KRILL_RUNS"] = str(folder)
    config = load_config(
        overrides={
            "policy": {"kind": "expert"},
            "teacher": {"kind": "builtin"},
            "collect": {"episodes": _EPISODES},
            "evaluation": {"episodes": 2},
        },
        environ={},
    )
    run = asyncio.run(_play(config))
    own_bank = (run / "skill_bank.json").read_bytes()
    skills = load_bank(run / "skill_bank.json").skills
    write_rust(folder / "rust.json", skills)
    write_skillrl(folder / "skillrl.json", skills)
    lines = (run / "trajectories.jsonl").read_bytes()
    records = [json.loads(line) for line in lines.splitlines()]
    parsed = load_trajectories(run / "trajectories.jsonl")
    tokens = EpisodeTokens(
        ids=(1, 2, 3), mask=(0, 1, 1), logprobs=(0.0, -0.5, -1.5), allowed=((), (2, 3), (3,))
    )
    TokenStore(folder / "tokens").append("rl-1", "rl-0001-g0-0", tokens)
    said = {
        "key": "a" * 64,
        "text": '[{"name": "n", "principle": "p"}]',
        "prompt_tokens": 3,
        "completion_tokens": 4,
    }
    taught = [
        b'[{"name": "Look first", "principle": "mug: cabinet", "when_to_apply": "mugs", "category": "Pick"}]',
        b'Here they are:\n```json\n{"skills": [{"name": "n", "principle": "p", "refines": "gen_001"}]}\n```\nGood luck.',
        b"[{'name': 'n', 'principle': 'p',}, {'name': 'm', 'princ",
    ]
    observations = [step["observation"].encode() for record in records for step in record["steps"][:3]]
    shop = b"WebShop [SEP] Instruction: [SEP] i need red shoes, size 9, and price lower than 30.00 dollars [SEP] Search"
    page = b"[SEP] Back to Search [SEP] Page 1 (Total results: 2) [SEP] B0001 [SEP] Red shoes [SEP] $10.0 to $12.5 [SEP] Next >"
    game = write_game(folder).read_bytes()
    return Corpus(
        source=build_source(config),
        config=[
            json.dumps(public_dict(config)).encode(),
            b'{"rl": {"group_size": 4}, "env": {"name": "webshop"}}',
        ],
        assignments=[
            b"rl.group_size=8",
            b"env.max_steps=3",
            b'policy.model="x"',
            b"rl.scale_rewards=true",
            b"a.b.c=1",
        ],
        script=[b'"look"\n"go to cabinet 1"\n\n"open cabinet 1"\n'],
        banks=[
            own_bank,
            *((folder / name).read_bytes() for name in ("rust.json", "skillrl.json")),
            _plain_bank(),
        ],
        own_bank=[own_bank],
        trajectories=[json.dumps(records).encode()],
        trajectory_lines=[lines],
        conversations=[
            json.dumps([HOUSE]).encode(),
            json.dumps([{**HOUSE, "id": "x", "reward": 1.0}]).encode(),
        ],
        rust=[json.dumps([to_rust(t) for t in parsed]).encode()],
        journal=[(run / "events.jsonl").read_bytes()],
        tokens=[(folder / "tokens" / "rl-1.jsonl").read_bytes()],
        teacher_replies=[(json.dumps(said) + "\n").encode() * 3],
        replies=[
            b"<think>the mug is in cabinet 1 [gen_001]</think><action>go to cabinet 1</action>",
            b"Thought: it may be there.\nAction: go to shelf 1",
            b"<think>a</think> **Action:** `look`",
        ],
        taught=taught,
        requests=[
            b'{"kind": "sample", "items": [{"episode": "a", "messages": [{"role": "user", "content": "x"}], "seed": 1}]}',
            b'{"kind": "finish", "episodes": ["a"]}',
            b'{"kind": "decode", "ids": [1, 2]}',
        ],
        worker_replies=[
            b'{"kind": "ok"}',
            b'{"kind": "text", "text": "a"}',
            b'{"kind": "error", "message": "m"}',
        ],
        games=[game],
        pddl=[domain().encode()],
        expressions=[PROBLEM.encode(), b"(and (at ?a - agent loc_1) (not (holds ?a ?o)))"],
        grammars=[grammar().encode(), newer_grammar().encode()],
        products=[json.dumps([item(), item(asin="B000000002")]).encode()],
        pages=_pages(),
        observations=[*observations[:12], shop, page],
        calls=[
            b'{"task_id": "builtin/train/0/1", "session_id": "s"}',
            b'{"action": "look", "session_id": "s"}',
            b'{"id": 0, "game": 1, "world_type": "Text"}',
            b'{"env_idx": 0, "action": "search[shoes]"}',
        ],
    )


async def _play(config: KrillConfig) -> Path:
    session = await Session.open("corpus", config)
    try:
        session.launch(["collect", "distill", "evaluate"])
        await session.wait()
        return session.store.path
    finally:
        await session.close()


def _plain_bank() -> bytes:
    return json.dumps(
        [{"title": "Look first", "content": "Mugs are in cabinets.", "category": "Pick"}]
    ).encode()


def _pages() -> list[bytes]:
    site = Site(seed=0, size=50)
    search = site.answer("GET", "/fixed_0", "")[2]
    site.answer("POST", "/fixed_0", "search_query=red+shoes")
    results = site.answer("GET", "/fixed_0/results", "")[2]
    return [search.encode(), results.encode()]


def mutate(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """One of `seeds` with one to five faults put into it."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 5)):
        place = rng.randrange(len(data) + 1)
        match rng.randrange(9):
            case 0:  # a flipped bit
                if data:
                    data[min(place, len(data) - 1)] ^= 1 << rng.randrange(8)
            case 1:  # cut off
                del data[place:]
            case 2:  # a stretch lost
                del data[place : place + rng.randint(1, 40)]
            case 3:  # a stretch doubled
                data[place:place] = data[place : place + rng.randint(1, 200)]
            case 4:  # random bytes
                data[place:place] = rng.randbytes(rng.randint(1, 8))
            case 5 | 6:  # what does not belong there
                data[place:place] = rng.choice(_SPLICES)
            case 7:  # a value replaced
                end = data.find(b",", place)
                data[place : end if end > 0 else place + 10] = rng.choice(_SPLICES)
            case _:  # a piece of another input
                other = rng.choice(seeds)
                begin = rng.randrange(len(other) + 1)
                data[place:place] = other[begin : begin + rng.randint(1, 300)]
    return bytes(data)


_REPEATED = (
    *(
        "a",
        " ",
        "\n",
        "\t",
        "\r\n",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "<",
        ">",
        '"',
        "'",
        "\\",
        "`",
        "*",
        "-",
        "0",
        "\x1b[",
    ),
    *(
        "<think>",
        "</think>",
        "<think></think>",
        "<action>",
        "</action>",
        "<action></action>",
        "<action> ",
        "Action:",
    ),
    *(
        "Action: ",
        "Action: a\n",
        "\nAction:\n",
        "Thought:",
        "Thought: a\n",
        "**Action:** ",
        "[gen_001]",
        "[a",
        "[{",
        "]}",
    ),
    *(
        '{"',
        '{"a":',
        '"a",',
        "[[",
        "[{},",
        "```",
        "```json\n",
        "<a ",
        "<a href=",
        "<!--",
        "-->",
        "<div>",
        "<!",
        "</",
        "&",
    ),
    *(
        "<input ",
        "<button",
        "<h4>",
        "[SEP]",
        " [SEP] ",
        "you see a mug 1, ",
        "a mug 1, ",
        "On the ",
        "put a ",
        "go to ",
    ),
    *(
        "$1",
        "$1.0 to ",
        "price lower than ",
        "(and ",
        "(not ",
        "(?a - b) ",
        ";",
        "; a\n",
        "é",
        "\ud800",
        "\U0001f469",
    ),
)


def long_inputs(length: int) -> list[bytes]:
    """Inputs of `length` characters: each thing that grammars repeat, alone, opened, and between two words."""
    found = []
    for part in _REPEATED:
        body = (part * (length // len(part) + 1))[:length]
        for text in (body, f"Action: a{body}b", f"<think>{body}", f"[{{{body}"):
            found.append(text[:length].encode("utf-8", "replace"))
    return found
