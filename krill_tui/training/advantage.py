"""GRPO's group-relative advantages. Pure numpy, so that the engine may import it without torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

ScaleRewards = Literal["group", "none"]
_STD_EPSILON = 1e-4
"""Added to the standard deviation, as TRL does."""


def group_advantages(returns: Sequence[float], scale_rewards: ScaleRewards = "group") -> np.ndarray:
    """Advantages of the episodes of one group (the paper's Eq. 9; DESIGN section 9).

    `returns`: `[G]`, one number per episode. Gives float64 `[G]`: `(R - mean) / (std + 1e-4)` with the unbiased
    standard deviation, or `R - mean` for `scale_rewards="none"` (Dr. GRPO). A group without spread, a group of one
    included, gets exactly 0.
    """
    rewards = np.asarray(returns, dtype=np.float64)
    if rewards.size == 0 or rewards.min() == rewards.max():
        return np.zeros_like(rewards)
    centred = rewards - rewards.mean()
    if scale_rewards == "none":
        return centred
    return centred / (rewards.std(ddof=1) + _STD_EPSILON)
