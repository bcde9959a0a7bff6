"""The builtin teacher in real games whose rules are not the usual ones: heating at the stove, cleaning elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from krill_tui.envs.alfworld.expert import AlfworldExpert
from krill_tui.envs.base import StepResult
from krill_tui.errors import SplitProtectedError
from krill_tui.models.builtin_embedder import BuiltinEmbedder
from krill_tui.skill import Skill, SkillOrigin, SkillProposal
from krill_tui.skills import lessons
from krill_tui.skills.bank import SkillBank
from krill_tui.skills.builtin_teacher import BuiltinTeacher
from krill_tui.skills.evolve import category_rates, evolve
from krill_tui.skills.plays import Faults, conditions, faults, trials
from krill_tui.skills.procedures import best_station, tally_trials, treatment_skills
from krill_tui.skills.text import Station, parse_location, parse_station
from krill_tui.trajectory import Trajectory
from tests.household_play import (
    fetcher,
    goal_of,
    goer,
    household_games,
    knowing,
    play,
    puts,
    stubborn,
    wanderer,
)

STOVE = {"heat": "stoveburner"}
MICROWAVE = SkillProposal(
    name="Heat before putting", principle=Station("heat", "microwave").principle, tier="Heat"
)


def heat_games(count: int = 4):
    return household_games(count, STOVE, category="Heat", holds="stoveburner")


def wandering(count: int = 4, shuns: str = "", split: str = "train") -> list[Trajectory]:
    return [
        play(i, c, g, wanderer(g, 3, shuns=shuns), id=f"wander/{i}", split=split)
        for i, c, g in heat_games(count)
    ]


def insisting(count: int = 4, split: str = "train") -> list[Trajectory]:
    return [
        play(i, c, g, stubborn(g, "heat", "microwave"), id=f"stubborn/{i}", split=split, limit=30)
        for i, c, g in heat_games(count)
    ]


def bank_with(*proposals: SkillProposal) -> SkillBank:
    bank = SkillBank.in_memory()
    for proposal in proposals:
        bank.add(proposal, SkillOrigin())
    return bank


def test_lost_episodes_show_where_heating_is_possible_though_nobody_did_it() -> None:
    lost = wandering()
    assert not any(t.success for t in lost)
    for trajectory in lost:
        found = trials(trajectory)
        assert ("heat", "stoveburner") in found.possible and ("heat", "microwave") in found.impossible
        assert not found.done
    (skill,) = treatment_skills(lost, [], ["Heat"])
    assert skill.principle == "heat: stoveburner (take it, go there, heat it, then put it)"
    assert skill.when_to_apply == (
        "Heat tasks (heating was possible at stoveburner in 4 of 4 games, at microwave in 0 of 4 games)"
    )
    assert skill.evidence == tuple(t.id for t in lost)


def test_a_game_counts_once_however_often_it_was_played() -> None:
    games = heat_games(1) * 3
    lost = [play(i, c, g, wanderer(g, n), id=f"{i}/{n}") for n, (i, c, g) in enumerate(games)]
    assert tally_trials(lost)["heat", "stoveburner"].counts == (1, 1)


async def test_a_win_says_it_too_and_is_named_first() -> None:
    games = heat_games(2)
    played = wandering(1) + [
        play(i, c, g, knowing(g, "heat", "stoveburner"), id=f"won/{i}") for i, c, g in games
    ]
    assert [t.success for t in played] == [False, True, True]
    report = await BuiltinTeacher().distill(played, [], env="alfworld")
    heat = next(p for p in report.proposals if p.tier == "Heat" and parse_station(p.principle))
    assert parse_station(heat.principle) == Station("heat", "stoveburner")
    assert heat.evidence[:2] == ("won/" + games[0][0], "won/" + games[1][0])
    assert "2 won games did so; heating was possible at stoveburner in 2 of 2 games" in heat.when_to_apply


async def test_evolution_replaces_a_default_that_the_counts_contradict_before_it_adds_locations() -> None:
    bank = bank_with(MICROWAVE)
    lost = insisting(split="evolve") + wandering(split="evolve")
    report = await evolve(lost, bank, BuiltinTeacher(), BuiltinEmbedder(), max_new_skills=1)
    (skill,) = report.accepted
    assert (skill.id, skill.version, skill.tier) == ("heat_001", 2, "Heat")
    assert parse_station(skill.principle) == Station("heat", "stoveburner")
    reason = bank.history("heat_001")[-1].reason
    assert reason.startswith("said microwave, but heating was possible at stoveburner in ")
    assert "at microwave in 0 of " in reason and "times in vain" in reason
    later = await evolve(lost, bank, BuiltinTeacher(), BuiltinEmbedder(), max_new_skills=3)
    assert later.accepted and "heat_001" not in {s.id for s in later.accepted}, "what is right stays"
    assert any(parse_location(s.principle) or s.kind == "lesson" for s in later.accepted)


async def test_only_counts_against_it_say_at_least_where_not_to_go_until_the_place_is_known() -> None:
    bank = bank_with(MICROWAVE)
    lost = insisting(split="evolve")
    assert not best_station(tally_trials(lost), "heat")
    report = await evolve(lost, bank, BuiltinTeacher(), BuiltinEmbedder(), max_new_skills=1)
    assert report.accepted[0].principle == (
        "heat: take it, try each place but microwave, heat it there, then put it"
    )
    assert "at microwave in 0 of 4 games" in report.accepted[0].when_to_apply
    found = await evolve(
        wandering(split="evolve"), bank, BuiltinTeacher(), BuiltinEmbedder(), max_new_skills=1
    )
    assert (found.accepted[0].id, found.accepted[0].version) == ("heat_001", 3)
    assert parse_station(found.accepted[0].principle) == Station("heat", "stoveburner")


async def test_few_counts_against_a_default_change_nothing() -> None:
    bank = bank_with(MICROWAVE)
    report = await evolve(insisting(1, split="evolve"), bank, BuiltinTeacher(), BuiltinEmbedder())
    assert bank.get("heat_001").version == 1
    assert all(s.id != "heat_001" for s in report.accepted)


async def test_evidence_may_come_from_another_category_and_from_episodes_outside_the_validation() -> None:
    games = household_games(12, STOVE, holds="stoveburner")
    others = [(i, c, g) for i, c, g in games if c != "Heat"]
    elsewhere = [play(i, c, g, wanderer(g, 7), id=f"rl/{i}") for i, c, g in others]
    assert best_station(tally_trials(elsewhere), "heat") == "stoveburner", (
        "something that heats was carried by"
    )
    lost = insisting(split="evolve")
    bank = bank_with(MICROWAVE)
    await evolve(lost, bank, BuiltinTeacher(), BuiltinEmbedder(), max_new_skills=1, background=elsewhere)
    assert parse_station(bank.get("heat_001").principle) == Station("heat", "stoveburner")
    with pytest.raises(SplitProtectedError):
        secret = [elsewhere[0].model_copy(update={"split": "valid_seen"})]
        await evolve(lost, bank, BuiltinTeacher(), BuiltinEmbedder(), background=secret)


def test_a_skill_in_other_words_is_corrected_and_one_with_counts_of_its_own_holds() -> None:
    lost = wandering(2)
    worded = Skill(id="heat_009", name="Hot", principle="Use the microwave to heat the food.", tier="Heat")
    (fix,) = treatment_skills(lost, [worded], ["Heat"])
    assert fix.refines == "heat_009"
    counted = Skill(
        id="heat_001",
        name="Heat",
        principle=Station("heat", "microwave").principle,
        when_to_apply="Heat tasks (heating was possible at microwave in 5 of 5 games)",
        tier="Heat",
    )
    assert treatment_skills(lost, [counted], ["Heat"]) == [], "two games do not outweigh five"
    assert treatment_skills(wandering(6), [counted], ["Heat"])[0].refines == "heat_001"
    old = Skill(
        id="heat_002",
        name="Heat",
        principle="heat: take it, go to microwave, heat it, then put it",
        tier="Heat",
    )
    assert treatment_skills(lost, [old], ["Heat"])[0].refines == "heat_002"


@pytest.mark.parametrize(("treatment", "category", "station"), [
    ("heat", "Heat", "stoveburner"), ("cool", "Cool", "sinkbasin"), ("clean", "Clean", "countertop"),
])  # fmt: skip
async def test_one_cycle_repairs_a_category_for_a_player_that_follows_its_skill(
    treatment: str, category: str, station: str
) -> None:
    bank = bank_with(
        SkillProposal(
            name="As usual",
            principle=Station(
                treatment, {"heat": "microwave", "cool": "fridge", "clean": "sinkbasin"}[treatment]
            ).principle,
            tier=category,
        )
    )
    games = household_games(6, {treatment: station}, category=category, holds=station)

    def validate() -> list[Trajectory]:
        said = parse_station(bank.skills(category)[0].principle)
        assert said is not None
        return [
            play(i, c, g, knowing(g, treatment, said.receptacle), id=f"{bank.cycle}/{i}", split="evolve")
            for i, c, g in games
        ]

    before = validate()
    assert category_rates(before)[category].rate == 0
    explored = [play(i, c, g, wanderer(g, 1), id=f"rl/{i}") for i, c, g in games]
    await evolve(before, bank, BuiltinTeacher(), BuiltinEmbedder(), background=explored)
    assert category_rates(validate())[category].rate == 1, (
        "the same player, the same games, one skill refined"
    )


def test_faults_of_real_episodes() -> None:
    (lost,) = wandering(1)
    assert faults(lost).missed and not faults(lost).revisited
    (game,) = household_games(1, {}, category="Pick")
    target = goal_of(game[2]).target
    found = faults(play(*game, wanderer(game[2], 1, shuns=target)))
    assert found.carried and not (found.untaken or found.wrong or found.kept or found.unsearched)
    linger = goer(lambda: target, lambda action, held: False)
    found = faults(play(*game, fetcher(game[2], lambda result, held: _or_look(linger, result, held))))
    assert found.kept and not found.carried


def test_faults_around_a_treatment() -> None:
    (game,) = household_games(1, {}, category="Heat")
    target = goal_of(game[2]).target
    raw = play(*game, fetcher(game[2], goer(lambda: target, lambda action, held: puts(action, held, target))))
    assert faults(raw).untreated and not raw.success
    won = play(*game, knowing(game[2], "heat", "microwave"))
    assert won.success and faults(won) == Faults()


def test_faults_of_players_that_never_take_the_right_thing(monkeypatch: pytest.MonkeyPatch) -> None:
    (game,) = household_games(1, {}, category="Pick")
    thing = goal_of(game[2]).object
    wanted = f"take {thing} "
    expert = AlfworldExpert()

    def admires(result: StepResult) -> str:
        action = expert.act(result)[1]
        return "look" if action.startswith(wanted) else action

    found = faults(play(*game, admires))
    assert found.untaken and not (found.carried or found.wrong or found.unsearched)

    def greedy(result: StepResult) -> str:
        others = [a for a in result.admissible if a.startswith("take ") and not a.startswith(wanted)]
        if others:
            return others[0]
        places = [a for a in result.admissible if a.startswith("go to ")]
        return Random(len(result.observation)).choice(places)

    found = faults(play(*game, greedy))
    assert found.wrong and not found.full
    grabs = ["take x 1 from y 1"] * 3
    both = play(*game, lambda result: grabs.pop() if grabs and _holds_something(result) else greedy(result))
    assert faults(both).full
    shown = conditions(both)
    assert shown.laden > 10 and shown.laden_takes == 0, "the world lets one thing be held at a time"
    monkeypatch.setattr(lessons, "MOST_PER_TIER", 9)
    (lesson,) = (
        p for p in lessons.lesson_skills([both], [], least=1) if p.principle.startswith("take: put down")
    )
    assert lesson.reason == (
        f"1 of 1 failures; with a thing in hand another could be taken at 0 of {shown.laden} steps"
    )
    opened = play(*game, admires)
    assert 0 <= conditions(opened).filled <= conditions(opened).opened
    assert faults(play(*game, lambda result: "look", limit=5)).unsearched


def _or_look(act: Callable[[StepResult, str], str], result: StepResult, held: str) -> str:
    try:
        return act(result, held)
    except StopIteration:
        return "look"


def _holds_something(result: StepResult) -> bool:
    return any(a.startswith(("move ", "put ")) for a in result.admissible)
