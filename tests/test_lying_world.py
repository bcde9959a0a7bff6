"""Episodes on servers that lie, hang, die and flood."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from benchmarks.reliability.environments import measure
from krill_tui.envs.remote import HttpSource
from krill_tui.errors import EnvironmentFailure
from tests.lying_world import HONEST, faults, lying


def test_there_are_at_least_a_hundred_faults_of_each_protocol() -> None:
    assert min(len(faults(*kind)) for kind in HONEST) >= 100


@pytest.mark.parametrize("seed", [1, 2])
async def test_every_episode_ends_in_one_clean_line_without_a_win(seed: int) -> None:
    """The short form of the figure in docs/reliability.md."""
    facts = await measure(30, seed)
    assert facts["faults"] == []


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("nothing", "unreachable"),
        ("reset", "unreachable"),
        ("hang", "unreachable"),
        ("hang in the body", "unreachable"),
        ("half a head", "unreachable"),
        ("status 502", "unreachable"),
        ("status 503", "unreachable"),
        ("status 504", "unreachable"),
        ("status 429", "unreachable"),
        ("status 401", "permanent"),
        ("status 403", "permanent"),
        ("status 500", ""),
        ("status 404", ""),
        ("observation=null", ""),
        ("a page", ""),
    ],
)
async def test_an_outage_is_told_from_a_broken_game(fault: str, kind: str) -> None:
    async with lying("krill", "alfworld") as url:
        source = HttpSource(f"{url}/{quote(f'reset~{fault}')}", timeout=0.3)
        environment = source.open(source.tasks("test", 1)[0])
        with pytest.raises(EnvironmentFailure) as caught:
            await environment.reset()
        await environment.close()
    assert (caught.value.unreachable, caught.value.permanent) == (
        kind == "unreachable",
        kind == "permanent",
    )
    # Whoever waits for the server says it again in other words.
    again = type(caught.value)("given up", hint="why", unreachable=True)
    assert again.hint == "why"
