"""Policy, teacher and embeddings against a server that deviates in some two hundred ways, over real HTTP."""

from __future__ import annotations

import pytest

from benchmarks.reliability.endpoints import run
from tests.deviating_endpoint import DEVIATIONS, KEY, Deviation
from tests.deviating_play import CALLERS, Caller


@pytest.mark.parametrize("caller", CALLERS)
async def test_every_deviation_comes_to_what_it_should(caller: Caller) -> None:
    facts = await run(DEVIATIONS, [caller], at_once=24)
    assert facts.wrong == {}
    assert facts.tried >= (100 if caller != "embeddings" else 90)
    assert facts.keys == {KEY}


async def test_a_wrong_expectation_is_found() -> None:
    fine = next(deviation for deviation in DEVIATIONS if deviation.name == "reasoning")
    broken = Deviation(fine.name, fine.act, "context", "error:never")
    facts = await run([broken], ["policy", "teacher"], at_once=1)
    assert facts.wrong.keys() == {"policy: reasoning", "teacher: reasoning"}
