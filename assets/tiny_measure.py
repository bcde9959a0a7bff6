"""Tests of krill-tiny on households it was not trained on: step by step, and whole episodes."""

from __future__ import annotations

import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

import torch
from tiny_drills import draw_drill, draw_memory, draw_order, draw_room, draw_sight, draw_tour
from tiny_episodes import (
    COMPACT,
    VAGUE,
    Example,
    Prompted,
    SkillMode,
    draw_episode,
    draw_skills,
    draw_world,
    stations_of,
)
from tiny_orders import ORDERED_CATEGORIES, OrderedGame, orders_of

from krill_tui.agent.actions import parse_reply
from krill_tui.agent.prompts import first_messages, render_turn
from krill_tui.envs.alfworld.engine import AlfworldGame
from krill_tui.envs.alfworld.text import CATEGORIES
from krill_tui.envs.alfworld.worlds import WorldSize
from krill_tui.envs.base import StepResult
from krill_tui.models.base import Message
from krill_tui.models.worker_protocol import ChatMessage, SampleItem
from krill_tui.training.loading import load_model
from krill_tui.training.model import ModelSettings
from krill_tui.training.sampler import Sampler
from krill_tui.training.sft import sft_step, tokenize_demonstration
from krill_tui.training.trainer import Trainer
from krill_tui.trajectory import Task

STEP_LIMIT = 25


def asked(mode: SkillMode) -> Prompted:
    """Places and stations alike; about a station nothing irrelevant can be said."""
    return Prompted(mode, "none" if mode == "irrelevant" else mode)


@torch.no_grad()
def diagnose(model: Any, tokenizer: Any, households: range, episodes: int) -> dict[str, list[float]]:
    """Teacher-forced greedy accuracy by kind of step: [n, thought exact, action exact].

    Kinds: lookup, search, take, transform, put; with right skills, `none/...` without any, `drill/...` in drills of
    lookups, `sight/...` in drills of looks: what is in sight is taken, what is not is looked for; `room/...`, `tour/...`,
    `memory/...` and `order/...` in those drills; `memory/recall` goes back to where a thing was seen. A lookup's
    `lookup/key`, `/value` and `/id` are the first, second and the number's token of the thought.
    """
    model.eval()
    counts: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    rng = Random("diagnose")
    sources: list[tuple[str, int, Callable[[], Example]]] = [
        ("", episodes, lambda: draw_episode(rng, households, asked("right"), 0.0)),
        ("none/", episodes, lambda: draw_episode(rng, households, asked("none"), 0.0)),
        ("drill/", episodes // 4, lambda: draw_drill(rng)),
        ("sight/", episodes // 4, lambda: draw_sight(rng)),
        ("room/", episodes // 4, lambda: draw_room(rng)),
        ("tour/", episodes // 4, lambda: draw_tour(rng)),
        ("memory/", episodes // 4, lambda: draw_memory(rng)),
        ("order/", episodes // 4, lambda: draw_order(rng)),
    ]
    for prefix, count, draw in sources:
        for _ in range(count):
            for kind, thought, action in _hits(model, tokenizer, draw()):
                entry = counts[prefix + kind]
                entry[0] += 1
                entry[1] += all(thought)
                entry[2] += all(action)
                for name, at in (("key", 1), ("value", 2), ("id", 4)) if kind == "lookup" else ():
                    part = counts[f"{prefix}lookup/{name}"]
                    part[0] += 1
                    part[1] += at < len(thought) and thought[at]
    model.train()
    return {kind: [n, round(t / n, 3), round(a / n, 3)] for kind, (n, t, a) in sorted(counts.items())}


def _hits(model: Any, tokenizer: Any, example: Example) -> list[tuple[str, list[bool], list[bool]]]:
    """For each expert reply: its kind, and which tokens of thought and action are the most likely ones."""
    ids: list[int] = []
    spans: list[tuple[str, int, int, int]] = []
    think_end = tokenizer.convert_tokens_to_ids("</think>")
    for message, kind in zip(example.messages, example.kinds, strict=True):
        end = "<|end|>" if message["role"] == "assistant" else ""
        part = tokenizer.encode(f"<|{message['role']}|>{message['content']}{end}", add_special_tokens=False)
        if kind:
            cut = part.index(think_end) + 1
            spans.append((kind, len(ids) + 1, len(ids) + cut, len(ids) + len(part)))
        ids += part
    tokens = torch.tensor([ids], device=model.device)
    best = model(input_ids=tokens, use_cache=False).logits[0, :-1].argmax(-1)
    right = [False, *(best == tokens[0, 1:]).tolist()]
    return [(kind, right[a:b], right[b:c]) for kind, a, b, c in spans]


@dataclass(slots=True)
class Played:
    """One episode of the model under test."""

    game: AlfworldGame
    task: Task
    result: StepResult
    new: list[Message]
    steps: int = 0
    invalid: int = 0
    unparsed: int = 0
    cited: int = 0
    vague: int = 0
    over: bool = False


@dataclass(slots=True)
class Tally:
    """Sums over episodes."""

    won: int = 0
    episodes: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    by_category: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))

    def facts(self) -> dict[str, object]:
        low, high = wilson(self.won, self.episodes)
        steps = self.counts["steps"]
        return {
            "success": round(100 * self.won / self.episodes, 1),
            "wilson": [round(100 * low, 1), round(100 * high, 1)],
            "n": self.episodes,
            "steps": round(steps / self.episodes, 1),
            **{
                name: round(self.counts[name] / steps, 3)
                for name in ("invalid", "unparsed", "cited", "vague")
            },
            "by_category": {name: tuple(pair) for name, pair in sorted(self.by_category.items())},
        }


def wilson(won: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share."""
    share, square = won / n, z * z / n
    middle = share + square / 2
    spread = z * math.sqrt(share * (1 - share) / n + square / (4 * n))
    return (middle - spread) / (1 + square), (middle + spread) / (1 + square)


def play(
    sampler: Sampler,
    households: range,
    mode: SkillMode,
    episodes: int,
    *,
    split: str = "valid",
    size: WorldSize = "small",
    temperature: float = 1.0,
    constrained: bool = True,
    limit: int = STEP_LIMIT,
    order: Literal["", "right", "wrong"] = "",
) -> dict[str, object]:
    """Success and habits of the sampler's model over fresh worlds, the same ones for the same arguments.

    `order`: of households with an order of their own, in the categories where that matters; what the skills say of
    it is right or wrong (where they say something, see `mode`).
    """
    rng = Random(f"play/{split}")
    live: list[Played] = []
    for _ in range(episodes):
        categories = ORDERED_CATEGORIES if order else CATEGORIES
        habits, world, task = draw_world(rng, households, split, size, categories)
        inner = Random(rng.random())
        orders = orders_of(habits.seed) if order else None
        told = orders.other() if orders and order == "wrong" else orders
        skills = draw_skills(inner, asked(mode), habits, stations_of(habits, size), task, told)
        game = OrderedGame(world, orders) if orders else AlfworldGame(world)
        result = game.reset()
        live.append(Played(game, task, result, first_messages("alfworld", skills, result, task, COMPACT)))
    everyone = list(live)
    for _ in range(limit):
        items = [
            SampleItem(
                episode=f"{id(p)}",
                messages=tuple(ChatMessage(role=m["role"], content=m["content"]) for m in p.new),
                admissible=p.result.admissible,
                constrained=constrained,
                temperature=temperature,
                max_tokens=48,
                seed=number,
            )
            for number, p in enumerate(everyone)
            if not p.over
        ]
        for p, output in zip([p for p in everyone if not p.over], sampler.sample(items), strict=True):
            _advance(p, output.text)
        if all(p.over for p in everyone):
            break
    sampler.finish([f"{id(p)}" for p in everyone])
    return _tally(everyone).facts()


def _advance(p: Played, text: str) -> None:
    reply = parse_reply(text)
    p.steps += 1
    p.unparsed += not reply.action
    p.invalid += reply.action not in p.result.admissible
    p.cited += "[" in reply.thought
    p.vague += reply.thought in VAGUE
    p.result = p.game.step(reply.action)
    p.over = p.result.done
    p.new = [{"role": "user", "content": render_turn(p.result, p.task, COMPACT, first=False)}]


def _tally(played: Sequence[Played]) -> Tally:
    tally = Tally()
    for p in played:
        tally.episodes += 1
        tally.won += p.result.won
        tally.by_category[p.task.category][0] += p.result.won
        tally.by_category[p.task.category][1] += 1
        for name in ("steps", "invalid", "unparsed", "cited", "vague"):
            tally.counts[name] += getattr(p, name)
    return tally


def fine_tune(
    trainer: Trainer, households: range, examples: int, *, epochs: int = 2, rate: float = 2e-3
) -> float:
    """LoRA SFT on expert episodes that follow right skills, as the product does it; seconds it took."""
    rng = Random("sft")
    rows = [
        tokenize_demonstration(trainer, example.messages)
        for example in (draw_episode(rng, households, asked("right"), 0.0) for _ in range(examples))
        if example.won
    ]
    started = time.perf_counter()
    total = epochs * -(-len(rows) // 16)
    step = 0
    for _ in range(epochs):
        rng.shuffle(rows)
        for at in range(0, len(rows), 16):
            learning_rate = rate * min((step + 1) / max(1, total // 20), 1.0 - 0.9 * step / total)
            facts = sft_step(trainer, rows[at : at + 16], learning_rate=learning_rate)
            step += 1
            if step % 8 == 0:
                print(json.dumps({"sft": step, "loss": round(facts["loss"], 4)}), flush=True)
    return time.perf_counter() - started


def gates(folder: str, households: range, episodes: int) -> None:
    """Print, as JSON lines, what the model card's gates ask for: success in small and large worlds, and with orders."""
    sampler = Sampler(load_model(folder, ModelSettings()))
    small: dict[str, Any] = {"size": "small", "limit": 14, "temperature": 0.0, "constrained": True}
    asks: list[tuple[SkillMode, dict[str, Any]]] = [
        *((mode, small) for mode in ("right", "none", "irrelevant", "wrong")),
        *(("right", {**small, "constrained": False, "temperature": t}) for t in (0.0, 1.0)),
        *((mode, {**small, "size": "full", "limit": 40}) for mode in ("right", "none")),
        *(("right", {**small, "order": order}) for order in ("right", "wrong")),
        ("none", {**small, "order": "right"}),
    ]
    for mode, options in asks:
        facts = play(sampler, households, mode, episodes, **options)
        print(json.dumps({"skills": mode, **options, **facts}), flush=True)


def measure(folder: str, households: range, episodes: int, seed: int, *, examples: int = 256) -> None:
    """Print, as JSON lines, success with right, wrong, irrelevant and no skills, before and after SFT in one household."""
    policy = load_model(folder, ModelSettings(seed=seed))
    sampler = Sampler(policy)
    one = households[seed : seed + 1]

    def report(name: str, where: range, mode: SkillMode, **options: Any) -> None:
        started = time.perf_counter()
        facts = play(sampler, where, mode, episodes, **options)
        seconds = round(time.perf_counter() - started, 1)
        print(json.dumps({"what": name, "skills": mode, **options, **facts, "seconds": seconds}), flush=True)

    for mode in ("right", "none", "wrong", "irrelevant"):
        report("base, new households", households, mode)
    report("base, new households", households, "right", temperature=0.0)
    report("base, new households", households, "right", constrained=False)
    trainer = Trainer(policy)
    print(json.dumps({"sft_seconds": round(fine_tune(trainer, one, examples), 1)}), flush=True)
    sampler.refresh()
    for mode in ("right", "none", "wrong"):
        report("after SFT, the same household", one, mode)
    report("after SFT, the same household", one, "right", temperature=0.0)
    report("after SFT, new households", households, "right")
    report("after SFT, new households", households, "right", temperature=0.0)
