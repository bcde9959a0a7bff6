"""Sampling by a server with vLLM's endpoints, over real HTTP, with real log-probabilities."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch

from krill_tui.errors import ModelError
from krill_tui.models.base import ActReply, ActRequest, Message, Sampling
from krill_tui.models.local import WorkerClient
from krill_tui.models.vllm import VllmPolicy, VllmServer
from krill_tui.models.worker_protocol import ChatMessage, GrpoEpisode, LoadedReply, SampleOutput, SftExample
from krill_tui.training.losses import grpo_loss, token_weights, truncated_weights
from tests.tiny_policy import as_tokens
from tests.vllm_server import LoraServer, serving

MODULE = pytest.mark.asyncio(loop_scope="module")
DEMONSTRATION = SftExample(
    messages=(
        ChatMessage(role="system", content=""),
        ChatMessage(role="user", content="You see a cabinet 1."),
        ChatMessage(role="assistant", content="<think></think><action>look</action>"),
    )
)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def worker(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path
) -> AsyncIterator[tuple[WorkerClient, LoadedReply]]:
    client = await WorkerClient.start(log=tmp_path_factory.mktemp("worker") / "worker.log")
    loaded = await client.load(model=str(tiny_model_dir), lora_rank=4, lora_alpha=8, max_context=400)
    yield client, loaded
    await client.close()


def _policy(worker: tuple[WorkerClient, LoadedReply], url: str, folder: Path) -> VllmPolicy:
    return VllmPolicy(worker[0], VllmServer(url, retries=1, retry_seconds=0.01), worker[1], folder)


def _request(episode: str, messages: list[Message], seed: int, *, constrained: bool = False) -> ActRequest:
    sampling = Sampling(max_tokens=20, constrained=constrained)
    return ActRequest(
        episode=episode, messages=messages, observation="", admissible=("look",), seed=seed, sampling=sampling
    )


async def _play(policy: VllmPolicy, name: str, seed: int, turns: int = 3) -> list[ActReply]:
    messages: list[Message] = [
        {"role": "system", "content": ""},
        {"role": "user", "content": "You see a cabinet 1."},
    ]
    replies = []
    await policy.start(name)
    for turn in range(turns):
        replies.append(await policy.act(_request(name, messages, seed)))
        messages += [
            {"role": "assistant", "content": replies[-1].text},
            {"role": "user", "content": f"drawer {turn}"},
        ]
    await policy.finish(name)
    return replies


def _episode(replies: list[ActReply], advantage: float) -> GrpoEpisode:
    outputs = [
        SampleOutput(
            episode="", text="", context_ids=r.context_ids, ids=r.ids, logprobs=r.logprobs, allowed=r.allowed
        )
        for r in replies
    ]
    return GrpoEpisode(tokens=as_tokens(outputs), advantage=advantage)


@MODULE
async def test_each_update_is_sampled_from_and_its_log_probabilities_are_the_trainers(
    worker: tuple[WorkerClient, LoadedReply], tiny_model_dir: Path, tmp_path: Path
) -> None:
    client, _ = worker
    server = LoraServer(tiny_model_dir)
    async with serving(server) as url:
        policy = _policy(worker, url, tmp_path / "adapters")
        played: list[list[ActReply]] = []
        for step in range(2):
            # Imitation makes the adapter differ from the base, and replies that end in an action.
            for _ in range(4):
                await client.sft_step([DEMONSTRATION], learning_rate=2e-2)
            policy.weights_changed()
            played = await asyncio.gather(*(_play(policy, f"{step}-{n}", n) for n in range(3)))
            versions = {reply.version for replies in played for reply in replies}
            episodes = [_episode(replies, (-1.0) ** n) for n, replies in enumerate(played)]
            metrics = await client.grpo_step(episodes, learning_rate=1e-3, importance_sampling_cap=2.0)
            assert versions == {metrics.version - 1}
            assert metrics.values["sampling/sampling_logp_difference/max"] < 1e-3
            assert metrics.values["sampling/importance_sampling_ratio/mean"] == pytest.approx(1.0, abs=1e-3)
        # Every reply is followed by its own prompt: the sequence an episode is trained on.
        prompts = sorted((body["prompt"] for body in server.completions), key=len)
        for replies in played:
            sequence: list[int] = []
            for reply in replies:
                sequence += reply.context_ids
                assert sequence in prompts
                sequence += reply.ids
                assert len(reply.logprobs) == len(reply.ids)
        # A forced end of turn costs nothing and is trained on as such.
        ended = [reply for replies in played for reply in replies if reply.text.endswith("</action>")]
        assert ended and all(reply.ids[-1] == worker[1].end_of_turn for reply in ended)
        assert len({body["seed"] for body in server.completions}) > 6
        await policy.close()
    assert server.breaches == []
    assert [name.split("-")[1] for name in server.loaded] == ["4", "9"]
    assert server.unloaded == server.loaded
    assert list((tmp_path / "adapters").iterdir()) == []


@MODULE
async def test_a_server_that_knows_the_adapter_already_is_used_as_it_is(
    worker: tuple[WorkerClient, LoadedReply], tiny_model_dir: Path, tmp_path: Path
) -> None:
    server = LoraServer(tiny_model_dir)
    async with serving(server) as url:
        first, second = (_policy(worker, url + "/v1/", tmp_path / name) for name in "ab")
        expected = await _play(first, "e", 5)
        # As after a kill: another policy with the same weights.
        assert [reply.ids for reply in await _play(second, "e", 5)] == [reply.ids for reply in expected]
        assert len(server.loaded) == 1
        await second.close()
        await first.close()


@MODULE
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("500", "/v1/completions: the endpoint answered 500: EngineCore encountered an issue"),
        ("refuse", "the adapter is refused: the vLLM server at http"),
        ("vocabulary", "serves another model"),
        ("no logprobs", "tokens with 0 log-probabilities"),
        ("down", "/v1/load_lora_adapter: the connection was refused"),
    ],
)
async def test_what_a_server_does_wrong_is_one_line(
    worker: tuple[WorkerClient, LoadedReply], tiny_model_dir: Path, tmp_path: Path, fault: str, reason: str
) -> None:
    server = LoraServer(tiny_model_dir)
    server.fault = fault
    async with serving(server) as url:
        policy = _policy(worker, "http://127.0.0.1:9" if fault == "down" else url, tmp_path)
        with pytest.raises(ModelError) as caught:
            await _play(policy, "e", 1)
        assert reason in caught.value.message and "\n" not in str(caught.value)
        await policy.close()


@MODULE
async def test_a_fault_that_passes_is_tried_again(
    worker: tuple[WorkerClient, LoadedReply], tiny_model_dir: Path, tmp_path: Path
) -> None:
    server = LoraServer(tiny_model_dir)
    server.fault, server.faults_left = "500", 1
    async with serving(server) as url:
        policy = _policy(worker, url, tmp_path)
        assert len(await _play(policy, "e", 1)) == 3
        with pytest.raises(ModelError, match="cannot bind replies"):
            await policy.act(_request("c", [{"role": "user", "content": "x"}], 1, constrained=True))
        await policy.close()


def test_truncated_weights_multiply_the_surrogate_and_not_the_kl() -> None:
    generator = torch.Generator().manual_seed(0)
    old, sampled, reference = (torch.randn(3, 5, generator=generator) for _ in range(3))
    mask = torch.ones(3, 5)
    advantages = torch.tensor([1.0, -2.0, 0.5])
    weights = token_weights(mask, "grpo", 3, 15, 5)
    correction = truncated_weights(old, sampled, 2.0)
    assert float(correction.max()) == 2.0
    given = grpo_loss(
        old,
        old,
        reference,
        advantages,
        mask,
        weights,
        clip_epsilon=0.2,
        epsilon_high=None,
        kl_coeff=0.1,
        loss_type="grpo",
        correction=correction,
    )
    ratio = torch.minimum(torch.exp(old - sampled), torch.tensor(2.0))
    kl = torch.exp(reference - old) - (reference - old) - 1
    expected = ((-advantages[:, None] * ratio + 0.1 * kl).mean(-1)).mean()
    assert float(given.loss) == pytest.approx(float(expected), abs=1e-6)
