"""Evaluation plays each game the same, however many are played at once: greedy, and sampled with a seed per episode."""

from __future__ import annotations

import pytest

from krill_tui.agent.prompts import PromptOptions
from krill_tui.agent.rollout import Rollout
from krill_tui.models.base import Sampling
from krill_tui.paths import asset
from krill_tui.training.loading import load_model
from krill_tui.training.model import ModelSettings
from tests.in_process import play_household

PROMPT = PromptOptions(style="compact", list_admissible=False)
GAMES_AT = {140: 140, 7: 28, 1: 8}
"""Concurrency -> games: the first of the same 140."""


def _told(rollout: Rollout) -> tuple[list[str], bool]:
    assert rollout.trajectory.error is None
    return [step.text for step in rollout.trajectory.steps], rollout.trajectory.success


@pytest.mark.slow
@pytest.mark.parametrize(("temperature", "constrained"), [(0.0, False), (1.0, True)])
async def test_each_game_is_played_the_same_at_any_concurrency(temperature: float, constrained: bool) -> None:
    policy = load_model(str(asset("krill-tiny")), ModelSettings())
    sampling = Sampling(temperature=temperature, max_tokens=48, constrained=constrained)
    played: dict[int, list[tuple[list[str], bool]]] = {}
    for concurrency, games in GAMES_AT.items():
        rollouts, batches = await play_household(
            policy, games, concurrency=concurrency, sampling=sampling, prompt=PROMPT, max_steps=6
        )
        assert max(batches) == concurrency
        played[concurrency] = [_told(rollout) for rollout in rollouts]
    assert len({tuple(texts) for texts, _ in played[140]}) > 40
    assert played[7] == played[140][: GAMES_AT[7]]
    assert played[1] == played[140][: GAMES_AT[1]]
