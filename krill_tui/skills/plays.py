"""What an episode shows to a program: where things were and what order won (ALFWorld), what went wrong (all)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from krill_tui.envs.alfworld.text import (
    TaskGoal,
    object_type,
    parse_task,
    placed,
    room_receptacles,
    sight,
    taken,
    treated,
)
from krill_tui.skills.purchases import purchase
from krill_tui.trajectory import Step, Trajectory

_USE = re.compile(r"use (?P<object>[a-z]+) \d+")
_GO = re.compile(r"go to (?P<place>.+)")
_OPENED = re.compile(r"You open the (?P<place>[a-z]+ \d+)\.")
_EXAMINE = re.compile(r"examine (?P<place>[a-z]+ \d+)")
_TREAT = re.compile(r"(?P<verb>clean|heat|cool) (?P<object>[a-z]+ \d+) with (?P<place>[a-z]+ \d+)")
_TAKE = re.compile(r"take (?P<object>[a-z]+ \d+) from [a-z]+ \d+")
_PUT = re.compile(r"(?:put|move) (?P<object>[a-z]+ \d+) (?:in/on|to) (?P<place>[a-z]+ \d+)")
_NO_EFFECT = "Nothing happens."


@dataclass(frozen=True, slots=True)
class Deed:
    """One action that changed what the agent holds or what an object is like."""

    verb: str
    """`take`, `put`, `heat`, `cool`, `clean`, `use`."""
    object: str
    """Type of the object: `mug`."""
    place: str = ""
    """Type of the receptacle it was done at: `microwave`."""


@dataclass(frozen=True, slots=True)
class Moment:
    """One step, with what is not said in it: what the agent held and where it stood when it chose."""

    step: Step
    answer: str
    held: str
    """`mug 1`; empty for nothing."""
    here: tuple[str, ...]
    """Receptacles at hand: `shelf 1`."""

    @property
    def in_vain(self) -> bool:
        return self.answer.strip() == _NO_EFFECT


@dataclass(slots=True)
class Trials:
    """What one episode shows of where a thing can be done; all by (verb, receptacle or lamp type)."""

    done: set[tuple[str, str]] = field(default_factory=set)
    possible: set[tuple[str, str]] = field(default_factory=set)
    """Done, or among the actions that could be chosen."""
    impossible: set[tuple[str, str]] = field(default_factory=set)
    """Stood there with the task's own object in hand, and it could not be done."""
    vain: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often it was tried there all the same."""


@dataclass(frozen=True, slots=True)
class Faults:
    """What went wrong in one episode."""

    repeated: bool = False
    """The same action without effect three times or more."""
    untreated: bool = False
    """Put the thing where it belongs without heating, cooling or cleaning it first."""
    missed: bool = False
    """Held the thing where it could be heated, cooled or cleaned, and never did it."""
    untaken: bool = False
    """Stood before the thing with free hands and never took it."""
    wrong: bool = False
    """Took something that was not asked for, and never what was."""
    full: bool = False
    """Tried to take something while holding another thing."""
    carried: bool = False
    """Went to three places or more that were not asked for, with the thing in hand and ready."""
    kept: bool = False
    """Stood where the thing belongs, could have put it there, ready as it was, and never did."""
    unsearched: bool = False
    """Never saw the thing, and looked into less than half of the places."""
    unopened: bool = False
    """Stood before closed receptacles, opened few of them, and did not win."""
    revisited: bool = False
    """Went to the same places again and again with free hands, without taking anything in between."""
    invalid: bool = False
    """A third of the actions or more were not possible."""
    unbought: bool = False
    """Left the shop with nothing."""
    unchosen: bool = False
    """Bought something without an option that was asked for."""
    dear: bool = False
    """Bought something above the price that was asked for."""


def answers(trajectory: Trajectory) -> Iterator[tuple[Step, str]]:
    """Each step with what the environment answered to it."""
    for step, following in zip(trajectory.steps, trajectory.steps[1:], strict=False):
        yield step, following.observation
    if trajectory.steps:
        yield trajectory.steps[-1], trajectory.final_observation


def sightings(trajectory: Trajectory) -> dict[str, str]:
    """Object (`mug 2`) to the type of receptacle it was first seen in (`cabinet`).

    Only what the world put there counts: an object is no longer noted once the agent moved it.
    """
    found: dict[str, str] = {}
    moved: set[str] = set()
    for _, answer in answers(trajectory):
        if step := taken(answer):
            found.setdefault(step[0], object_type(step[1]))
            moved.add(step[0])
        elif seen := sight(answer):
            for name in seen.objects:
                if name not in moved:
                    found.setdefault(name, object_type(seen.receptacle))
    return found


def inspected(trajectory: Trajectory) -> set[str]:
    """Types of receptacles whose inside or top was seen."""
    sights = (sight(answer) for _, answer in answers(trajectory))
    return {object_type(seen.receptacle) for seen in sights if seen is not None and not seen.closed}


def taken_things(trajectory: Trajectory) -> set[str]:
    """Everything that was picked up: `mug 2`."""
    return {step[0] for _, answer in answers(trajectory) if (step := taken(answer))}


def deeds(trajectory: Trajectory) -> tuple[Deed, ...]:
    """What was done with objects of the task's type, in order, the same verb never twice in a row.

    Empty where the task is worded freely.
    """
    goal = parse_task(trajectory.task)
    done: list[Deed] = []
    for step, answer in answers(trajectory):
        deed = _deed(step.action, answer)
        if goal is None or deed is None or (done and done[-1].verb == deed.verb):
            continue
        if deed.object == goal.object or deed.verb == "use":
            done.append(deed)
    return tuple(done)


def moments(trajectory: Trajectory) -> list[Moment]:
    """The steps of a household episode, each with what was held and where the agent stood."""
    found: list[Moment] = []
    held, place = "", ""
    for step, answer in answers(trajectory):
        near = [match["place"] for action in step.admissible if (match := _EXAMINE.fullmatch(action))]
        here = tuple(name for name in near if name != held) if step.admissible else (place,) * bool(place)
        found.append(Moment(step, answer, held, here))
        going = _GO.fullmatch(step.action)
        if going and answer.strip() != _NO_EFFECT:
            place = going["place"]
        if got := taken(answer):
            held = got[0]
        elif placed(answer):
            held = ""
    return found


def trials(trajectory: Trajectory) -> Trials:
    """What could be done where: treatments, putting the task's object, using a lamp.

    The actions that could be chosen count like a deed: what they offer was possible, chosen or not.
    """
    goal = parse_task(trajectory.task)
    found = Trials()
    for moment in moments(trajectory):
        treatment = treated(moment.answer)
        if treatment:
            found.done.add((treatment[0], object_type(treatment[2])))
        offered: set[tuple[str, str]] = set()
        for action in moment.step.admissible:
            if match := _TREAT.fullmatch(action):
                offered.add((match["verb"], object_type(match["place"])))
            elif (match := _PUT.fullmatch(action)) and goal and object_type(match["object"]) == goal.object:
                offered.add(("put", object_type(match["place"])))
            elif match := _USE.fullmatch(action):
                offered.add(("use", match["object"]))
        found.possible |= offered
        if goal is None or goal.treatment is None or object_type(moment.held) != goal.object:
            continue
        here = {(goal.treatment, object_type(place)) for place in moment.here}
        tried = _TREAT.fullmatch(moment.step.action)
        if tried and moment.in_vain and tried["object"] == moment.held and tried["place"] in moment.here:
            found.vain[tried["verb"], object_type(tried["place"])] += 1
            found.impossible.add((tried["verb"], object_type(tried["place"])))
        if moment.step.admissible:
            found.impossible |= here - offered
    found.possible |= found.done
    found.impossible -= found.possible
    return found


@dataclass(frozen=True, slots=True)
class Conditions:
    """Counts of what the world asks for before something can be done, over one or more episodes."""

    opened: int = 0
    """Closed places that were opened."""
    filled: int = 0
    """Those of them that held something."""
    laden: int = 0
    """Steps with something in hand."""
    laden_takes: int = 0
    """Those of them at which another thing could be taken."""

    def __add__(self, other: Conditions) -> Conditions:
        return Conditions(
            self.opened + other.opened,
            self.filled + other.filled,
            self.laden + other.laden,
            self.laden_takes + other.laden_takes,
        )


def conditions(trajectory: Trajectory) -> Conditions:
    """What one episode shows of closed places and full hands."""
    opened: dict[str, bool] = {}
    laden = takes = 0
    for moment in moments(trajectory):
        seen = sight(moment.answer)
        for match in _OPENED.finditer(moment.answer):
            inside = seen is not None and seen.receptacle == match["place"] and bool(seen.objects)
            opened.setdefault(match["place"], inside)
        if moment.held and moment.step.admissible:
            laden += 1
            takes += any(_TAKE.fullmatch(action) for action in moment.step.admissible)
    return Conditions(len(opened), sum(opened.values()), laden, takes)


def faults(trajectory: Trajectory) -> Faults:
    """What went wrong in an episode that was not won."""
    repeated = _repeats(trajectory)
    invalid = trajectory.invalid_actions * 3 >= max(len(trajectory.steps), 1)
    if trajectory.env == "webshop":
        bought = purchase(trajectory)
        return Faults(
            repeated=repeated,
            invalid=invalid,
            unbought=bought is None,
            unchosen=bought is not None and bool(bought.unchosen),
            dear=bought is not None and bought.dear,
        )
    return Faults(
        repeated=repeated,
        invalid=invalid,
        unopened=_passes_closed(trajectory),
        revisited=_revisits(trajectory),
        **_errands(trajectory),
    )


def _errands(trajectory: Trajectory) -> dict[str, bool]:
    """The faults that need to know what the task asks for; none where it is worded freely."""
    goal = parse_task(trajectory.task)
    if goal is None:
        return {}
    ready: set[str] = set()
    counts: Counter[str] = Counter()
    delivered = treated_any = False
    for moment in moments(trajectory):
        step, answer, held = moment.step, moment.answer, moment.held
        own = object_type(held) == goal.object
        is_ready = own and goal.category != "Look" and (goal.treatment is None or held in ready)
        puts = {object_type(m["place"]) for a in step.admissible if (m := _PUT.fullmatch(a))}
        counts["offer"] += own and _offers_treatment(step, goal)
        counts["at goal"] += is_ready and goal.target in puts
        counts["sight"] += any(
            (m := _TAKE.fullmatch(a)) is not None and object_type(m["object"]) == goal.object
            for a in step.admissible
        )
        counts["full"] += bool(held) and moment.in_vain and _TAKE.fullmatch(step.action) is not None
        going = _GO.fullmatch(step.action)
        if going and is_ready and object_type(going["place"]) != goal.target and not moment.in_vain:
            counts["detour"] += 1
        if got := taken(answer):
            counts["own" if object_type(got[0]) == goal.object else "other"] += 1
        if (done := treated(answer)) and done[0] == goal.treatment and object_type(done[1]) == goal.object:
            ready.add(done[1])
            treated_any = True
        if (
            (put := placed(answer))
            and object_type(put[0]) == goal.object
            and object_type(put[1]) == goal.target
        ):
            delivered = delivered or goal.treatment is None or put[0] in ready
            counts["raw"] += goal.treatment is not None and put[0] not in ready
    room = room_receptacles(trajectory.steps[0].observation) if trajectory.steps else []
    seen = {object_type(name) for name in sightings(trajectory)}
    looked = {s.receptacle for _, a in answers(trajectory) if (s := sight(a)) is not None and not s.closed}
    return {
        "untreated": counts["raw"] > 0 and not delivered,
        "missed": counts["offer"] > 0 and not treated_any,
        "untaken": counts["sight"] > 0 and not counts["own"],
        "wrong": counts["other"] > 0 and not counts["own"] and goal.category != "Look",
        "full": counts["full"] > 0,
        "carried": counts["detour"] >= 3,
        "kept": counts["at goal"] > 0 and not delivered,
        "unsearched": goal.object not in seen and bool(room) and len(looked) * 2 < len(room),
    }


def _offers_treatment(step: Step, goal: TaskGoal) -> bool:
    return goal.treatment is not None and any(
        (match := _TREAT.fullmatch(action)) is not None
        and match["verb"] == goal.treatment
        and object_type(match["object"]) == goal.object
        for action in step.admissible
    )


def _deed(action: str, answer: str) -> Deed | None:
    if step := taken(answer):
        return Deed("take", object_type(step[0]), object_type(step[1]))
    if step := placed(answer):
        return Deed("put", object_type(step[0]), object_type(step[1]))
    if treatment := treated(answer):
        return Deed(treatment[0], object_type(treatment[1]), object_type(treatment[2]))
    used = _USE.fullmatch(action)
    if used and answer.strip() != _NO_EFFECT:
        return Deed("use", used["object"])
    return None


def _repeats(trajectory: Trajectory) -> bool:
    run, last = 0, None
    for step, answer in answers(trajectory):
        fruitless = answer.strip() in (_NO_EFFECT, step.observation.strip())
        run = run + 1 if fruitless and step.action == last else int(fruitless)
        last = step.action
        if run >= 3:
            return True
    return False


def _passes_closed(trajectory: Trajectory) -> bool:
    met: set[str] = set()
    opened: set[str] = set()
    for _, answer in answers(trajectory):
        seen = sight(answer)
        if seen is not None and seen.closed:
            met.add(seen.receptacle)
        opened |= {match["place"] for match in _OPENED.finditer(answer)}
    return len(met) >= 2 and len(met & opened) * 2 < len(met)


def _revisits(trajectory: Trajectory) -> bool:
    """Whether places were searched again; going somewhere with a thing in hand is no search."""
    visits: Counter[str] = Counter()
    again = 0
    for moment in moments(trajectory):
        going = _GO.fullmatch(moment.step.action)
        if taken(moment.answer):
            visits.clear()
        elif going and not moment.held and not moment.in_vain:
            visits[going["place"]] += 1
            again += visits[going["place"]] > 1
    return again >= 3
