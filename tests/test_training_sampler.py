"""Sampling with kept KV caches: the same as a full pass, the same in any batch, and within its constraint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from krill_tui.models.worker_protocol import SampleOutput
from krill_tui.training.batches import make_batch
from krill_tui.training.constraint import ReplyState
from krill_tui.training.model import PolicyModel
from krill_tui.training.sampler import Sampler, draw, uniform
from krill_tui.training.tokens import ChatTokenizer, MaskedTokens
from krill_tui.trajectory import EpisodeTokens
from tests.chatml import chatml_tokenizer
from tests.tiny_policy import ACTIONS, answer, as_tokens, item, make_policy, opening, sample_episodes


@pytest.fixture(scope="module")
def policy(tiny_model_dir: Path) -> PolicyModel:
    return make_policy(tiny_model_dir)


def _gap(policy: PolicyModel, tokens: EpisodeTokens, temperature: float = 1.0) -> float:
    """Largest difference between the sampler's log-probabilities and those of one pass over the whole."""
    with torch.no_grad():
        batch = make_batch([MaskedTokens(tokens.ids, tokens.mask, tokens.allowed)])
        scores = policy.token_scores(batch, "policy", temperature)[0][0]
    return (scores - torch.tensor(tokens.logprobs)).abs().max().item()


@pytest.mark.parametrize("constrained", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_equal_those_of_one_full_pass(
    policy: PolicyModel, constrained: bool, temperature: float
) -> None:
    for tokens in sample_episodes(policy, 6, constrained=constrained, temperature=temperature):
        assert sum(tokens.mask) > 3
        assert _gap(policy, tokens, temperature) < 1e-4


def _play(sampler: Sampler, groups: list[list[int]], constrained: bool) -> dict[int, list[SampleOutput]]:
    """Two turns of the episodes, batched as `groups` say."""
    outputs: dict[int, list[SampleOutput]] = {}
    for turn in range(2):
        for group in groups:
            items = [
                item(
                    f"e{n}",
                    opening("room " * (n // 2)) if turn == 0 else answer("mug " * n),
                    seed=100 + n,
                    constrained=constrained,
                )
                for n in group
            ]
            for n, output in zip(group, sampler.sample(items), strict=True):
                outputs.setdefault(n, []).append(output)
    return outputs


@pytest.mark.parametrize("constrained", [True, False])
def test_a_reply_does_not_depend_on_what_is_batched_with_it(policy: PolicyModel, constrained: bool) -> None:
    together = _play(Sampler(policy), [list(range(7))], constrained)
    alone = _play(Sampler(policy), [[n] for n in range(7)], constrained)
    mixed = _play(Sampler(policy), [[6, 2], [0, 5, 1], [4], [3]], constrained)
    for n in range(7):
        for turn in range(2):
            assert together[n][turn].ids == alone[n][turn].ids == mixed[n][turn].ids


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_a_draw_that_noise_could_turn_is_told(temperature: float) -> None:
    rows, noise = 4000, 0.02
    generator = torch.Generator().manual_seed(5)
    logits = 2 * torch.randn(rows, 6, generator=generator)
    moved = logits + noise * (2 * torch.rand(logits.shape, generator=generator) - 1)
    uniforms = torch.rand(rows, generator=generator).tolist()
    temperatures = [temperature] * rows
    picks, _, close = draw(logits, temperatures, uniforms, torch.full((rows,), noise))
    others = draw(moved, temperatures, uniforms)[0]
    turned = {n for n in range(rows) if picks[n] != others[n]}
    assert turned
    assert turned <= set(close)
    assert len(close) < rows / 10


def _noisy(sampler: Sampler, noise: float, monkeypatch: pytest.MonkeyPatch) -> Sampler:
    """The same sampler with the noise of its batches made larger, up to a share `noise` of each row's largest logit."""
    generator = torch.Generator().manual_seed(1)
    exact = sampler._forward

    def forward(active: list[Any]) -> torch.Tensor:
        logits = exact(active)
        if not len(logits):
            return logits
        move = 2 * torch.rand(logits.shape, generator=generator) - 1
        return logits + noise * logits.abs().amax(-1, keepdim=True) * move

    monkeypatch.setattr(sampler, "_forward", forward)
    return sampler


@pytest.mark.parametrize(("constrained", "temperature"), [(True, 0.0), (True, 1.0), (False, 1.0)])
def test_noise_of_the_batch_turns_no_decision(
    policy: PolicyModel, constrained: bool, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = 0.01
    items = [
        item(
            f"e{n}",
            opening("room " * n),
            seed=n,
            constrained=constrained,
            temperature=temperature,
        )
        for n in range(24)
    ]

    def replies(sampler: Sampler) -> list[tuple[int, ...]]:
        return [output.ids for output in sampler.sample(items)]

    monkeypatch.setattr("krill_tui.training.sampler._NOISE", 0.0)
    expected = replies(Sampler(policy))
    assert replies(_noisy(Sampler(policy), noise, monkeypatch)) != expected
    monkeypatch.setattr("krill_tui.training.sampler._NOISE", noise)
    # The canonical computation decides in both, so these two agree whatever the noise does.
    assert replies(_noisy(Sampler(policy), 0.9 * noise, monkeypatch)) == replies(Sampler(policy)) == expected


def test_other_seeds_give_other_replies(policy: PolicyModel) -> None:
    sampler = Sampler(policy)
    outputs = sampler.sample([item(str(seed), opening(), seed=seed) for seed in range(4)])
    assert len({output.ids for output in outputs}) == 4


def test_finished_episodes_leave_the_others_unharmed(policy: PolicyModel) -> None:
    sampler, control = Sampler(policy), Sampler(policy)
    first = {n: sampler.sample([item(str(n), opening("x " * n), seed=n)])[0] for n in range(5)}
    sampler.finish(["0", "3", "unknown"])
    for n in (1, 2, 4):
        assert control.sample([item(str(n), opening("x " * n), seed=n)])[0] == first[n]
        again = item(str(n), answer(), seed=n)
        assert sampler.sample([again])[0].ids == control.sample([again])[0].ids


def test_new_weights_are_used_for_what_was_read_under_the_old_ones(tiny_model_dir: Path) -> None:
    policy = make_policy(tiny_model_dir)
    sampler = Sampler(policy)
    first = sampler.sample([item("e", opening(), seed=3)])[0]
    with torch.no_grad():
        for parameter in policy.policy_parameters.values():
            parameter.mul_(1.3)
    sampler.refresh()
    second = sampler.sample([item("e", answer(), seed=3)])[0]
    tokens = as_tokens([first, second])
    start = len(first.context_ids) + len(first.ids)
    shown = EpisodeTokens(
        ids=tokens.ids,
        mask=(*([0] * start), *tokens.mask[start:]),
        logprobs=(*([0.0] * start), *tokens.logprobs[start:]),
        allowed=tokens.allowed,
    )
    assert _gap(policy, shown) < 1e-4


def test_constrained_replies_always_hold_one_admissible_action(policy: PolicyModel) -> None:
    sampler = Sampler(policy)
    texts = []
    for turn in range(3):
        messages = opening() if turn == 0 else answer()
        outputs = sampler.sample([item(str(n), messages, seed=n, constrained=True) for n in range(12)])
        texts += [output.text for output in outputs]
        for output in outputs:
            assert output.finish == "stop"
            assert len(output.ids) <= 25
            for token, allowed, logprob in zip(output.ids, output.allowed, output.logprobs, strict=True):
                assert not allowed or token in allowed
                assert len(allowed) != 1 or logprob == 0.0
    for text in texts:
        action = text.rpartition("<action>")[2]
        assert action.removesuffix("</action>") in ACTIONS
        assert text.endswith("</action>")
    assert len({text.rpartition("<action>")[2] for text in texts}) == len(ACTIONS)


def test_a_free_reply_ends_after_its_action_or_when_it_is_cut(policy: PolicyModel) -> None:
    outputs = Sampler(policy).sample([item(str(n), opening(), seed=n, max_tokens=6) for n in range(12)])
    assert {output.finish for output in outputs} >= {"length"}
    for output in outputs:
        ended = output.ids[-1] == policy.chat.end_of_turn
        assert (output.finish == "stop") == ended
        assert len(output.ids) <= 7


def test_a_sequence_that_would_outgrow_the_model_gets_no_reply_and_stays_as_it_was(
    policy: PolicyModel,
) -> None:
    sampler = Sampler(policy)
    kept = sampler.sample([item("e", opening(), seed=1)])[0]
    outputs = sampler.sample([item("e", answer("mug " * 600)), item("f", opening("mug " * 600))])
    assert [output.finish for output in outputs] == ["context", "context"]
    assert all(not output.ids and not output.context_ids for output in outputs)
    control = Sampler(policy)
    assert control.sample([item("e", opening(), seed=1)])[0] == kept
    again = item("e", answer(), seed=1)
    assert sampler.sample([again])[0].ids == control.sample([again])[0].ids


def test_greedy_replies_take_the_most_likely_token(policy: PolicyModel) -> None:
    output = Sampler(policy).sample([item("e", opening(), temperature=0.0)])[0]
    ids = list(output.context_ids)
    with torch.no_grad():
        for token in output.ids[:5]:
            weights = policy.merged_weights("policy")
            logits = torch.func.functional_call(policy.base, weights, (torch.tensor([ids]),)).logits[0, -1]
            assert logits.argmax().item() == token
            ids.append(token)


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, float("-inf"), 2.0]])
    count = 4000
    uniforms = [(n + 0.5) / count for n in range(count)]
    picks, logprobs, _ = draw(logits.expand(count, -1), [1.0] * count, uniforms)
    expected = torch.softmax(logits, -1)[0]
    for index in range(4):
        assert picks.count(index) / count == pytest.approx(expected[index].item(), abs=1e-3)
    assert logprobs[0] == pytest.approx(expected[picks[0]].log().item(), abs=1e-5)


def test_uniform_numbers_depend_on_seed_and_position_alone() -> None:
    values = [uniform(seed, position) for seed in range(-20, 20) for position in range(25)]
    assert values == [uniform(seed, position) for seed in range(-20, 20) for position in range(25)]
    assert len(set(values)) == 1000
    assert all(0 <= value < 1 for value in values)
    assert sum(values) / 1000 == pytest.approx(0.5, abs=0.03)


def _say(state: ReplyState, text: str, chat: ChatTokenizer) -> None:
    for token in chat.encode(text):
        assert not state.choices() or token in state.choices()
        state.push(token, -1.0)
        state.push_forced()


@pytest.fixture(params=["krill", "chatml without format tokens"])
def chat(request: pytest.FixtureRequest, policy: PolicyModel) -> ChatTokenizer:
    """Also a tokenizer to which <think> and <action> are ordinary text of several tokens."""
    if request.param == "krill":
        return policy.chat
    return ChatTokenizer(chatml_tokenizer())


def test_the_constraint_lets_each_action_be_said_in_the_tokens_that_training_uses(
    chat: ChatTokenizer,
) -> None:
    for action in ACTIONS:
        text = f"<think>now look</think><action>{action}</action>"
        wanted = [*chat.encode(text), chat.end_of_turn]
        state = ReplyState(chat, ACTIONS, constrained=True, max_tokens=64)
        while not state.done:
            token = wanted[len(state.ids)]
            assert not state.choices() or token in state.choices()
            state.push(token, -1.0)
            state.push_forced()
        assert state.ids == wanted
        assert chat.decode(state.ids) == text


def test_a_thought_that_runs_too_long_is_closed_in_time_for_any_action(chat: ChatTokenizer) -> None:
    state = ReplyState(chat, ACTIONS, constrained=True, max_tokens=40)
    word = chat.encode(" mug")[0]
    while not state.choices():
        state.push(word, -1.0)
        state.push_forced()
    while not state.done:
        state.push(state.choices()[0], -1.0)
        state.push_forced()
    assert "</think><action>" in chat.decode(state.ids)
    assert len(state.ids) <= 40


def test_ending_the_turn_inside_a_thought_closes_the_thought_instead(chat: ChatTokenizer) -> None:
    state = ReplyState(chat, ACTIONS, constrained=True, max_tokens=64)
    _say(state, "<think>hm", chat)
    state.push(chat.end_of_turn, -1.0)
    state.push_forced()
    assert not state.done
    assert "<think>hm</think><action>".startswith(chat.decode(state.ids)[:18])
    assert chat.end_of_turn not in state.ids


def test_the_only_action_is_said_without_asking_the_model(chat: ChatTokenizer) -> None:
    state = ReplyState(chat, ["look"], constrained=True, max_tokens=64)
    _say(state, "<think></think>", chat)
    assert state.done
    assert chat.decode(state.ids) == "<think></think><action>look</action>"
