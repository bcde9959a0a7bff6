"""Reading a policy's reply."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from krill_tui.agent.actions import citations, format_reply, parse_reply


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
