"""Readers of foreign text take linear time: 60,000 characters of anything are read at once."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import pytest

from krill_tui.agent.prompts import PromptOptions, episode_block, render_turn
from krill_tui.envs.alfworld import text as household
from krill_tui.envs.alfworld.expert import AlfworldExpert
from krill_tui.envs.alfworld.grammar import compile_grammar, parse_query, split_task
from krill_tui.envs.alfworld.pddl import parse_expression
from krill_tui.envs.base import StepResult
from krill_tui.envs.clients.site_pages import read_site_page
from krill_tui.envs.webshop.expert import WebshopExpert
from krill_tui.envs.webshop.reading import coverage, read_page, read_wish
from krill_tui.envs.webshop.session import parse_action
from krill_tui.errors import DataError
from krill_tui.io.secrets import masked
from krill_tui.io.text import clean_text, markdown_text, one_line, plain
from krill_tui.models.chat_answer import with_think_tags
from krill_tui.skills.formats import conversations
from krill_tui.skills.formats.memory_items import memory_items
from krill_tui.skills.formats.records import Refused
from krill_tui.skills.formats.skill_md import parse_skill_file
from krill_tui.skills.plays import faults, moments, sightings
from krill_tui.skills.purchases import purchase
from krill_tui.skills.replies import UnreadableReply
from krill_tui.skills.replies import parse_reply as parse_taught
from krill_tui.skills.tiers import household_category, known_tier, shopping_category
from krill_tui.trajectory import Step, StopReason, Task, Trajectory

LENGTH = 60_000
SECONDS = 0.1


def episode(text: str, env: str) -> Trajectory:
    steps = tuple(
        Step(index=n, observation=text, action=text, text=text, admissible=(text,), thought=text)
        for n in range(2)
    )
    return Trajectory(
        id="e",
        env=env,
        task_id="t",
        split="train",
        task=text,
        category="",
        steps=steps,
        final_observation=text,
        stop_reason=StopReason.FAILURE,
    )


def household_sentences(text: str) -> object:
    return [
        reader(text)
        for reader in (
            household.parse_task,
            household.task_sentence,
            household.room_receptacles,
            household.sight,
            household.taken,
            household.placed,
            household.treated,
        )
    ]


READERS: dict[str, Callable[[str], object]] = {
    "site page": read_site_page,
    "shop page": lambda text: (read_page(text, ()), read_page(text, ("buy now",))),
    "wish": read_wish,
    "query": lambda text: coverage("red hat", text),
    "action": parse_action,
    "household": household_sentences,
    "experts": lambda text: (
        AlfworldExpert().act(StepResult(text, (text,))),
        WebshopExpert().act(StepResult(text, (text,))),
    ),
    "purchase": lambda text: purchase(episode(text, "webshop")),
    "household episode": lambda text: (
        sightings(episode(text, "alfworld")),
        list(moments(episode(text, "alfworld"))),
        faults(episode(text, "alfworld")),
    ),
    "prompt": lambda text: (
        render_turn(
            StepResult(text),
            Task(id="t", env="webshop", split="train"),
            PromptOptions(style="compact"),
            first=True,
        ),
        episode_block(episode(text, "webshop")),
    ),
    "conversation": lambda text: conversations.read_steps([("human", text), ("gpt", text), ("human", text)]),
    "conversation's task": lambda text: conversations.read_task(f"[SEP]{text}", False),
    "conversation's reward": lambda text: conversations.read_reward(None, text),
    "endpoint's reply": with_think_tags,
    "teacher's reply": parse_taught,
    "SKILL.md": parse_skill_file,
    "memory": memory_items,
    "categories": lambda text: (household_category(text, text), shopping_category(text), known_tier(text)),
    "terminal": lambda text: (
        plain(text),
        one_line(text),
        markdown_text(text),
        clean_text(text),
        masked(text),
    ),
    "grammar": compile_grammar.__wrapped__,
    "grammar's task": split_task,
    "condition": parse_query,
    "PDDL": parse_expression,
}
PIECES = (
    "\n", " ", " \n", "[SEP]", "[button] ", "You have clicked ", "Page 1", "1", ", and price lower than 1 dollars",
    " with ", " with a: b", " a ", "On the a 1 ", "You pick up the a 1 from ", "Your task is to: ", "Instruction: ",
    "\nAction: ", "Thought: ", "\n\n ", "AVAILABLE ACTIONS:", "<a ", "<a b='", '<a href="', "<!--", "<", "</", "<![",
    "<?", "&", "<script>", "<button class=btn>", '"', '"""', '"""a"""', "(", "#", "{", "[", "action a {",
    'action a {"""', 'grammar :: """', "x", "'s", "a-", "3.", "put a ", ";", "\\",
)  # fmt: skip
BEFORE = ("", "Your score (min 0.0, max 1.0)", "Instruction: ", 'action a {template :: "', 'x"""', "<a ")


@pytest.mark.parametrize("name", READERS)
def test_a_long_text_of_any_kind_is_read_at_once(name: str) -> None:
    def seconds(text: str) -> float:
        began = time.process_time()
        with contextlib.suppress(DataError, Refused, UnreadableReply):
            READERS[name](text)
        return time.process_time() - began

    for before in BEFORE[:1] if name in ("query", "terminal") else BEFORE:
        for piece in PIECES:
            text = before + piece * (LENGTH // len(piece)) + "\x00"
            assert seconds(text) < SECONDS or seconds(text) < SECONDS, (before, piece)


def test_a_number_of_many_digits_in_a_page_is_no_page_number() -> None:
    page = f"Page {'1' * 5000} (Total results: 1) [SEP] a [SEP] b [SEP] $1"
    seen = episode(page, "webshop")
    steps = tuple(
        Step(index=n, observation=page, action=action, text="", admissible=("click[a]",))
        for n, action in enumerate(["click[a]", "click[buy now]"])
    )
    bought = purchase(seen.model_copy(update={"steps": steps}))
    assert bought is not None
    assert bought.rank == 1
