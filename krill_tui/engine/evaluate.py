"""Success rates with intervals, and what is counted in them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from krill_tui.events.schema import Rate
from krill_tui.trajectory import StopReason, Trajectory

Z_95 = 1.959964
"""Two-sided 95 % quantile of the normal distribution."""
UNKNOWN = "?"
"""The category of an episode whose world never said one."""


def wilson(wins: int, episodes: int, z: float = Z_95, *, errors: int = 0) -> Rate:
    """A rate with its Wilson score interval (Wilson 1927); of no episodes: the whole of [0, 1]."""
    if episodes == 0:
        return Rate(wins=0, episodes=0, low=0.0, high=1.0, errors=errors)
    p = wins / episodes
    scale = 1 + z * z / episodes
    centre = (p + z * z / (2 * episodes)) / scale
    spread = z * math.sqrt(p * (1 - p) / episodes + z * z / (4 * episodes**2)) / scale
    low, high = max(0.0, centre - spread), min(1.0, centre + spread)
    return Rate(wins=wins, episodes=episodes, low=low, high=high, errors=errors)


def newcombe_paired(both: int, first: int, second: int, neither: int) -> tuple[float, float, float]:
    """Difference of two success rates on the same games, with its 95 % interval: (difference, low, high).

    Method 10 of Newcombe 1998 (Statistics in Medicine 17:2635): Wilson limits of either rate, combined with the
    correlation of the pairs. `first` counts the games that only the first one won, `second` those of the other.
    """
    n = both + first + second + neither
    if n == 0:
        return 0.0, -1.0, 1.0
    one, other = wilson(both + first, n), wilson(both + second, n)
    agreement = both * neither - first * second
    if agreement > 0:  # continuity correction
        agreement = max(agreement - n / 2, 0)
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    phi = agreement / math.sqrt(margins) if margins else 0.0
    below = (one.rate - one.low, other.high - other.rate)
    above = (one.high - one.rate, other.rate - other.low)
    difference = (first - second) / n
    low, high = (math.sqrt(max(0.0, u * u - 2 * phi * u * v + v * v)) for u, v in (below, above))
    return difference, difference - low, difference + high


def mcnemar_exact(first: int, second: int) -> float:
    """Two-sided p of McNemar's exact test: are the games that only one of two won split by a fair coin?"""
    n = first + second
    tail = sum(math.comb(n, k) for k in range(min(first, second) + 1))
    return min(1.0, 2 * tail / 2**n)


def success_rates(trajectories: Iterable[Trajectory]) -> tuple[Rate, dict[str, Rate]]:
    """Over all and by category: the one definition of a success rate.

    It is of the episodes that were played to an end. Those that broke are counted beside it (`Rate.errors`), those that
    a person stopped nowhere.
    """
    counts: dict[str, list[int]] = {}
    for trajectory in trajectories:
        if trajectory.stop_reason is StopReason.CANCELLED:
            continue
        tally = counts.setdefault(trajectory.category or UNKNOWN, [0, 0, 0])
        if trajectory.stop_reason is StopReason.ERROR:
            tally[2] += 1
        else:
            tally[0] += trajectory.success
            tally[1] += 1
    wins, played, errors = (sum(tally[i] for tally in counts.values()) for i in range(3))
    by_category = {c: wilson(*counts[c][:2], errors=counts[c][2]) for c in sorted(counts)}
    return wilson(wins, played, errors=errors), by_category


def first_error(trajectories: Iterable[Trajectory]) -> str:
    """Why the first of them broke that did; empty where none did."""
    return next((t.error or "no reason" for t in trajectories if t.stop_reason is StopReason.ERROR), "")


def broke(rate: Rate, reason: str = "") -> str:
    """`3 of 40 broke: no connection; counted as lost: 71.2 %`; empty where none broke."""
    if not rate.errors:
        return ""
    why = f": {reason}" if reason else ""
    return f"{rate.errors} of {rate.episodes + rate.errors} broke{why}; counted as lost: {rate.if_lost:.1%}"


def mean_steps(trajectories: Sequence[Trajectory]) -> float:
    """Steps of the episodes that were won; 0 where none was."""
    won = [len(t.steps) for t in trajectories if t.success]
    return sum(won) / len(won) if won else 0.0
