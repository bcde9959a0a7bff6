"""Drills of krill-tiny: conversations of one operation each, on which a token or two of an episode depends.

Lookups in the skills, looks at a place, ways through a room, where one has been, what was seen there, orders of steps.
Rendered by the product's own prompt code, like the episodes (`tiny_episodes.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from tiny_episodes import COMPACT, LAST_ID, Example, all_places, location_skill, step_kind
from tiny_orders import draw_orders

from krill_tui.agent.actions import format_reply
from krill_tui.agent.policies import place_hints, quote
from krill_tui.agent.prompts import render_system
from krill_tui.envs.alfworld import worlds
from krill_tui.envs.alfworld.expert import CLOSED_KINDS, AlfworldExpert, usual_places
from krill_tui.envs.alfworld.text import TREATMENT, Treatment, parse_task
from krill_tui.envs.base import StepResult
from krill_tui.skill import Skill
from krill_tui.skills.text import Station

_WELCOME = (
    "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you,"
)


_FETCHED = ("Pick", "PickTwo", "Clean", "Heat", "Cool")
"""Categories of tasks that begin with looking for a thing."""


def _begin(skills: Sequence[Skill]) -> Example:
    """A drill with these skills in its prompt, and no turn yet."""
    return Example(
        [{"role": "system", "content": render_system("alfworld", skills, COMPACT)}], [(0.0, 0.0)], [""]
    )


def _add_turn(
    example: Example, content: str, reply: str, kind: str, weight: tuple[float, float] = (1.0, 1.0)
) -> None:
    """What the world says, and the planner's reply with its loss weight (thought, action)."""
    example.messages += [{"role": "user", "content": content}, {"role": "assistant", "content": reply}]
    example.weights += [(0.0, 0.0), weight]
    example.kinds += ["", kind]


def draw_drill(rng: Random, most: int = 14) -> Example:
    """Many lookups in one list of up to `most` skills: any thing may lie anywhere, some asked for are not listed."""
    things, places = sorted(usual_places()), all_places()
    listed = rng.sample(things, rng.randint(2, most))
    numbers = rng.sample(range(1, LAST_ID + 1), len(listed))
    skills = {
        thing: location_skill(thing, rng.choice(places), number)
        for thing, number in zip(listed, numbers, strict=True)
    }
    treatment: Treatment = rng.choice(("clean", "heat", "cool"))
    procedure = Skill(
        id=f"{treatment}_{rng.randint(1, 9):03}",
        name="",
        principle=Station(treatment, rng.choice(places)).principle,
    )
    shown = [*skills.values(), *([procedure] if rng.random() < 0.7 else [])]
    missing = [thing for thing in things if thing not in skills]
    example = _begin(shown)
    for _ in range(rng.randint(10, 16)):
        thing = rng.choice(listed) if rng.random() < 0.8 else rng.choice(missing)
        category = rng.choice(_FETCHED)
        sentence = rng.choice(worlds._WORDINGS[category]).format(o=thing, r=rng.choice(places))
        action = "look"
        if procedure in shown and rng.random() < 0.25:
            category = procedure.id.partition("_")[0].title()
            sentence = rng.choice(worlds._WORDINGS[category]).format(o=thing, r=rng.choice(places))
            thought = quote(procedure)
            action = f"go to {thought.split()[1]} 1"
            sentence = f"You pick up the {thing} 1 from the {rng.choice(places)} 1.\nTask: {sentence}"
        elif thing in skills:
            thought = quote(skills[thing])
            action = f"go to {thought.split()[1]} 1"
            sentence = f"Task: {sentence}"
        else:
            sentence = f"Task: {sentence}"
            thought = f"find {thing}"
        # Mostly without an action: more lookups for the same number of tokens.
        reply = format_reply(thought, action) if rng.random() < 0.3 else f"<think>{thought}</think>"
        _add_turn(example, sentence.removesuffix("."), reply, step_kind(thought), (1.0, 0.2))
    return example


def draw_sight(rng: Random) -> Example:
    """Many looks at places, each time for another thing: is it among what one sees now, or is it to be looked for?

    What is asked for and absent was mostly seen earlier, so only the last observation tells.
    """
    things, places = sorted(usual_places()), all_places()
    pool = rng.sample(things, rng.randint(8, 20))
    listed = rng.sample(pool, rng.choice((0, 0, 1, 2, 3)))
    skills = {
        thing: location_skill(thing, rng.choice(places), number)
        for thing, number in zip(listed, rng.sample(range(1, LAST_ID + 1), len(listed)), strict=True)
    }
    example = _begin(list(skills.values()))
    for _ in range(rng.randint(8, 14)):
        place = f"{rng.choice(places)} {rng.choice((1, 1, 1, 2, 3, 4))}"
        seen = rng.sample(pool, min(len(pool) - 1, rng.choice((0, 1, 1, 2, 3, 5, 8, 12))))
        hidden = [thing for thing in pool if thing not in seen]
        thing = rng.choice(seen) if seen and rng.random() < 0.45 else rng.choice(hidden)
        number = rng.choice((1, 1, 2, 2, 3, 4))
        names = [f"{other} {number if other == thing else rng.choice((1, 2, 3))}" for other in seen]
        for other in rng.sample(seen, rng.randint(0, min(2, len(seen)))):
            if other != thing:
                names += [f"{other} {n}" for n in (5, 6)[: rng.randint(1, 2)]]
        category = rng.choice(_FETCHED)
        sentence = rng.choice(worlds._WORDINGS[category]).format(o=thing, r=rng.choice(places))
        content = f"{_view(rng, place, sorted(names))}\nTask: {sentence}".removesuffix(".")
        if thing in seen:
            thought, action = f"take {thing}", f"take {thing} {number} from {place}"
        else:
            thought, action = quote(skills[thing]) if thing in skills else f"find {thing}", ""
        reply = format_reply(thought, action) if action else f"<think>{thought}</think>"
        _add_turn(example, content, reply, step_kind(thought), (1.0, 0.2))
    return example


class _Asked(AlfworldExpert):
    """The planner, which follows these skills, asked for another task at every step; it keeps in mind what it saw."""

    def __init__(self, skills: Sequence[Skill]) -> None:
        self._quoted = place_hints(skills)
        super().__init__({key: places for key, (places, _) in self._quoted.items()})

    def answer(
        self, sentence: str, lines: Sequence[str], admissible: Sequence[str], held: str = ""
    ) -> tuple[str, str]:
        """(thought, action) once the world has said these lines, none of which may be needed."""
        self._goal = parse_task(sentence)
        for line in lines or [""]:
            self._observe(StepResult(line, tuple(admissible)))
        self._held = held or None
        self._useless.clear()
        self.last_hint = None
        thought, action = self._decide()
        if self.last_hint in self._quoted:
            thought = quote(self._quoted[self.last_hint][1])
        return thought, action


def draw_room(rng: Random) -> Example:
    """One room, and at every turn another task: where would one go? What there is, and what was seen, decides.

    The planner answers, as it would in an episode. Nothing is ever taken or put down: what it holds in some turns is
    made up for one.
    """
    kinds = rng.sample(all_places(), rng.randint(4, 14))
    counts = {kind: rng.choice((1, 1, 1, 2, 2, 3, 4, 6)) for kind in kinds}
    places = [f"{kind} {n}" for kind in sorted(kinds) for n in range(counts[kind], 0, -1)]
    things = rng.sample(sorted(usual_places()), rng.randint(20, 40))
    inside = {place: rng.sample(things, rng.choice((0, 0, 1, 1, 2, 4))) for place in places}
    closed = {place for place in places if place.split()[0] in CLOSED_KINDS}
    listed = rng.sample(things, rng.choice((0, 0, 3, 6, 8, 10)))
    numbers = rng.sample(range(1, LAST_ID + 1), len(listed))
    # Places of which there are few: one has soon been to all of them, and has to look elsewhere all the same.
    few = [kind for kind in kinds if counts[kind] <= 2] or kinds
    skills = [
        location_skill(thing, rng.choice(few if rng.random() < 0.7 else all_places()), number)
        for thing, number in zip(listed, numbers, strict=True)
    ]
    expert = _Asked(skills)
    example = _begin(skills)
    here, answer = "", f"{_WELCOME} you see {_listed(places)}."
    for turn in range(rng.randint(10, 18)):
        thing = rng.choice(listed) if listed and rng.random() < 0.7 else rng.choice(things)
        while here and here not in closed and thing in inside[here]:
            thing = rng.choice(things)
        kind = here.partition(" ")[0]
        held, categories = "", ["Pick", "PickTwo"]
        if here and here not in closed and rng.random() < 0.25:
            held = f"{thing} {rng.choice((1, 2))}"
            answer = f"You pick up the {held} from the {here}."
            # Not where it might be done at once.
            categories += [c for c, t in TREATMENT.items() if kind not in worlds.STATIONS[t]]
        target = rng.choice([other for other in kinds if other != kind])
        sentence = rng.choice(worlds._WORDINGS[rng.choice(categories)]).format(o=thing, r=target)
        admissible = [f"go to {place}" for place in sorted(places) if place != here]
        if here:
            admissible += [f"examine {here}", *([f"open {here}"] if here in closed else [])]
        asked = f"Your task is to: {sentence}" if not turn else f"Task: {sentence.removesuffix('.')}"
        thought, action = expert.answer(sentence, [answer], admissible, held)
        blank = "\n\n" if not turn else "\n"
        _add_turn(example, f"{answer}{blank}{asked}", format_reply(thought, action), step_kind(thought))
        if action.startswith("open "):
            closed.discard(here)
            answer = (
                f"You open the {here}. The {here} is open. In it, you see {_listed_things(inside[here])}."
            )
        elif action.startswith("go to "):
            here = action.removeprefix("go to ")
            answer = f"You arrive at loc {rng.randint(1, 45)}. "
            if here in closed:
                answer += f"The {here} is closed."
            else:
                answer += f"On the {here}, you see {_listed_things(inside[here])}."
        else:
            break
    return example


def draw_tour(rng: Random) -> Example:
    """Where one has been: a walk through a room, and after every place some tasks about things that are not there.

    Their skills name kinds of places of which some, all or none were passed. The planner says what is left to look at.
    """
    kinds = rng.sample(all_places(), rng.randint(4, 9))
    counts = {kind: rng.choice((1, 1, 1, 2, 2, 3, 4)) for kind in kinds}
    places = [f"{kind} {n}" for kind in kinds for n in range(1, counts[kind] + 1)]
    things = rng.sample(sorted(usual_places()), rng.randint(16, 30))
    listed, others, seen = things[:6], things[6:10], things[10:]
    listed = rng.sample(listed, rng.choice((0, 3, 4, 5, 6)))
    skills = {
        thing: location_skill(thing, rng.choice(kinds if rng.random() < 0.9 else all_places()), number)
        for thing, number in zip(listed, rng.sample(range(1, LAST_ID + 1), len(listed)), strict=True)
    }
    expert = _Asked(list(skills.values()))
    example = _begin(list(skills.values()))
    room = [place for k in sorted(kinds) for place in reversed(places) if place.split()[0] == k]
    lines = [f"{_WELCOME} you see {_listed(room)}.\n"]
    passed = dict.fromkeys(kinds, 0)
    kind = rng.choice(kinds)
    for _ in range(min(len(places) - 1, rng.randint(4, 10))):
        left = [other for other in kinds if passed[other] < counts[other]]
        if passed[kind] == counts[kind] or rng.random() < 0.4:
            kind = rng.choice(left)
        passed[kind] += 1
        here = f"{kind} {passed[kind]}"
        names = sorted(
            f"{thing} {rng.choice((1, 2, 3))}" for thing in rng.sample(seen, rng.choice((0, 0, 1, 2)))
        )
        lines.append(_view(rng, here, names))
        admissible = (f"examine {here}", *(f"go to {place}" for place in sorted(places) if place != here))
        # As often what a skill names is all passed as not, as far as there is such a thing.
        named = {thing: quote(skill).split()[1] for thing, skill in skills.items()}
        done = [thing for thing, kind in named.items() if counts.get(kind, 0) == passed.get(kind, 0)]
        for _ in range(rng.choice((1, 2, 2, 3))):
            rest = [thing for thing in listed if thing not in done]
            thing = rng.choice(rng.choice((done, rest, others)) or listed or others)
            sentence = rng.choice(worlds._WORDINGS[rng.choice(_FETCHED)]).format(
                o=thing, r=rng.choice(all_places())
            )
            thought, action = expert.answer(sentence, lines, admissible)
            content = "\n".join((*lines, f"Task: {sentence}".removesuffix(".")))
            lines = []
            _add_turn(example, content, format_reply(thought, action), step_kind(thought))
    return example


def draw_memory(rng: Random) -> Example:
    """What was seen where: a walk from place to place, and at every turn another task, mostly about a thing passed by.

    The planner answers. What is taken may be put where the next task wants a second one: what lay in two places, or
    twice in one, is still there, what lay once is not.
    """
    places = [
        f"{kind} {n}"
        for kind in rng.sample(all_places(), rng.randint(4, 8))
        for n in range(1, rng.choice((1, 1, 1, 2, 3)) + 1)
    ]
    pool = rng.sample(sorted(usual_places()), rng.randint(10, 30))
    inside: dict[str, list[str]] = {place: [] for place in places}
    for thing in pool:
        numbers = rng.sample((1, 1, 2, 2, 3, 4), rng.choice((1, 1, 2)))
        for number in sorted(set(numbers)):
            inside[rng.choice(places)].append(f"{thing} {number}")
    listed = rng.sample(pool, rng.choice((0, 0, 2, 4, 6)))
    skills = [
        location_skill(thing, rng.choice(all_places()), number)
        for thing, number in zip(listed, rng.sample(range(1, LAST_ID + 1), len(listed)), strict=True)
    ]
    expert = _Asked(skills)
    example = _begin(skills)

    def ask(lines: Sequence[str], thing: str, target: str, categories: Sequence[str]) -> str:
        """One turn, in which the world says these lines, and the planner's reply; its action."""
        sentence = rng.choice(worlds._WORDINGS[rng.choice(categories)]).format(o=thing, r=target)
        admissible = [f"go to {place}" for place in sorted(places) if place != here]
        admissible += [f"examine {here}", *(f"take {other} from {here}" for other in inside[here])]
        thought, action = expert.answer(sentence, lines, admissible)
        content = "\n".join((*lines, f"Task: {sentence}".removesuffix(".")))
        # A search is not the matter here: its thought says that the thing was nowhere seen.
        searches = step_kind(thought) != "take"
        reply = f"<think>{thought}</think>" if searches else format_reply(thought, action)
        recalls = action.startswith("go to ") and not searches
        _add_turn(example, content, reply, "recall" if recalls else step_kind(thought))
        return action

    def elsewhere(thing: str) -> str:
        """A kind of place where there is none of it, of the room as far as there is one."""
        holds = {place.split()[0] for place in places if any(o.split()[0] == thing for o in inside[place])}
        return rng.choice(
            sorted({place.split()[0] for place in places} - holds) or sorted({*all_places()} - holds)
        )

    passed: list[str] = []
    moved: dict[str, str] = {}
    """Things taken from where they were, and the kind of place where they are now, and a second one is wanted."""
    # Not everywhere, also with what is put somewhere: the planner would begin anew.
    for here in rng.sample(places, min(len(places) - 2, rng.randint(6, 11))):
        visible = {name.split()[0] for name in inside[here]}
        known = [name.split()[0] for place in passed for name in inside[place]]
        known = [thing for thing in known if thing not in visible]
        hidden = [thing for thing in pool if thing not in visible and thing not in known]
        chance = rng.random()
        choices = known if chance < 0.55 else sorted(visible) if chance < 0.85 else hidden
        thing = rng.choice(choices or hidden or pool)
        lines = [_view(rng, here, sorted(inside[here]))]
        if not passed:
            lines = [f"{_WELCOME} you see {_listed(sorted(places, reverse=True))}.\n", *lines]
        if moved and rng.random() < 0.35:
            thing = rng.choice(sorted(moved))
            action = ask(lines, thing, moved[thing], ("PickTwo",))
        else:
            action = ask(lines, thing, elsewhere(thing), _FETCHED)
        passed.append(here)
        if action.startswith("take ") and thing not in moved and rng.random() < 0.8:
            taken = action.removeprefix("take ").partition(" from ")[0]
            inside[here].remove(taken)
            target = elsewhere(thing)
            inside.setdefault(f"{target} 1", []).append(taken)
            lines = [
                f"You pick up the {taken} from the {here}.",
                f"You put the {taken} in/on the {target} 1.",
            ]
            moved[thing] = target
            ask(lines, thing, target, ("PickTwo",))
        elif known and rng.random() < 0.5:
            thing = rng.choice(known)
            if thing not in moved:
                ask([], thing, elsewhere(thing), _FETCHED)
    return example


def draw_order(rng: Random) -> Example:
    """Stations and lamps, one after the other, in the orders that the skills of one prompt say.

    Some of the things are taken from the station itself, so there is nowhere to go.
    """
    things, places = sorted(usual_places()), all_places()
    treatments: list[Treatment] = ["clean", "heat", "cool"]
    orders = draw_orders(rng)
    stations = {
        t: Skill(
            id=f"{t}_{rng.randint(1, 9):03}",
            name="",
            principle=orders.station(t, rng.choice(places)),
        )
        for t in rng.sample(treatments, rng.randint(1, 3))
    }
    listed = rng.sample([thing for thing in things if thing != "desklamp"], rng.randint(2, 6))
    lamp = rng.random() < 0.5
    known = [*listed, "desklamp"] if lamp else listed
    numbers = rng.sample(range(1, LAST_ID + 1), len(known))
    located = {
        thing: location_skill(thing, rng.choice(places), number)
        for thing, number in zip(known, numbers, strict=True)
    }
    look = Skill(id=f"look_{rng.randint(1, 9):03}", name="", principle=orders.look)
    skills = [*located.values(), *stations.values(), *([look] if lamp else [])]
    example = _begin(skills)

    def turn(answer: str, task: str, thought: str, action: str) -> None:
        content = f"{answer}\nTask: {task.removesuffix('.')}".strip()
        _add_turn(example, content, format_reply(thought, action), step_kind(thought), (1.0, 0.5))

    for _ in range(rng.randint(5, 8)):
        thing = rng.choice(listed)
        if lamp and rng.random() < 0.35:
            task = rng.choice(worlds._WORDINGS["Look"]).format(o=thing, r="desklamp")
            first = located["desklamp" if orders.lamp_first else thing]
            turn("", task, quote(first), f"go to {quote(first).split()[1]} 1")
            continue
        treatment = rng.choice(sorted(stations))
        said = quote(stations[treatment])
        place = f"{said.split()[1]} {rng.choice((1, 1, 1, 2, 3))}"
        task = rng.choice(worlds._WORDINGS[treatment.title()]).format(o=thing, r=rng.choice(places))
        view = rng.choice(
            (
                f"On the {place}, you see {_listed_things(rng.sample(things, rng.choice((0, 0, 1, 2))))}.",
                f"The {place} is closed.",
            )
        )
        if rng.random() < 0.3:
            answer = f"You pick up the {thing} 1 from the {place}."
        else:
            origin = rng.choice([other for other in places if other != place.split()[0]])
            turn(f"You pick up the {thing} 1 from the {origin} 1.", task, said, f"go to {place}")
            answer = f"You arrive at loc {rng.randint(1, 45)}. {view}"
        if treatment in orders.examined:
            turn(answer, task, f"examine the place first [{stations[treatment].id}]", f"examine {place}")
            answer = view
        turn(answer, task, said, f"{treatment} {thing} 1 with {place}")
    return example


def _listed_things(things: Sequence[str]) -> str:
    return _listed([f"{thing} 1" for thing in sorted(things)])


def _listed(names: Sequence[str]) -> str:
    """`a desk 1, a shelf 2, and a shelf 1`; `nothing`."""
    names = [f"a {name}" for name in names]
    return ", ".join([*names[:-1], f"and {names[-1]}"]) if len(names) > 1 else "".join(names) or "nothing"


def _view(rng: Random, place: str, names: Sequence[str]) -> str:
    """What the games say when one comes to a place, or opens it, and sees this there."""
    listed = _listed(names)
    arrived = f"You arrive at loc {rng.randint(1, 45)}. "
    return rng.choice(
        (
            f"{arrived}On the {place}, you see {listed}.",
            f"{arrived}On the {place}, you see {listed}.",
            f"{arrived}The {place} is open. In it, you see {listed}.",
            f"You open the {place}. The {place} is open. In it, you see {listed}.",
        )
    )
