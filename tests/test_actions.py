"""Reading a policy's reply."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from krill_tui.agent.actions import (
    LONGEST_ACTION,
    LONGEST_REPLY,
    citations,
    format_reply,
    kept_reply,
    parse_reply,
)


def test_a_tagged_reply_gives_thought_and_action():
    parsed = parse_reply("<think>mug: cabinet [gen_003]</think><action>go to cabinet 1</action>")
    assert parsed.thought == "mug: cabinet [gen_003]"
    assert parsed.action == "go to cabinet 1"


def test_the_react_form_is_read_too():
    parsed = parse_reply("Thought: the mug is\nprobably there\nAction: go to shelf 2\n")
    assert (parsed.thought, parsed.action) == ("the mug is\nprobably there", "go to shelf 2")


def test_the_last_action_counts_and_an_unclosed_one_is_still_an_action():
    assert parse_reply("<action>look</action> no, <action>open fridge 1").action == "open fridge 1"


def test_a_reply_without_an_action_has_none():
    assert parse_reply("I would rather not.").action == ""


def test_inner_spelling_is_kept_because_environments_differ_in_what_they_forgive():
    assert parse_reply("<action> Go  to Shelf 2. </action>").action == "Go  to Shelf 2."


@given(st.text(), st.text())
def test_whatever_a_model_says_is_parsed_to_text(thought: str, action: str):
    parsed = parse_reply(thought + "<action>" + action)
    assert isinstance(parsed.thought, str)
    assert isinstance(parsed.action, str)


@given(st.text("abc 12[]_:", min_size=1).map(str.strip), st.text("abc 12", min_size=1).map(str.strip))
def test_what_a_policy_is_taught_to_say_reads_back(thought: str, action: str):
    parsed = parse_reply(format_reply(thought, action))
    assert (parsed.thought, parsed.action) == (thought, action)


def test_only_skills_of_the_prompt_are_cited_each_once():
    known = frozenset({"gen_001", "heat_002"})
    assert citations("[heat_002] then [gen_001], [heat_002] and [gen_999]", known) == ("heat_002", "gen_001")


# The parser of the first versions, on replies of the forms that policies are taught: both must read the same.
_WORDS = st.text("abc 12.,[]_:'", max_size=30)


def _first_parser(text: str) -> tuple[str, str]:
    actions = re.findall(r"<action>(.*?)(?:</action>|$)", text, re.DOTALL)
    if actions:
        thoughts = re.findall(r"<think>(.*?)</think>", text, re.DOTALL)
        return (thoughts[-1].strip() if thoughts else ""), actions[-1].strip()
    lines = re.findall(r"^\s*Action:\s*(.+?)\s*$", text, re.MULTILINE)
    if lines:
        thought = re.search(r"Thought:\s*(.*?)(?=^\s*Action:|\Z)", text, re.MULTILINE | re.DOTALL)
        return (thought.group(1).strip() if thought else ""), lines[-1].strip()
    thoughts = re.findall(r"<think>(.*?)</think>", text, re.DOTALL)
    return (thoughts[-1].strip() if thoughts else ""), ""


_TAGGED = st.builds(
    "{}<think>{}</think>{}<action>{}{}".format,
    st.sampled_from(["", "\n", "Sure. "]),
    _WORDS,
    st.sampled_from(["", "\n", " so "]),
    _WORDS,
    st.sampled_from(["</action>", "</action>\n", "", "\n"]),
)
_UNTHOUGHT = st.builds("<action>{}</action>".format, _WORDS)
_UNFINISHED = st.builds("{}<think>{}".format, _WORDS, _WORDS)
_REACT = st.builds("Thought:{}{}\nAction:{}x{}".format, _WORDS, st.sampled_from(["", "\n\n"]), _WORDS, _WORDS)


@settings(max_examples=400, deadline=None)
@given(_TAGGED | _UNTHOUGHT | _UNFINISHED | _REACT | _WORDS)
@example("Thought: a\n\n  Action:\n\n  go to shelf 2  \n")
def test_replies_of_the_forms_that_are_taught_read_as_they_always_did(reply: str):
    parsed = parse_reply(reply)
    assert (parsed.thought, parsed.action) == _first_parser(reply)


@pytest.mark.parametrize(
    ("reply", "thought", "action"),
    [
        ("<think>the <action> tag, so</think><action>look</action>", "the <action> tag, so", "look"),
        (
            "<think>or <action>wait</action>?</think>\n<action>look</action>",
            "or <action>wait</action>?",
            "look",
        ),
        ("<think>Action: wait\nAction: look?</think>", "Action: wait\nAction: look?", ""),
        ("<think>a</think>\nAction: look", "a", "look"),
        ("it was there [gen_001]\n</think>\n<action>look</action>", "it was there [gen_001]", "look"),
        ("<action>look</action><think>done</think>", "done", "look"),
        ("**Thought:** it is there\n**Action:** go to shelf 2", "it is there", "go to shelf 2"),
        ("**Action: look**", "", "look"),
        ("- **Action**: `look`", "", "look"),
        ("### Action: look", "", "look"),
        ("Action: `look`", "", "look"),
        ("Action:\n```\nlook\n```", "", "look"),
        ("THOUGHT: hm\nACTION: look", "hm", "look"),
        ("<action>`look`</action>", "", "look"),
        ("<action>\n```text\nlook\n```\n</action>", "", "look"),
        ("<action>click[**bold**]</action>", "", "click[**bold**]"),
    ],
)
def test_an_action_stands_outside_the_thoughts_whatever_markdown_is_around_it(
    reply: str, thought: str, action: str
):
    parsed = parse_reply(reply)
    assert (parsed.thought, parsed.action) == (thought, action)


_PIECES = (
    "\n", " ", "\t", "\r\n", " \n", "<think>", "</think>", "<think></think>", "<action>", "</action>", "Action:",
    "Action: ", "\nAction:", "\nAction: a", "Thought:", "\nThought: \n", "[", "[a", "[a]", "*", "**Action:** ", "`",
    "```\n", "#", "\n>", "_", "-", "a", "é", "\ud800", "\x1b[", "\u2028",
)  # fmt: skip


@pytest.mark.parametrize("before", ["", "Action: a", "<think>", "<action>", "</think>"])
def test_the_longest_reply_is_read_at_once(before: str):
    known = frozenset({"a"})
    slowest = 0.0
    for piece in _PIECES:
        text = before + piece * (60_000 // len(piece)) + "b"
        began = time.process_time()
        parsed = parse_reply(text)
        citations(text, known)
        slowest = max(slowest, time.process_time() - began)
        assert len(parsed.action) <= LONGEST_ACTION
    assert slowest < 0.1


@given(st.text(st.characters(), max_size=40), st.integers(1, 5))
def test_a_reply_of_any_length_is_kept_storable_and_bounded_with_its_end(text: str, times: int):
    reply = text * (times * LONGEST_REPLY // max(len(text), 1)) + "<action>look</action>"
    kept = kept_reply(reply)
    kept.encode()
    assert len(kept) <= LONGEST_REPLY + 60
    assert ("characters cut" in kept) == (len(reply) > LONGEST_REPLY) or "characters cut" in text
    assert kept.endswith("<action>look</action>")
