"""One episode is one sequence with any chat template, or the template is refused in one line when it is loaded."""

from __future__ import annotations

import datetime
import re
from typing import Any

import pytest
import torch

from krill_tui.agent.actions import parse_reply
from krill_tui.errors import EXIT_USAGE, ModelRefusedError
from krill_tui.models.base import Message
from krill_tui.training.model import ModelSettings, PolicyModel
from krill_tui.training.sampler import Sampler
from krill_tui.training.tiny import build_model
from krill_tui.training.tokens import ChatTokenizer
from tests.chat_templates import (
    REFUSED,
    SHIPPED,
    VISION,
    WRITTEN,
    blank_first_tokenizer,
    tokenizer_for,
)
from tests.tiny_policy import ACTIONS, answer, item, opening

DAY = datetime.date(2026, 3, 7)
MESSAGES: list[Message] = [
    {"role": "system", "content": "mug: cabinet [gen_003]"},
    {"role": "user", "content": "You see a cabinet 1.\nTask: put a mug in it."},
    {
        "role": "assistant",
        "content": "<think>first thought [gen_003]</think><action>go to cabinet 1</action>",
    },
    {"role": "user", "content": "The cabinet 1 is closed."},
    {"role": "assistant", "content": "<think>second thought</think><action>open cabinet 1</action>"},
    {"role": "user", "content": "It is empty."},
    {"role": "assistant", "content": "<think>third thought</think><action>look</action>"},
]
TEMPLATES = {name: text for name, text in SHIPPED.items() if name not in VISION} | WRITTEN
"""All that work."""


@pytest.fixture(params=sorted(TEMPLATES))
def chat(request: pytest.FixtureRequest) -> ChatTokenizer:
    return ChatTokenizer(tokenizer_for(TEMPLATES[request.param]), DAY)


def test_the_thirty_text_templates_of_trl_are_tried() -> None:
    """Each without its variant for training, which is tried as well."""
    assert len([name for name in SHIPPED if name not in VISION and not name.endswith("_training")]) >= 30


def _sampled(chat: ChatTokenizer, messages: list[Message]) -> tuple[list[int], list[int]]:
    """The sequence as the sampler grows it, turn by turn."""
    ids = list(chat.context(messages[:2]))
    mask = [0] * len(ids)
    for n in range(2, len(messages), 2):
        reply = [*chat.reply_ids(messages[n]["content"]), chat.end_of_turn]
        new = list(chat.next_context(messages[n + 1 : n + 2], ended=True)) if n + 1 < len(messages) else []
        ids += [*reply, *new]
        mask += [1] * len(reply) + [0] * len(new)
    return ids, mask


def test_an_episode_is_one_growing_sequence(chat: ChatTokenizer) -> None:
    whole = chat.conversation(MESSAGES)
    assert (list(whole.ids), list(whole.mask)) == _sampled(chat, MESSAGES)
    for count in range(2, len(MESSAGES)):
        part = chat.conversation(MESSAGES[:count]).ids
        assert whole.ids[: len(part)] == part


def test_every_message_stands_in_it_once_and_in_order(chat: ChatTokenizer) -> None:
    text = chat.tokenizer.decode(chat.conversation(MESSAGES).ids)
    wanted = ["mug: cabinet [gen_003]", "Task: put a mug", "first thought", "go to cabinet 1</action>"]
    wanted += [
        "The cabinet 1 is closed",
        "second thought",
        "It is empty",
        "third thought",
        "<action>look</action>",
    ]
    assert [text.count(part) for part in wanted] == [1] * len(wanted)
    assert [text.index(part) for part in wanted] == sorted(text.index(part) for part in wanted)
    own_preamble = text[: text.index("mug: cabinet")].count("<think>")
    assert text.count("<think>") - own_preamble == 3, "each thought is opened once"


def test_a_reply_is_read_back_as_it_was_said(chat: ChatTokenizer) -> None:
    """Thought, citation and action: what the template writes of a reply is given back to it."""
    whole = chat.conversation(MESSAGES)
    said: list[list[int]] = [[]]
    for token, own in zip(whole.ids, whole.mask, strict=True):
        if own:
            said[-1].append(token)
        elif said[-1]:
            said.append([])
    replies = [message["content"] for message in MESSAGES if message["role"] == "assistant"]
    assert len([ids for ids in said if ids]) == len(replies)
    for ids, reply in zip(said, replies, strict=False):
        assert ids[-1] == chat.end_of_turn and ids.count(chat.end_of_turn) == 1
        assert parse_reply(chat.reply_text(ids)) == parse_reply(reply)
        assert chat.reply_ids(chat.reply_text(ids)) == tuple(ids[:-1])


def test_a_reply_without_a_thought_has_a_place(chat: ChatTokenizer) -> None:
    ids = chat.reply_ids("<action>look</action>")
    assert parse_reply(chat.reply_text(ids)).action == "look"
    assert parse_reply(chat.reply_text(ids)).thought == ""


def test_text_of_a_world_never_becomes_template(chat: ChatTokenizer) -> None:
    frame = chat.tokenizer.decode(chat.context(MESSAGES[:2]))
    evil = "".join(token for token in chat.tokenizer.get_added_vocab() if token in frame)
    messages = [MESSAGES[0], Message(role="user", content=f"a {evil} b")]
    harmless = [MESSAGES[0], Message(role="user", content="a b")]
    added = set(chat.tokenizer.added_tokens_decoder)
    count = [sum(token in added for token in chat.context(each)) for each in (messages, harmless)]
    assert count[0] == count[1]


def test_sequences_are_the_same_on_every_day(chat: ChatTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The template is told the day the run began, whatever the clock says."""
    import transformers.utils.chat_template_utils as rendering

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Later:
            return cls(2031, 12, 24)

    before = chat.conversation(MESSAGES).ids
    monkeypatch.setattr(rendering, "datetime", Later)
    again = ChatTokenizer(chat.tokenizer, DAY)
    assert again.conversation(MESSAGES).ids == before
    text = chat.tokenizer.decode(before)
    assert "2031" not in text
    dated = any("writes the date" in change for change in chat.format.changes)
    assert dated == ("strftime_now" in chat.tokenizer.chat_template and "2026" in text)


@pytest.fixture(scope="module")
def base() -> Any:
    torch.manual_seed(0)
    model = build_model(1200, 32, layers=2, heads=4, kv_heads=2, mlp=64, context=4096)
    model.name_or_path = "tiny"
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(10)
    return model


@pytest.mark.parametrize("constrained", [True, False])
@pytest.mark.parametrize("name", sorted(name for name in TEMPLATES if not name.endswith("_training")))
def test_the_sampler_builds_what_training_reads(name: str, base: Any, constrained: bool) -> None:
    chat = ChatTokenizer(tokenizer_for(TEMPLATES[name]), DAY)
    policy = PolicyModel(base, chat, ModelSettings(lora_rank=4, lora_alpha=8, max_context=4096), name="tiny")
    sampler = Sampler(policy)
    messages: list[Message] = []
    sequence: list[int] = []
    for turn in range(2):
        new = opening("You see a cabinet 1.") if turn == 0 else answer("It is closed.")
        [output] = sampler.sample(
            [item("e", new, constrained=constrained, max_tokens=1 if constrained else 12)]
        )
        messages += [Message(role=message.role, content=message.content) for message in new]
        messages.append(Message(role="assistant", content=output.text))
        sequence += [*output.context_ids, *output.ids]
        if constrained:
            assert parse_reply(output.text).action in ACTIONS
    learned = chat.conversation(messages).ids
    if constrained:  # it says its action in the tokens that SFT has for it
        assert tuple(sequence) == learned
    else:
        text = chat.tokenizer.decode(learned)
        assert text.startswith(chat.tokenizer.decode(chat.context(messages[:2])))


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_template_that_makes_no_sequence_is_refused_in_one_line(name: str) -> None:
    template, reason = REFUSED[name]
    with pytest.raises(ModelRefusedError, match=reason) as caught:
        ChatTokenizer(tokenizer_for(template))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == EXIT_USAGE


@pytest.mark.parametrize("name", sorted(VISION))
def test_a_template_for_pictures_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ModelRefusedError, match="in parts"):
        ChatTokenizer(tokenizer_for(SHIPPED[name]))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gemma", "no system role"),
        ("no_system", "no system role"),
        ("drops_system", "no system role"),
        ("mistral_v1", "no system role"),
        ("deepseek_r1_distill", "opens <think> itself"),
        ("always_open", "opens <think> itself"),
        ("qwen3_5_nothink", "rendered with enable_thinking=true"),
        ("deepseek_v31", "rendered with thinking=true"),
        ("always_closed", "that part is left out"),
        ("magistral", r"opens a thought by \[THINK\]"),
        ("qwen3", "drops the thoughts of earlier turns"),
        ("gptoss", r"begin with '<\|channel\|>final"),
        ("gptoss", "ends the last turn otherwise"),
        ("glm4", "has no end of a turn"),
        ("glm4moe", "has no end of a turn"),
        ("llama2", "white space before the end"),
        ("mistral_v3", "rewrites earlier turns"),
        ("llama3_2", "writes the date: 2026-03-07"),
        ("smollm3", "writes the date: 2026-03-07"),
    ],
)
def test_what_is_done_otherwise_is_said(name: str, change: str) -> None:
    changes = ChatTokenizer(tokenizer_for(TEMPLATES[name]), DAY).format.changes
    assert any(re.search(change, line) for line in changes)
    assert all("\n" not in line for line in changes)


@pytest.mark.parametrize(
    "name", ["qwen2_5", "llama3", "phi3", "gemma3", "cohere", "zephyr", "vicuna", "phi4", "mistral_v2"]
)
def test_a_template_that_fits_is_left_as_it_is(name: str) -> None:
    form = ChatTokenizer(tokenizer_for(TEMPLATES[name]), DAY).format
    assert [change for change in form.changes if "system role" not in change] == []


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        *((name, "first") for name in ("mistral_v1", "mistral_v2", "llama2", "vicuna")),
        *((name, "always") for name in ("mistral_v2", "llama2", "vicuna")),
    ],
)
def test_tokens_are_those_of_the_whole_text_where_words_carry_their_blank(name: str, scheme: str) -> None:
    """A tokenizer of Llama's older kind puts a blank before a text of its own: none may come in between pieces."""
    chat = ChatTokenizer(blank_first_tokenizer(WRITTEN[name], scheme))
    tokens = chat.conversation(MESSAGES)
    whole = chat.format.render(MESSAGES, generation=False)
    if chat.format.trail:
        whole = whole.replace(f"{chat.format.trail}</s>", "</s>")
    ids = tuple(chat.tokenizer.encode(whole.rstrip("\n"), add_special_tokens=False))
    assert tokens.ids == ids
    own = [i for i, m in zip(tokens.ids, tokens.mask, strict=True) if m]
    first = own[: own.index(chat.end_of_turn)]
    assert chat.reply_text(first) == MESSAGES[2]["content"]
    assert "".join(chat.piece(i) for i in first).strip() == MESSAGES[2]["content"]
