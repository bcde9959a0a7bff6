"""Success rates with intervals, and what is counted in them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from krill_tui.events.schema import Rate
from krill_tui.trajectory import StopReason, Trajectory

Z_95 = 1.959964
"""Two-sided 95 % quantile of the normal distribution."""


def wilson(wins: int, episodes: int, z: float = Z_95) -> Rate:
    """A rate with its Wilson score interval (Wilson 1927); of no episodes: the whole of [0, 1]."""
    if episodes == 0:
        return Rate(wins=0, episodes=0, low=0.0, high=1.0)
    p = wins / episodes
    scale = 1 + z * z / episodes
    centre = (p + z * z / (2 * episodes)) / scale
    spread = z * math.sqrt(p * (1 - p) / episodes + z * z / (4 * episodes**2)) / scale
    return Rate(wins=wins, episodes=episodes, low=max(0.0, centre - spread), high=min(1.0, centre + spread))


def success_rates(trajectories: Iterable[Trajectory]) -> tuple[Rate, dict[str, Rate]]:
    """Over all and by category; an episode that broke counts as lost, a cancelled one not at all."""
    counts: dict[str, list[int]] = {}
    for trajectory in trajectories:
        if trajectory.stop_reason is StopReason.CANCELLED:
            continue
        tally = counts.setdefault(trajectory.category or "?", [0, 0])
        tally[0] += trajectory.success
        tally[1] += 1
    overall = wilson(sum(w for w, _ in counts.values()), sum(n for _, n in counts.values()))
    return overall, {category: wilson(*counts[category]) for category in sorted(counts)}


def mean_steps(trajectories: Sequence[Trajectory]) -> float:
    """Steps of the episodes that were won; 0 where none was."""
    won = [len(t.steps) for t in trajectories if t.success]
    return sum(won) / len(won) if won else 0.0
