"""A small kitchen as a game file, written by hand, for tests of what is read out of files."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path

from krill_tui.envs.alfworld.pddl import SCHEMAS

_STATIONS = {
    "cleanobject": "sinkbasinType",
    "heatobject": "microwaveType",
    "coolobject": "fridgeType",
    "sliceobject": "knifeType",
}

PROBLEM = """
(define (problem kitchen)
(:domain alfred)
(:objects agent1 - agent)
(:init
  (atLocation agent1 loc_bar_00)
  (receptacleType Cabinet_bar_1 CabinetType) (receptacleAtLocation Cabinet_bar_1 loc_bar_11)
  (receptacleType Cabinet_bar_2 CabinetType) (receptacleAtLocation Cabinet_bar_2 loc_bar_11)
  (receptacleType CounterTop_bar_1 CounterTopType) (receptacleAtLocation CounterTop_bar_1 loc_bar_12)
  (receptacleType Fridge_bar_1 FridgeType) (receptacleAtLocation Fridge_bar_1 loc_bar_13)
  (receptacleType Microwave_bar_1 MicrowaveType) (receptacleAtLocation Microwave_bar_1 loc_bar_14)
  (receptacleType Sink_bar_1_bar_SinkBasin SinkBasinType)
  (receptacleAtLocation Sink_bar_1_bar_SinkBasin loc_bar_15)
  (openable Cabinet_bar_1) (openable Fridge_bar_1) (openable Microwave_bar_1)
  (objectType Mug_bar_1 MugType) (pickupable Mug_bar_1) (cleanable Mug_bar_1) (heatable Mug_bar_1)
  (coolable Mug_bar_1) (isReceptacleObject Mug_bar_1)
  (inReceptacle Mug_bar_1 Cabinet_bar_1) (objectAtLocation Mug_bar_1 loc_bar_11)
  (objectType Apple_bar_1 AppleType) (pickupable Apple_bar_1) (sliceable Apple_bar_1) (heatable Apple_bar_1)
  (cleanable Apple_bar_1) (coolable Apple_bar_1)
  (inReceptacle Apple_bar_1 CounterTop_bar_1) (objectAtLocation Apple_bar_1 loc_bar_12)
  (objectType Knife_bar_1 KnifeType) (pickupable Knife_bar_1)
  (inReceptacle Knife_bar_1 CounterTop_bar_1) (objectAtLocation Knife_bar_1 loc_bar_12)
  (objectType DeskLamp_bar_1 DeskLampType) (toggleable DeskLamp_bar_1)
  (inReceptacle DeskLamp_bar_1 CounterTop_bar_1) (objectAtLocation DeskLamp_bar_1 loc_bar_12)
  (canContain CabinetType MugType) (canContain CounterTopType MugType) (canContain CounterTopType AppleType)
  (canContain FridgeType AppleType) (canContain FridgeType MugType) (canContain CounterTopType KnifeType)
)
(:goal (and (exists (?r - receptacle) (exists (?o - object)
  (and (isHot ?o) (objectType ?o MugType) (receptacleType ?r CounterTopType) (inReceptacle ?o ?r))))))
)
"""


COMMA = "(?l - location, ?r - receptacle)"
"""As the published domains write it, so that the case applies to nothing."""


def domain(**changes: str) -> str:
    """The ALFRED domain; `changes` replaces the precondition of an action or, given "", leaves it out."""
    actions: list[str] = []
    for name, (parameters, precondition, effect) in SCHEMAS.items():
        condition = changes.get(name, precondition.replace("*", _STATIONS.get(name, "")))
        if condition:
            actions.append(
                f"(:action {name} :parameters ({parameters}) :precondition {condition} :effect {effect})"
            )
    text = f"(define (domain alfred) {' '.join(actions)})"
    return text.replace(f"(exists {COMMA.replace(',', '')} (and", f"(exists {COMMA} (and")


def grammar() -> str:
    """The grammar of procedural worlds with a task and a help command."""
    text = resources.files("krill_tui.envs.alfworld").joinpath("household.twl2").read_text(encoding="utf-8")
    text = text.replace("to: TASK", "to: heat some mug and put it in countertop.")
    return text + 'action help { template :: "help"; feedback :: "\\nYou can look.\\n"; }\n'


NEWER_ACTIONS = """
action GotoLocation {
    template :: "go to [{r.name | receptacleatlocation(r:receptacle, lend:location)}]";
    feedback :: "#GotoLocation.feedback#";
}
action PutObject { template :: "move {o} to {r}"; feedback :: "#moved#"; }
action ToggleObject {
    template :: "use {o}";
    feedback :: "#toggled#";
    grammar :: \"""
        {
            "toggled": [
                {"condition": "toggleable(o:object) & istoggled(o:object)", "rhs": "You turn on the {o.name}."},
                {"condition": "toggleable(o:object)", "rhs": "You turn off the {o.name}."}
            ]
        }
    \""";
}
action look {
    template :: "look";
    feedback :: "#look.feedback#";
    grammar :: \"""
        {
            "look.feedback": [
                {"condition": "atlocation(a:agent, l:location) & receptacleatlocation(r:receptacle, l:location)",
                 "rhs": "#facing#. Next to it, you see #floor#."},
                {"rhs": "You are in the middle of a room. Looking quickly around you, you see #around#."}
            ],
            "facing": [{"rhs": "You are facing the [{r.name | atlocation(a:agent, l:location) & receptacleatlocation(r:receptacle, l:location)}]"}],
            "around": [
                {"condition": "receptacleatlocation(r:receptacle, l:location)",
                 "rhs": "[{#overview(r)# | receptacleatlocation(r:receptacle, l:location)}]"},
                {"rhs": "nothing"}
            ],
            "overview(r)": [{"rhs": "{r.indefinite} {r.name or r.id}"}]
        }
    \""";
}
"""
"""Actions as the package's newer text grammar has them, with rules of their own inside."""


def newer_grammar() -> str:
    """The grammar of the package's newer games: other sentences, and rules within actions."""
    text = grammar()
    for name in ("GotoLocation", "PutObject", "ToggleObject", "look"):
        text = re.sub(rf"action {name} {{.*?}}\n", "", text)
    arrived = '"GotoLocation.feedback": [{"rhs": "You arrive at {r.name}. #receptacle#"}],'
    off = '{"condition": "toggleable(o:object) & not_istoggled(o:object)", "rhs": "This {o.name} is off."},'
    text = text.replace('"arrived":', f'{arrived}\n  "arrived":').replace("#place#", "#look.feedback#")
    text = text.replace(
        '"rhs": "You put the {o.name} in/on the {r.name}."', '"rhs": "You move the {o.name} to the {r.name}."'
    )
    text = text.replace('"put":', '"moved":').replace(
        '{"condition": "issliced(o:object)", "rhs"', f'{off}\n    {{"condition": "issliced(o:object)", "rhs"'
    )
    return text + NEWER_ACTIONS


def write_game(folder: Path, **texts: str) -> Path:
    """Write `game.tw-pddl`; `texts` replaces pddl_domain, pddl_problem or grammar."""
    path = folder / "game.tw-pddl"
    data = {"pddl_domain": domain(), "pddl_problem": PROBLEM, "grammar": grammar(), "solvable": True}
    path.write_text(json.dumps(data | texts), encoding="utf-8")
    return path
