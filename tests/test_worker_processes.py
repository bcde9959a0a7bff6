"""The model worker as two processes that talk by gloo: the same replies and the same update as one."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from krill_tui.errors import WorkerDiedError
from krill_tui.models.local import Launch, WorkerClient
from krill_tui.models.worker_protocol import (
    GrpoEpisode,
    GrpoStepRequest,
    LoadRequest,
    SampledReply,
    SampleOutput,
    SampleRequest,
    SaveRequest,
    SftStepRequest,
)
from krill_tui.training.ranks import Ranks
from krill_tui.training.worker import Worker
from tests.tiny_policy import EXAMPLES, answer, as_tokens, item, opening

pytestmark = pytest.mark.slow
COUNT = 5
"""Episodes: an odd number, of different lengths, so that the processes have different numbers of tokens."""
LOAD: dict[str, Any] = {"lora_rank": 4, "lora_alpha": 8, "max_context": 400}


def _items(turn: int) -> list[Any]:
    return [
        item(f"e{n}", opening("a room " * (1 + 4 * n)) if turn == 0 else answer("drawer " * n), seed=n)
        for n in range(COUNT)
    ]


def _episodes(turns: Sequence[Sequence[SampleOutput]]) -> list[GrpoEpisode]:
    return [
        GrpoEpisode(tokens=as_tokens(outputs), advantage=(-1.0) ** n * (1 + n))
        for n, outputs in enumerate(map(list, zip(*turns, strict=True)))
    ]


def _alone(model: Path, folder: Path) -> tuple[list[list[SampleOutput]], dict[str, float]]:
    """What one process does; writes a checkpoint after each update."""
    worker = Worker(lambda reply: None)
    worker.handle(LoadRequest(model=str(model), **LOAD))
    worker.handle(SftStepRequest(examples=EXAMPLES, learning_rate=1e-3))
    worker.handle(SaveRequest(directory=str(folder / "sft")))
    turns = []
    for turn in range(2):
        reply = worker.handle(SampleRequest(items=tuple(_items(turn))))
        assert isinstance(reply, SampledReply)
        turns.append(list(reply.outputs))
    metrics: Any = worker.handle(GrpoStepRequest(episodes=tuple(_episodes(turns)), learning_rate=1e-3))
    worker.handle(SaveRequest(directory=str(folder / "rl")))
    return turns, metrics.values


def _largest_difference(one: Path, other: Path) -> float:
    a, b = (load_file(folder / "policy" / "adapter_model.safetensors") for folder in (one, other))
    assert a.keys() == b.keys()
    assert max(float(tensor.abs().max()) for tensor in a.values()) > 1e-3
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.timeout(300)
async def test_two_processes_reply_and_update_as_one(tiny_model_dir: Path, tmp_path: Path) -> None:
    expected, metrics = _alone(tiny_model_dir, tmp_path / "one")
    notes: list[str] = []
    client = await WorkerClient.start(
        log=tmp_path / "worker.log",
        launch=Launch(processes=2, cpu=True),
        noted=lambda text, _: notes.append(text),
    )
    try:
        await client.load(model=str(tiny_model_dir), **LOAD)
        await client.sft_step(EXAMPLES, learning_rate=1e-3)
        await client.save(tmp_path / "two" / "sft")
        turns = [(await client.sample(_items(turn))).outputs for turn in range(2)]
        assert [[o.ids for o in turn] for turn in turns] == [[o.ids for o in turn] for turn in expected]
        # The same sequences for both, so that what is compared is the update.
        stepped = await client.grpo_step(_episodes(expected), learning_rate=1e-3)
        await client.save(tmp_path / "two" / "rl")
        for phase in ("sft", "rl"):
            assert _largest_difference(tmp_path / "one" / phase, tmp_path / "two" / phase) < 1e-6
        for name in ("loss", "kl", "entropy", "grad_norm", "policy_tokens"):
            assert stepped.values[name] == pytest.approx(metrics[name], abs=1e-5)

        # A single demonstration leaves one process without work.
        assert (await client.sft_step(EXAMPLES[:1], learning_rate=1e-4)).version == 3

        assert client.pid is not None
        ranks = psutil.Process(client.pid).children(recursive=True)
        assert len(ranks) == 2
        waiting = asyncio.create_task(client.sft_step(EXAMPLES * 20, learning_rate=1e-3))
        await asyncio.sleep(0)
        os.kill(ranks[1].pid, signal.SIGKILL)
        with pytest.raises(WorkerDiedError):
            await waiting
            await client.freeze_reference()
        await asyncio.wait_for(client.died.wait(), 60)
        assert not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks)
    finally:
        await client.close()


def _ranks(index: int, count: int) -> Ranks:
    ranks = Ranks()
    ranks.index, ranks.count = index, count
    return ranks


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_piece_belongs_to_one_process_and_neighbours_stay_together(count: int) -> None:
    sizes = [5, 1, 1, 30, 2, 2, 9]
    shares = [_ranks(index, count).share(sizes) for index in range(count)]
    assert [piece for share in shares for piece in share] == list(range(len(sizes)))
    assert shares == [list(range(s[0], s[-1] + 1)) if s else [] for s in shares]


def test_a_launch_says_what_it_starts() -> None:
    assert "accelerate.commands.launch" not in Launch().command()
    several = " ".join(Launch(processes=4).command())
    assert "--num_processes 4" in several and several.endswith("-m krill_tui.training.worker")
    configured = Launch(config_file="fsdp.yaml").command()
    assert configured[configured.index("--config_file") + 1] == "fsdp.yaml"
    assert "--multi_gpu" not in configured
