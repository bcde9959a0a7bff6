"""What GRPO learns from: episodes, their returns and their advantages."""

from __future__ import annotations

import pytest

from krill_tui.config.schema import RlConfig
from krill_tui.engine.reinforce import to_learn_from
from krill_tui.trajectory import EpisodeTokens, StopReason
from tests.episodes import episode

GROUPS = [
    [episode("a", success=True), episode("b", success=False)],
    [episode("c", success=False, stop=StopReason.FAILURE), episode("d", success=False)],
    [episode("e", success=True), episode("f", success=True)],
]
RETURNS = [[t.total_reward for t in group] for group in GROUPS]
TOKENS = {
    t.id: EpisodeTokens(ids=(1, 2, 3), mask=(0, 1, 1), logprobs=(0.0, -1.0, -1.0)) for g in GROUPS for t in g
}


def test_groups_keep_their_order_and_get_their_advantages() -> None:
    learned = to_learn_from(GROUPS, RETURNS, TOKENS, RlConfig(scale_rewards="none"))
    assert [e.advantage for e in learned] == [0.5, -0.5, 0.0, 0.0, 0.0, 0.0]
    scaled = [
        [e.advantage for e in to_learn_from(GROUPS, RETURNS, TOKENS, RlConfig(scale_rewards=scaling))]
        for scaling in ("group", "batch")
    ]
    # The unbiased deviation of (1, 0), and that of (1, 0, 0, 0, 1, 1).
    assert scaled[0][:2] == pytest.approx([0.5 / (0.5**0.5 + 1e-4), -0.5 / (0.5**0.5 + 1e-4)])
    assert scaled[1][:2] == pytest.approx([0.5 / (0.3**0.5 + 1e-4), -0.5 / (0.3**0.5 + 1e-4)])


def test_episodes_that_a_limit_cut_may_be_left_out_of_the_loss() -> None:
    kept = to_learn_from(GROUPS, RETURNS, TOKENS, RlConfig())
    masked = to_learn_from(GROUPS, RETURNS, TOKENS, RlConfig(mask_truncated_completions=True))
    assert [any(e.tokens.mask) for e in kept] == [True] * 6
    assert [any(e.tokens.mask) for e in masked] == [True, False, True, False, True, True]
    assert [e.advantage for e in masked] == [e.advantage for e in kept]
