"""How AgentGym numbers its games: by one integer, in ranges that belong to splits.

Household games: 0 to 2419 train, 2420 to 2619 test. Shopping goals: the ranges of the original's baseline, within the
6,910 goals of the small data set.
"""

from __future__ import annotations

from collections.abc import Mapping

GAME_RANGES: Mapping[str, Mapping[str, range]] = {
    "alfworld": {"train": range(2420), "test": range(2420, 2620)},
    "webshop": {"test": range(500), "valid": range(500, 1500), "train": range(1500, 6910)},
}
"""World -> split -> numbers of its games."""


def split_and_position(env: str, number: int) -> tuple[str, int] | None:
    """The split a number lies in and the position within it; None where the number is out of range."""
    for split, numbers in GAME_RANGES[env].items():
        if number in numbers:
            return split, number - numbers.start
    return None
