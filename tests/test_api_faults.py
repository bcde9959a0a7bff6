"""Passing faults of model endpoints cost nothing: a short form of `benchmarks/reliability/api_faults.py`."""

from __future__ import annotations

from benchmarks.reliability import api_faults


async def test_of_many_episodes_and_questions_none_is_lost_doubled_or_failed() -> None:
    facts = await api_faults.run(24, seed=3, first_wait=0.001)
    assert facts.wrong == []
    assert (facts.episodes, facts.distilled) == (24, 24)
    assert facts.faults.total() > 10
