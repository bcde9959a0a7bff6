from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krill_tui.errors import ModelError
from krill_tui.models.base import Message
from krill_tui.models.builtin_embedder import BuiltinEmbedder
from krill_tui.models.scripted import ScriptedChat
from krill_tui.skill import GENERAL, SkillKind, SkillOrigin, SkillProposal, SkillStatus
from krill_tui.skills.admission import admit
from krill_tui.skills.bank import SkillBank
from krill_tui.skills.distill import distill
from krill_tui.skills.evolve import evolve
from krill_tui.skills.llm_teacher import LLMTeacher
from krill_tui.skills.prompts import render_trajectory
from krill_tui.skills.replies import UnreadableReply, parse_reply
from krill_tui.skills.teacher import TeacherCall
from tests.episodes import HEAT, LOST, episode

FIRST = {
    "name": "Heat first",
    "principle": "Heat it before placing.",
    "when_to_apply": "hot",
    "category": "heat",
}
SECOND = {
    "name": "Look once",
    "principle": "Visit each place once.",
    "when_to_apply": "",
    "category": "General",
}
REPLY = json.dumps([FIRST, SECOND])


@pytest.mark.parametrize(
    "reply",
    [
        REPLY,
        f"```json\n{REPLY}\n```",
        f"Here you are [gen_001]:\n\n{REPLY}\n\nGood luck [1]!",
        f"<think>a skill {'{'}x{'}'}?</think>\n```\n{REPLY}\n```\nDone.",
        json.dumps({"skills": [FIRST, SECOND]}),
        REPLY.replace('"', "'"),
        REPLY[:-1] + ",]",
        json.dumps([FIRST, SECOND], indent=2).replace('"heat"', '"heat",'),
        f"{json.dumps([FIRST, SECOND, {'name': 'x', 'principle': 'cut'}])[:-12]}",
    ],
)
def test_replies_that_hold_the_skills_somehow_are_read(reply: str) -> None:
    assert [(s.name, s.principle) for s in parse_reply(reply)] == [
        ("Heat first", "Heat it before placing."),
        ("Look once", "Visit each place once."),
    ]


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ("", "no JSON"),
        ("I cannot do that.", "no JSON"),
        ('[{"name": "Heat first", "princ', "breaks off"),
        ('{"answer": 42}', "without a list"),
        ("[1, 2]", "no objects"),
        ('[{"name": "a"}]', "element 0: principle"),
        ('[{"name": {}, "principle": "b"}]', "element 0: name"),
        ("[" * 10_000, "."),
    ],
)
def test_replies_without_skills_say_what_is_wrong_with_them(reply: str, says: str) -> None:
    with pytest.raises(UnreadableReply, match=says):
        parse_reply(reply)


def test_a_bad_element_does_not_cost_the_good_ones() -> None:
    assert [s.name for s in parse_reply(json.dumps([{"name": "x"}, FIRST]))] == ["Heat first"]
    assert parse_reply("[]") == []


@settings(deadline=None)
@given(st.text() | st.text(alphabet='[]{}",:\\n `abe0\x00\ud800'))
def test_no_reply_makes_the_parser_fail_otherwise(reply: str) -> None:
    try:
        skills = parse_reply(reply)
    except UnreadableReply as problem:
        assert "\n" not in str(problem)
    else:
        assert all(s.name and s.principle.isprintable() for s in skills)


def words_of(messages: Sequence[Message]) -> str:
    return "\n".join(message["content"] for message in messages)


async def test_each_trajectory_is_one_question_and_skills_go_to_the_tier_the_reply_names() -> None:
    chat = ScriptedChat(lambda _: REPLY)
    calls: list[TeacherCall] = []
    bank = SkillBank.in_memory()
    played = [episode("e1"), episode("e2", play=LOST, success=False)]
    report = await distill(
        played, bank, LLMTeacher(chat), BuiltinEmbedder(), env="alfworld", on_call=calls.append
    )
    assert len(chat.requests) == 2
    assert sorted(call.trajectories for call in calls) == [("e1",), ("e2",)]
    assert "won after 7 steps" in words_of(chat.requests[0]) and "lost" in words_of(chat.requests[1])
    assert [(s.id, s.tier, s.kind) for s in report.accepted] == [
        ("heat_001", "Heat", SkillKind.STRATEGY),
        ("gen_001", GENERAL, SkillKind.STRATEGY),
    ]
    assert report.accepted[0].origin.trajectories == ("e1",)
    assert [r.reason[:8] for r in report.refused] == ["heat_001", "gen_001 "], (
        "the second reply repeats the first"
    )


async def test_an_unreadable_reply_is_asked_again_and_the_complaint_is_in_the_question() -> None:
    chat = ScriptedChat(["Sure!", '[{"name": "cut', REPLY])
    result = await LLMTeacher(chat).distill([episode()], [], env="alfworld")
    assert len(result.proposals) == 2 and result.failures == ()
    assert "breaks off" in chat.requests[2][-1]["content"]
    assert len(chat.requests[2]) == 4, "only the last attempt is shown, prompts do not grow"


async def test_a_teacher_that_never_answers_in_form_is_a_record_and_the_others_go_on() -> None:
    def answer(messages: Sequence[Message]) -> str | Exception:
        text = words_of(messages)
        return "no" if "Episode bad" in text else ModelError("gone") if "Episode dead" in text else REPLY

    calls: list[TeacherCall] = []
    played = [episode("bad"), episode("dead"), episode("good")]
    teacher = LLMTeacher(ScriptedChat(answer))
    result = await teacher.distill(played, [], env="alfworld", on_call=calls.append)
    assert len(result.proposals) == 2 and len(calls) == result.calls == 3
    assert [(c.trajectories, c.attempts) for c in result.failures] == [(("bad",), 3), (("dead",), 1)]
    assert result.failures[0].reply == "no" and "unreadable reply" in (result.failures[0].error or "")


async def test_a_distillation_without_a_single_answer_is_an_error() -> None:
    teacher = LLMTeacher(ScriptedChat(lambda _: ModelError("the endpoint refused with 401")))
    with pytest.raises(ModelError, match=r"every call to the teacher failed.*401"):
        await distill([episode()], SkillBank.in_memory(), teacher, BuiltinEmbedder(), env="alfworld")


def test_a_long_episode_is_cut_in_the_middle_and_says_so() -> None:
    long = episode(play=[(f"go to drawer {i}", f"You arrive at drawer {i}. {'x' * 200}") for i in range(40)])
    text = render_trajectory(long, 600)
    assert len(text) < 600 * 4 + 400
    assert "go to drawer 0" in text and "go to drawer 39" in text and "go to drawer 20" not in text
    assert "steps left out]" in text
    assert "left out" not in render_trajectory(long, 10_000)


async def test_evolution_shows_the_teacher_bank_rates_and_failures_and_keeps_what_was_said() -> None:
    bank = SkillBank.in_memory()
    bank.add(SkillProposal(name="Old", principle="Put it away cold", tier="Heat"), SkillOrigin())
    better = {**FIRST, "refines": "heat_001", "reason": "it misled"}
    fresh = {"name": "Open it", "principle": "Open the microwave first.", "category": "general"}
    ghost = {"name": "Ghost", "principle": "Replace what is not there.", "refines": "heat_999"}
    chat = ScriptedChat([json.dumps([better, fresh, ghost])])
    lost = [episode(f"e{i}", play=LOST, success=False, split="evolve") for i in range(3)]
    report = await evolve(lost, bank, LLMTeacher(chat), BuiltinEmbedder())
    prompt = words_of(chat.requests[0])
    assert "[heat_001]" in prompt and "Heat: 0%" in prompt and "Episode e2" in prompt
    assert report.prompt.split() == prompt.split() and report.reply.startswith('[{"name": "Heat first"')
    assert [(s.id, s.version) for s in report.accepted] == [("heat_001", 2), ("heat_002", 1)]
    assert report.accepted[1].tier == "Heat", "the tier follows the failing category"
    assert report.refused[0].reason == "there is no skill 'heat_999' to refine"


async def test_evolution_takes_no_more_than_max_new_skills() -> None:
    many = [
        {"name": f"Skill {w}", "principle": f"{w} only"} for w in ("alpha", "bravo", "carrot", "delta", "egg")
    ]
    lost = [episode(success=False, play=HEAT[:2], split="evolve")]
    bank = SkillBank.in_memory()
    report = await evolve(
        lost, bank, LLMTeacher(ScriptedChat([json.dumps(many)])), BuiltinEmbedder(), max_new_skills=2
    )
    assert len(report.accepted) == 2 and len(bank) == 2
    assert {r.reason for r in report.refused} == {"past the 2 changes of one cycle"}


async def test_a_teacher_that_fails_ends_the_cycle_with_a_reason() -> None:
    lost = [episode(success=False, split="evolve")]
    teacher = LLMTeacher(ScriptedChat([ModelError("the endpoint answered 503")]))
    bank = SkillBank.in_memory()
    report = await evolve(lost, bank, teacher, BuiltinEmbedder())
    assert report.reason == "the teacher failed: the endpoint answered 503" and bank.cycle == 1


async def test_what_a_person_took_out_does_not_come_back() -> None:
    bank = SkillBank.in_memory()
    proposal = SkillProposal(name="Heat", principle="heat it first", tier="Heat")
    bank.add(proposal, SkillOrigin())
    bank.set_status("heat_001", SkillStatus.RETIRED)
    _, refused = await admit([proposal], bank, BuiltinEmbedder(), SkillOrigin())
    assert refused[0].reason == "heat_001 says the same (similarity 1.00)"
    again = proposal.model_copy(update={"refines": "heat_001", "principle": "other"})
    _, refused = await admit([again], bank, BuiltinEmbedder(), SkillOrigin())
    assert refused[0].reason == "heat_001 is retired"
