from __future__ import annotations

import pytest

from krill_tui.errors import SplitProtectedError
from krill_tui.models.builtin_embedder import BuiltinEmbedder
from krill_tui.models.scripted import ScriptedChat
from krill_tui.skill import GENERAL, Skill, SkillKind, SkillOrigin, SkillProposal
from krill_tui.skills.bank import SkillBank
from krill_tui.skills.builtin_teacher import BuiltinTeacher
from krill_tui.skills.distill import distill
from krill_tui.skills.evolve import evolve, select_failures
from krill_tui.skills.llm_teacher import LLMTeacher
from krill_tui.skills.plays import Conditions, conditions, deeds, faults, inspected, sightings
from krill_tui.skills.teacher import PROTECTED_SPLITS, TeacherCall, check_teachable
from krill_tui.trajectory import StopReason, Trajectory
from tests.episodes import HEAT, LOST, episode


def test_sightings_are_where_the_world_put_things_not_where_the_agent_did() -> None:
    back = (*HEAT, ("examine shelf 1", "On the shelf 1, you see a mug 1, and a vase 1."))
    assert sightings(episode(play=back)) == {"mug 1": "cabinet", "plate 2": "cabinet", "vase 1": "shelf"}
    assert inspected(episode()) == {"cabinet", "shelf"}, "the microwave stayed closed"


def test_deeds_are_what_was_done_with_the_tasks_object_in_order() -> None:
    done = [(deed.verb, deed.place) for deed in deeds(episode())]
    assert done == [("take", "cabinet"), ("heat", "microwave"), ("put", "shelf")]


def test_faults_name_what_went_wrong() -> None:
    found = faults(episode(play=LOST, success=False))
    assert (found.repeated, found.unopened, found.revisited) == (True, True, True)
    assert not any((faults(episode()).repeated, faults(episode()).unopened, faults(episode()).revisited))


async def test_the_miner_writes_where_objects_are_in_the_form_a_small_policy_reads() -> None:
    report = await BuiltinTeacher().distill([episode(), episode("e2", success=False)], [], env="alfworld")
    mug = next(p for p in report.proposals if p.principle == "mug: cabinet")
    assert (mug.name, mug.tier, mug.evidence) == ("Where the mug is", GENERAL, ("e1", "e2"))
    assert mug.when_to_apply == "looking for a mug (seen there 2 of 2 times)"


async def test_the_same_object_of_the_same_game_counts_once_however_often_it_was_played() -> None:
    group = [episode(f"e{i}", task_id="game/1") for i in range(8)]
    report = await BuiltinTeacher().distill(group, [], env="alfworld")
    assert any("seen there 1 of 1 times" in p.when_to_apply for p in report.proposals)


async def test_the_miner_writes_the_order_that_won_into_the_categorys_tier() -> None:
    report = await BuiltinTeacher().distill([episode()], [], env="alfworld")
    heat = next(p for p in report.proposals if p.tier == "Heat")
    assert heat.name == "Heat before putting"
    assert heat.principle == "heat: microwave (take it, go there, heat it, then put it)"


async def test_lessons_need_two_failures_and_name_them() -> None:
    lost = [episode(f"e{i}", play=LOST, success=False) for i in range(2)]
    one = await BuiltinTeacher().distill(lost[:1], [], env="alfworld")
    assert not [p for p in one.proposals if p.kind is SkillKind.LESSON]
    two = await BuiltinTeacher().distill(lost, [], env="alfworld")
    lessons = [p for p in two.proposals if p.kind is SkillKind.LESSON]
    assert [p.name for p in lessons] == ["Look into more places", "Search each place once"], "two in a tier"
    assert all(p.evidence == ("e0", "e1") and p.tier == "Heat" for p in lessons)
    assert all("2 of 2 failures" in p.when_to_apply for p in lessons)
    said = [
        Skill(id=f"heat_{i:03}", name=p.name, principle=p.principle, tier="Heat")
        for i, p in enumerate(lessons)
    ]
    again = await BuiltinTeacher().distill(lost, said, env="alfworld")
    assert not [p for p in again.proposals if p.kind is SkillKind.LESSON], "the tier's two are taken"


def test_what_closed_places_held_is_counted() -> None:
    assert conditions(episode()) == Conditions(opened=1, filled=1)
    assert conditions(episode(play=LOST)) == Conditions()


async def test_episodes_that_broke_or_were_stopped_teach_nothing() -> None:
    broken = [
        episode(stop=StopReason.ERROR, success=False),
        episode(stop=StopReason.CANCELLED, success=False),
    ]
    assert (await BuiltinTeacher().distill(broken, [], env="alfworld")).proposals == ()


async def test_the_miner_says_it_is_no_llm_and_its_call_is_on_record() -> None:
    calls: list[TeacherCall] = []
    teacher = BuiltinTeacher()
    await teacher.distill([episode()], [], env="alfworld", on_call=calls.append)
    assert (teacher.is_llm, teacher.name) == (False, "builtin miner")
    assert calls[0].trajectories == ("e1",) and "mug: cabinet" in calls[0].reply


async def test_evolution_learns_where_the_missing_objects_of_failed_tasks_are() -> None:
    bank = SkillBank.in_memory()
    lost = [episode(f"e{i}", success=False, play=HEAT[:2], split="evolve") for i in range(4)]
    report = await evolve(lost, bank, BuiltinTeacher(), BuiltinEmbedder())
    assert report.accepted[0].principle == "mug: cabinet" and report.accepted[0].tier == GENERAL
    assert report.accepted[0].origin.phase == "evolve" and report.accepted[0].origin.cycle == 1
    assert "plate: cabinet" not in [s.principle for s in report.accepted], "no failed task asked for a plate"
    assert bank.cycle == 1 and report.failing == ("Heat",) and report.reason == ""


async def test_evolution_corrects_a_location_that_evidence_contradicts_and_keeps_the_old_version() -> None:
    bank = SkillBank.in_memory()
    wrong = SkillProposal(
        name="Where the mug is",
        principle="mug: shelf",
        when_to_apply="looking for a mug (seen there 2 of 3 times)",
    )
    bank.add(wrong, SkillOrigin())
    one = [episode("e0", success=False, play=HEAT[:2], split="evolve")]
    assert not (await evolve(one, bank, BuiltinTeacher(), BuiltinEmbedder())).accepted, (
        "no more than the evidence for it"
    )
    three = [episode(f"e{i}", success=False, play=HEAT[:2], split="evolve") for i in range(3)]
    report = await evolve(three, bank, BuiltinTeacher(), BuiltinEmbedder())
    assert [(s.id, s.principle, s.version) for s in report.accepted] == [("gen_001", "mug: cabinet", 2)]
    assert [change.kind for change in bank.history("gen_001")] == ["add", "refine"]


async def test_evolution_that_does_nothing_says_why() -> None:
    bank = SkillBank.in_memory()
    won = [episode(split="evolve")]
    report = await evolve(won, bank, BuiltinTeacher(), BuiltinEmbedder())
    assert report.reason == "no category is below 40% (the worst: Heat 100%)"
    assert (
        await evolve([], bank, BuiltinTeacher(), BuiltinEmbedder())
    ).reason == "no episode of the validation was finished"
    lost = [episode("e1", success=False, play=HEAT[:2], split="evolve")]
    await evolve(lost, bank, BuiltinTeacher(), BuiltinEmbedder())
    again = await evolve(lost, bank, BuiltinTeacher(), BuiltinEmbedder())
    assert again.chosen == ("e1",) and again.reason == "the teacher proposed nothing"


def test_failures_are_taken_from_all_failing_categories_in_turn_worst_first() -> None:
    def play(category: str, number: int, success: bool, task: str = "") -> Trajectory:
        return episode(
            f"{category}{number}", category=category, success=success, task_id=task or f"{category}{number}"
        )

    played = [play("Heat", i, False) for i in range(4)]
    played += [play("Cool", i, i < 1) for i in range(4)] + [play("Pick", i, i < 3) for i in range(4)]
    chosen = [t.id for t in select_failures(played, max_analysis_deep=4)]
    assert chosen == ["Heat0", "Cool1", "Heat1", "Cool2"]
    near = [play("Cool", i, i < 3) for i in range(10)]
    assert len(select_failures(near, max_analysis_deep=9, max_analysis_shallow=2)) == 2


def test_another_task_comes_before_another_failure_of_the_same_one() -> None:
    group = [episode(f"a{i}", success=False, task_id="a") for i in range(3)] + [
        episode("b", success=False, task_id="b")
    ]
    assert [t.id for t in select_failures(group)][:2] == ["a0", "b"]


@pytest.mark.parametrize("split", sorted(PROTECTED_SPLITS))
async def test_no_teacher_sees_a_split_that_is_reported(split: str) -> None:
    secret, bank = [episode(split=split)], SkillBank.in_memory()
    chat = ScriptedChat([])
    for teacher in (BuiltinTeacher(), LLMTeacher(chat)):
        with pytest.raises(SplitProtectedError, match=split):
            await teacher.distill(secret, [], env="alfworld")
        with pytest.raises(SplitProtectedError, match=split):
            await teacher.evolve(secret, [], category_rates={}, bank_skills=[], max_new_skills=3)
        with pytest.raises(SplitProtectedError, match=split):
            await teacher.evolve([], secret, category_rates={}, bank_skills=[], max_new_skills=3)
        with pytest.raises(SplitProtectedError, match=split):
            await distill(secret, bank, teacher, BuiltinEmbedder(), env="alfworld")
        with pytest.raises(SplitProtectedError, match=split):
            await evolve(secret, bank, teacher, BuiltinEmbedder())
    assert chat.requests == [] and len(bank) == 0


def test_an_imported_episode_of_a_reported_game_is_known_by_its_path() -> None:
    with pytest.raises(SplitProtectedError):
        check_teachable([episode(split="", task_id="json_2.1.1/valid_unseen/pick/trial/game.tw-pddl")])
    check_teachable([episode(split="train"), episode(split=""), episode(split="evolve")])
