"""Readable names for new runs."""

from __future__ import annotations

import itertools
import random
from collections.abc import Container

_QUALITIES = [
    "amber",
    "bold",
    "brave",
    "bright",
    "brisk",
    "calm",
    "clear",
    "clever",
    "coral",
    "cosmic",
    "deft",
    "eager",
    "early",
    "fleet",
    "gentle",
    "glad",
    "golden",
    "keen",
    "kind",
    "lively",
    "lucid",
    "lunar",
    "merry",
    "mild",
    "misty",
    "noble",
    "patient",
    "polar",
    "proud",
    "quick",
    "quiet",
    "rapid",
    "ready",
    "silent",
    "silver",
    "smart",
    "solar",
    "sound",
    "steady",
    "still",
    "sunny",
    "swift",
    "tidal",
    "vivid",
    "warm",
    "wild",
    "wise",
    "witty",
]
_ANIMALS = [
    "auk",
    "beaver",
    "bison",
    "cod",
    "crab",
    "crane",
    "dolphin",
    "eel",
    "egret",
    "falcon",
    "finch",
    "fox",
    "gannet",
    "gull",
    "hare",
    "heron",
    "ibis",
    "jay",
    "kestrel",
    "lark",
    "lynx",
    "marten",
    "mink",
    "moth",
    "newt",
    "orca",
    "osprey",
    "otter",
    "owl",
    "petrel",
    "pike",
    "plover",
    "prawn",
    "puffin",
    "quail",
    "raven",
    "salmon",
    "seal",
    "shrimp",
    "skua",
    "squid",
    "stoat",
    "swan",
    "tern",
    "trout",
    "turtle",
    "vole",
    "whale",
    "wren",
]


def fresh_name(taken: Container[str]) -> str:
    """A name such as `swift-otter` that no run has; drawn by chance, for it decides nothing."""
    chance = random.SystemRandom()
    for number in itertools.count(1):
        name = f"{chance.choice(_QUALITIES)}-{chance.choice(_ANIMALS)}"
        if number > 20:
            name = f"{name}-{number}"
        if name not in taken:
            return name
    raise AssertionError("unreachable")
