"""The model worker as a real process, its client, and the policy that stands on it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from torch import Tensor

from krill_tui.errors import ModelError, WorkerDiedError
from krill_tui.models.base import ActReply, ActRequest, Message, Sampling
from krill_tui.models.local import LocalPolicy, WorkerClient
from krill_tui.models.worker_protocol import (
    ChatMessage,
    FinishRequest,
    GrpoEpisode,
    LoadRequest,
    MetricsReply,
    NoteReply,
    OkReply,
    SampledReply,
    SampleItem,
    SampleOutput,
    SftExample,
    SftStepRequest,
    reply_adapter,
)
from krill_tui.training.batches import TokenBatch
from krill_tui.training.worker import Worker, serve
from tests.tiny_policy import ACTIONS, as_tokens, item, opening

SECRET = "sk-not-for-the-worker"
WITH_WORKER = pytest.mark.asyncio(loop_scope="module")
EXAMPLE = SftExample(
    messages=(
        ChatMessage(role="user", content="Your task is to: look."),
        ChatMessage(role="assistant", content="<think></think><action>look</action>"),
    )
)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[WorkerClient]:
    """One worker for all tests, since it takes seconds to import torch; each test loads what it needs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", SECRET)
        client = await WorkerClient.start(log=tmp_path_factory.mktemp("worker") / "worker.log")
    yield client
    pid = client.pid
    assert pid is not None
    await client.close()
    await client.close()
    assert client.died.is_set()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def _request(
    episode: str, messages: Sequence[Message], *, seed: int = 0, constrained: bool = True
) -> ActRequest:
    return ActRequest(
        episode=episode,
        messages=messages,
        observation=messages[-1]["content"],
        admissible=ACTIONS,
        seed=seed,
        sampling=Sampling(max_tokens=20, constrained=constrained),
    )


def _environment_of(pid: int) -> str:
    """Where the system shows it; nothing elsewhere."""
    path = Path(f"/proc/{pid}/environ")
    return path.read_text() if path.exists() else ""


def _start() -> list[Message]:
    return [{"role": "system", "content": ""}, {"role": "user", "content": "You see a cabinet 1."}]


def _then(messages: Sequence[Message], reply: str, observation: str = "Nothing happens.") -> list[Message]:
    return [*messages, {"role": "assistant", "content": reply}, {"role": "user", "content": observation}]


@WITH_WORKER
async def test_a_worker_without_a_model_refuses_in_one_line_and_goes_on(
    client: WorkerClient, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="no model yet"):
        await client.sample([item("e", opening())])
    with pytest.raises(ModelError, match="no model folder") as caught:
        await client.load(model=str(tmp_path / "nothing"))
    assert "\n" not in caught.value.message
    assert "Traceback" in client.log.read_text()


@WITH_WORKER
async def test_a_cancelled_request_does_not_take_the_next_ones_reply(
    client: WorkerClient, tiny_model_dir: Path
) -> None:
    first = asyncio.create_task(client.load(model=str(tiny_model_dir), max_context=100))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    second = await client.load(model=str(tiny_model_dir), max_context=200)
    assert second.context == 200


@WITH_WORKER
async def test_tokens_are_counted_whole_also_past_the_context(
    client: WorkerClient, tiny_model_dir: Path
) -> None:
    long = SftExample(messages=EXAMPLE.messages * 40)
    await client.load(model=str(tiny_model_dir), max_context=64)
    (all_short, own_short), (all_long, own_long) = await client.count_tokens([EXAMPLE, long])
    metrics = (await client.sft_step([EXAMPLE], learning_rate=0.0, update=False)).values
    assert (metrics["num_tokens"], metrics["policy_tokens"]) == (all_short, own_short)
    assert own_long == 40 * own_short and all_long > 64


@WITH_WORKER
async def test_interrupts_are_left_to_the_parent_and_keys_stay_with_it(client: WorkerClient) -> None:
    assert client.pid is not None
    os.kill(client.pid, signal.SIGINT)
    with pytest.raises(ModelError):
        await client.save("/dev/null/impossible")
    assert SECRET not in _environment_of(client.pid)


@WITH_WORKER
async def test_episodes_played_through_the_worker_do_not_depend_on_their_company(
    client: WorkerClient, tiny_model_dir: Path
) -> None:
    await client.load(model=str(tiny_model_dir), max_context=512)

    async def play(policy: LocalPolicy, episode: str, seed: int) -> list[ActReply]:
        await policy.start(episode)
        messages, replies = _start(), []
        for _ in range(3):
            replies.append(await policy.act(_request(episode, messages, seed=seed)))
            messages = _then(messages, replies[-1].text)
        await policy.finish(episode)
        return replies

    together = LocalPolicy(client)
    many = await asyncio.gather(*(play(together, f"many-{seed}", seed) for seed in range(5)))
    await together.close()
    single = LocalPolicy(client)
    for seed, replies in enumerate(many):
        alone = await play(single, f"alone-{seed}", seed)
        assert [reply.ids for reply in alone] == [reply.ids for reply in replies]
        assert all(any(action in reply.text for action in ACTIONS) for reply in alone)
    await single.close()


@WITH_WORKER
async def test_a_worker_that_was_killed_goes_on_from_its_checkpoint(
    client: WorkerClient, tiny_model_dir: Path, tmp_path: Path
) -> None:
    loaded = await client.load(model=str(tiny_model_dir), lora_rank=4, lora_alpha=8, max_context=256)
    assert (loaded.context, loaded.version, loaded.device) == (256, 0, "cpu")
    assert 0 < loaded.trainable < loaded.parameters
    sampled = await client.sample([item(str(n), opening(), seed=n, constrained=True) for n in range(4)])
    progress: list[tuple[int, int]] = []
    trained = await client.sft_step(
        [EXAMPLE] * 3, learning_rate=1e-3, progress=lambda done, total: progress.append((done, total))
    )
    assert trained.version == 1
    assert progress and all(0 < done <= total for done, total in progress)
    await client.freeze_reference()
    episodes = [
        GrpoEpisode(tokens=as_tokens([output]), advantage=(-1.0) ** n)
        for n, output in enumerate(sampled.outputs)
    ]
    stepped = await client.grpo_step(episodes, learning_rate=1e-3)
    assert stepped.version == 2
    assert stepped.values["kl"] == pytest.approx(0.0, abs=1e-6)
    await client.save(tmp_path / "rl-1")
    before = await client.sample([item("probe", opening(), seed=9)])

    waiting = asyncio.create_task(client.sft_step([EXAMPLE] * 200, learning_rate=1e-3))
    await asyncio.sleep(0)
    assert client.pid is not None
    os.kill(client.pid, signal.SIGKILL)
    with pytest.raises(WorkerDiedError, match="exit code -9"):
        await waiting
    assert client.died.is_set()
    with pytest.raises(WorkerDiedError):
        await client.freeze_reference()

    await client.restart()
    again = await client.load(
        model=str(tiny_model_dir),
        checkpoint=str(tmp_path / "rl-1"),
        lora_rank=4,
        lora_alpha=8,
        max_context=256,
    )
    assert again.version == 2
    after = await client.sample([item("probe", opening(), seed=9)])
    assert after.outputs == before.outputs
    assert after.version == 2


def _serve(lines: Sequence[bytes]) -> list[dict[str, object]]:
    replies = io.BytesIO()
    serve(io.BytesIO(b"".join(line + b"\n" for line in lines)), replies)
    return [json.loads(line) for line in replies.getvalue().splitlines()]


def test_nonsense_is_answered_and_the_end_of_input_ends_the_service() -> None:
    replies = _serve([b"not json", b'{"kind": "dance"}', b'{"kind": "finish", "episodes": []}'])
    assert [reply["kind"] for reply in replies] == ["error", "error", "error"]
    assert all("\n" not in str(reply["message"]) for reply in replies)
    assert [r["kind"] for r in _serve([b'{"kind": "close"}', b"not read any more"])] == ["ok"]


def test_running_out_of_memory_halves_the_micro_batches_and_says_so(
    tiny_model_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[Any] = []
    worker = Worker(said.append)
    worker.handle(LoadRequest(model=str(tiny_model_dir), token_budget=2048))
    policy = worker._loaded.policy
    scores, limit = policy.token_scores, 600

    def cramped(batch: TokenBatch, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        if batch.tokens > limit:
            raise MemoryError
        return scores(batch, *arguments)

    policy.token_scores = cramped  # type: ignore[method-assign]
    user, assistant = EXAMPLE.messages
    examples = tuple(
        SftExample(messages=(ChatMessage(role="user", content=f"{n} {user.content}"), assistant))
        for n in range(60)
    )
    request = SftStepRequest(examples=examples, learning_rate=1e-3)
    reply = worker.handle(request)
    assert isinstance(reply, MetricsReply)
    assert reply.values["micro_batch_tokens"] == 512
    assert reply.version == 1
    assert "micro-batches of 512 tokens" in capfd.readouterr().err
    notes = [reply for reply in said if isinstance(reply, NoteReply) and reply.level == "warning"]
    assert [(note.level, note.message[:13]) for note in notes] == [("warning", "out of memory")] * 2
    assert "512 tokens" in notes[-1].message
    limit = 0
    with pytest.raises(ModelError, match="even with micro-batches of 256 tokens"):
        worker.handle(request)


class FakeClient(WorkerClient):
    """Answers in process and keeps what was asked; replies quote the episode and count its turns."""

    def __init__(self) -> None:
        super().__init__(Path("unused"))
        self.batches: list[list[SampleItem]] = []
        self.finished: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = asyncio.Event()
        self.fail = False
        self._turns: dict[str, int] = {}

    async def sample(self, items: Sequence[SampleItem]) -> SampledReply:
        self.batches.append(list(items))
        self.asked.set()
        await self.gate.wait()
        if self.fail:
            raise WorkerDiedError("gone")
        outputs = []
        for sample in items:
            turn = self._turns[sample.episode] = self._turns.get(sample.episode, 0) + 1
            text = f"{sample.episode}:{turn}"
            outputs.append(
                SampleOutput(episode=sample.episode, text=text, context_ids=(1,), ids=(2,), logprobs=(-1.0,))
            )
        return SampledReply(outputs=tuple(outputs), version=3)

    async def finish(self, episodes: Sequence[str]) -> None:
        self.finished += episodes
        for episode in episodes:
            self._turns.pop(episode, None)


async def _announce(policy: LocalPolicy, *episodes: str) -> None:
    for episode in episodes:
        await policy.start(episode)


async def test_turns_of_all_live_episodes_travel_together() -> None:
    client = FakeClient()
    policy = LocalPolicy(client, window=60)
    await _announce(policy, "a", "b", "c")
    replies = await asyncio.gather(*(policy.act(_request(e, _start())) for e in "abc"))
    assert [reply.text for reply in replies] == ["a:1", "b:1", "c:1"]
    assert [len(batch) for batch in client.batches] == [3]
    assert replies[0].version == 3
    await policy.close()


async def test_a_batch_leaves_after_a_short_while_without_the_slow_episodes() -> None:
    client = FakeClient()
    policy = LocalPolicy(client, window=0.01)
    await _announce(policy, "a", "slow")
    assert (await policy.act(_request("a", _start()))).text == "a:1"
    await policy.close()


async def test_an_episode_that_ends_lets_the_waiting_ones_go() -> None:
    client = FakeClient()
    policy = LocalPolicy(client, window=60)
    await _announce(policy, "a", "b")
    waiting = asyncio.create_task(policy.act(_request("a", _start())))
    await asyncio.sleep(0)
    await policy.finish("b")
    assert (await waiting).text == "a:1"
    await policy.close()


async def test_only_new_messages_are_sent() -> None:
    client = FakeClient()
    policy = LocalPolicy(client)
    messages = _start()
    for turn in range(3):
        reply = await policy.act(_request("a", messages))
        assert reply.text == f"a:{turn + 1}"
        assert not reply.restarted
        messages = _then(messages, reply.text, f"observation {turn}")
    sent = [[m.content for m in batch[0].messages] for batch in client.batches]
    assert sent == [["", "You see a cabinet 1."], ["observation 0"], ["observation 1"]]
    assert client.finished == []
    await policy.close()


async def test_an_overridden_reply_sends_the_conversation_again() -> None:
    client = FakeClient()
    policy = LocalPolicy(client)
    await policy.act(_request("a", _start()))
    reply = await policy.act(_request("a", _then(_start(), "what a person did instead")))
    assert reply.restarted
    assert client.finished == ["a"]
    assert [m.role for m in client.batches[1][0].messages] == ["system", "user", "assistant", "user"]
    again = await policy.act(_request("a", _then(_then(_start(), "what a person did instead"), reply.text)))
    assert not again.restarted
    await policy.close()


async def test_a_cancelled_turn_harms_nobody_and_is_forgotten() -> None:
    client = FakeClient()
    client.gate.clear()
    policy = LocalPolicy(client)
    await _announce(policy, "a", "b")
    calls = [asyncio.create_task(policy.act(_request(e, _start()))) for e in "ab"]
    await client.asked.wait()
    calls[0].cancel()
    client.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await calls[0]
    assert (await calls[1]).text == "b:1"
    await policy.finish("b")
    reply = await policy.act(_request("a", _start()))
    assert reply.text == "a:1"
    assert "a" in client.finished
    await policy.close()


async def test_caches_of_finished_episodes_are_dropped_with_the_next_batch_or_the_last_episode() -> None:
    client = FakeClient()
    policy = LocalPolicy(client)
    await _announce(policy, "a", "b")
    await asyncio.gather(*(policy.act(_request(e, _start())) for e in "ab"))
    await policy.finish("a")
    assert client.finished == []
    await policy.finish("b")
    await asyncio.sleep(0)  # nobody waits for the worker to hear of it
    assert client.finished == ["a", "b"]
    await policy.close()


async def test_the_workers_death_reaches_every_waiting_episode() -> None:
    client = FakeClient()
    client.fail = True
    policy = LocalPolicy(client)
    await _announce(policy, "a", "b")
    replies = await asyncio.gather(*(policy.act(_request(e, _start())) for e in "ab"), return_exceptions=True)
    assert all(isinstance(reply, WorkerDiedError) for reply in replies)
    await policy.close()


async def test_closing_the_policy_fails_the_calls_that_wait() -> None:
    client = FakeClient()
    client.gate.clear()
    policy = LocalPolicy(client)
    call = asyncio.create_task(policy.act(_request("a", _start())))
    await client.asked.wait()
    late = asyncio.create_task(policy.act(_request("b", _start())))
    await asyncio.sleep(0)
    await policy.close()
    for task in (call, late):
        with pytest.raises(ModelError):
            await task


def test_replies_survive_a_round_trip() -> None:
    reply = OkReply()
    assert reply_adapter.validate_json(reply.model_dump_json()) == reply
    assert FinishRequest(episodes=("a",)).model_dump() == {"kind": "finish", "episodes": ("a",)}
