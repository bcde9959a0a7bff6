"""GRPO's group-relative advantages. Pure numpy, so that the engine may import it without torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

ScaleRewards = Literal["group", "batch", "none"]
_STD_EPSILON = 1e-4
"""Added to the standard deviation, as TRL does."""


def group_advantages(returns: Sequence[float], scale_rewards: ScaleRewards = "group") -> np.ndarray:
    """Advantages of the episodes of one group, a batch of its own; see `batch_advantages`."""
    return batch_advantages([returns], scale_rewards)[0]


def batch_advantages(
    groups: Sequence[Sequence[float]], scale_rewards: ScaleRewards = "group"
) -> list[np.ndarray]:
    """Advantages of the episodes of a batch of groups (the paper's Eq. 9; DESIGN section 9).

    `groups`: for each group `[G]` returns, one number per episode. Gives float64 `[G]` for each: `R - mean` of its
    group, divided by (std + 1e-4). The unbiased standard deviation is the group's, or that of all returns for
    `scale_rewards="batch"`; `none` does not divide (Dr. GRPO). A group without spread, a group of one included, gets
    exactly 0.
    """
    batch = np.array([value for group in groups for value in group], dtype=np.float64)
    advantages = []
    for group in groups:
        returns = np.asarray(group, dtype=np.float64)
        if returns.size == 0 or returns.min() == returns.max():
            advantages.append(np.zeros_like(returns))
            continue
        centred = returns - returns.mean()
        if scale_rewards != "none":
            spread = returns if scale_rewards == "group" else batch
            centred = centred / (spread.std(ddof=1) + _STD_EPSILON)
        advantages.append(centred)
    return advantages
