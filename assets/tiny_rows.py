"""Rows of krill-tiny's training: what of, how often, and as which tokens; and the words its tokenizer is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from tiny_drills import draw_drill, draw_memory, draw_order, draw_room, draw_sight, draw_tour
from tiny_episodes import LAST_ID, Example, Noise, Weights, draw_episode, draw_modes
from tiny_purchases import draw_purchase

from krill_tui.envs.alfworld.expert import usual_places
from krill_tui.envs.alfworld.text import STATION
from krill_tui.training.tiny import ASSISTANT

CONTEXT = 2048
TRAIN_HOUSEHOLDS = range(1_000_000, 2_000_000)
TRAIN_SHOPS = range(1_000_000, 1_000_040)
"""Each a catalogue of its own, kept in memory; the product's seeds are others."""
STEADY_NOISE = ((0.0, 0.5), (0.15, 0.3), (0.4, 0.2))
"""(share of vague steps, share of episodes) in stage `base`; the vague steps are no targets there."""
WEAK = Weights(vague_thought=1.0, vague_action=0.3)


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence: token ids, and the loss weight of each."""

    ids: list[int]
    weights: list[float]


@dataclass(frozen=True, slots=True)
class Mix:
    """Of what the rows are made."""

    drills: float
    """Share of the rows that are drills."""
    most: int = 14
    """Skills a drill lists at most."""
    sight: float = 0.0
    """Share of the drills that ask what one sees, not what a skill says."""
    rooms: float = 0.0
    """Share of the drills that ask where in a room one would go."""
    tours: float = 0.0
    """Share of the drills that ask where one has not been yet."""
    memory: float = 0.0
    """Share of the drills that ask where a thing was seen."""
    orders: float = 0.0
    """Share of the drills that ask in what order a thing is done."""
    ordered: float = 0.0
    """Share of the episodes in small worlds whose household has an order of its own."""
    observation: float = 0.1
    """Loss weight of what the world says."""
    full: float = 0.0
    """Share of the episodes that are of large worlds."""
    shop: float = 0.0
    """Share of the rows other than drills that are purchases."""
    weak: Mapping[str, float] | None = None
    """Stage `weak`: how often a beginner is vague."""
    shop_noise: float = 0.0
    """How often a beginner in a shop does any possible thing."""
    heed: float = 1.0
    """Share of the episodes in which the skills of the prompt are followed."""


class Encoder:
    """Conversations to rows, as the chat template renders them."""

    def __init__(self, tokenizer: Any) -> None:
        self._encode = tokenizer.backend_tokenizer.encode_batch
        self._think_end = tokenizer.convert_tokens_to_ids("</think>")
        self._assistant = tokenizer.convert_tokens_to_ids(ASSISTANT)

    def row(self, example: Example) -> Row:
        texts = [
            f"<|{m['role']}|>{m['content']}" + ("<|end|>" if m["role"] == "assistant" else "")
            for m in example.messages
        ]
        ids: list[int] = []
        weights: list[float] = []
        for encoding, (thought, action) in zip(
            self._encode(texts, add_special_tokens=False), example.weights, strict=True
        ):
            part = encoding.ids
            cut = part.index(self._think_end) + 1 if part[0] == self._assistant else len(part)
            ids += part
            weights += [0.0] + [thought] * (cut - 1) + [action] * (len(part) - cut)
        return Row(ids[:CONTEXT], weights[:CONTEXT])


def draw_batches(rng: Random, encoder: Encoder, tokens: int, count: int, mix: Mix) -> list[list[Row]]:
    """About `count` batches of rows of like length, of about `tokens` tokens each, in random order."""
    rows, total = [], 0
    while total < tokens * count:
        rows.append(draw_row(rng, encoder, mix))
        total += len(rows[-1].ids)
    rows.sort(key=lambda row: len(row.ids))
    batches: list[list[Row]] = [[]]
    for row in rows:
        if len(row.ids) * (len(batches[-1]) + 1) > tokens * 1.1 and batches[-1]:
            batches.append([])
        batches[-1].append(row)
    rng.shuffle(batches)
    return batches


def draw_row(rng: Random, encoder: Encoder, mix: Mix) -> Row:
    if rng.random() < mix.drills:
        shares = (mix.sight, mix.rooms, mix.tours, mix.memory, mix.orders)
        kinds: list[Callable[[Random], Example]] = [draw_sight, draw_room, draw_tour, draw_memory, draw_order]
        kinds.append(lambda rng: draw_drill(rng, mix.most))
        return encoder.row(rng.choices(kinds, (*shares, 1.0 - sum(shares)))[0](rng))
    if rng.random() < mix.shop:
        return encoder.row(draw_purchase(rng, TRAIN_SHOPS, mix.shop_noise))
    size = "full" if rng.random() < mix.full else "small"
    noise: Noise = (
        mix.weak or rng.choices([n for n, _ in STEADY_NOISE], [share for _, share in STEADY_NOISE])[0]
    )
    weights = replace(WEAK if mix.weak else Weights(), observation=mix.observation)
    ordered = size == "small" and rng.random() < mix.ordered
    return encoder.row(
        draw_episode(rng, TRAIN_HOUSEHOLDS, draw_modes(rng), noise, weights, size, mix.heed, ordered)
    )


def known_words() -> list[str]:
    """What is one token wherever it stands: keys of skills, heads and numbers of ids, numbers of things."""
    keys = [f"{key}:" for key in (*sorted(usual_places()), *STATION, "put", "look", "search")]
    heads = [f" [{tier}_" for tier in ("gen", "pick", "picktwo", "look", "clean", "heat", "cool")]
    numbers = [f"{n:03}" for n in range(1, LAST_ID + 1)]
    return [*keys, *heads, *numbers, *(f" {n}" for n in range(1, 31))]


def corpus(rng: Random, episodes: int = 600) -> list[str]:
    """What the tokenizer is trained on: episodes of each world, and every name in the forms of the format."""
    texts = []
    for number in range(episodes):
        size = "full" if number % 4 == 0 else "small"
        example = draw_episode(rng, TRAIN_HOUSEHOLDS, draw_modes(rng), 0.3, size=size)
        texts += [str(m["content"]) for m in example.messages]
    for _ in range(episodes // 6):
        texts += [str(m["content"]) for m in draw_purchase(rng, TRAIN_SHOPS).messages]
    places = {place for where in usual_places().values() for place in where}
    for thing in usual_places():
        texts += [f"{thing} you see a {thing} 1"] * 60
    texts += [f"go to {place} 1: {place}" for place in sorted(places)] * 60
    return texts
