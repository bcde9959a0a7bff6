"""Text of skills: what is compared, what is embedded, and the form of location skills."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from krill_tui.skill import Skill, SkillProposal

_STATION = re.compile(r"(clean|heat|cool): ([a-z]+)(?: \(.*\))?")
_LOCATION = re.compile(r"([a-z][a-z-]*): ([a-z][a-z-]*)")


def normalised(text: str) -> str:
    """Lower-case words of `text` with single spaces and no punctuation: equal texts say the same."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", folded))


def skill_text(skill: Skill | SkillProposal) -> str:
    """What is embedded for a skill (DESIGN section 1): name, principle and when to apply."""
    return ". ".join(part for part in (skill.name, skill.principle, skill.when_to_apply) if part)


@dataclass(frozen=True, slots=True)
class Location:
    """Where a type of object is usually found, as a skill's principle says it: `mug: cabinet`."""

    object: str
    receptacle: str

    @property
    def principle(self) -> str:
        return f"{self.object}: {self.receptacle}"


def parse_location(principle: str) -> Location | None:
    """The location a principle of the exact form `object: receptacle` states, else None."""
    match = _LOCATION.fullmatch(principle)
    if match is None or parse_station(principle):
        return None
    return Location(match.group(1), match.group(2))


@dataclass(frozen=True, slots=True)
class Station:
    """Where a treatment is done, as a skill's principle says it: `heat: stoveburner (take it, go there, heat it, …)`."""

    treatment: str
    """`clean`, `heat` or `cool`."""
    receptacle: str

    @property
    def principle(self) -> str:
        """The place comes first, directly after its key, where a reader looks for it; then the order of steps."""
        return f"{self.treatment}: {self.receptacle} (take it, go there, {self.treatment} it, then put it)"


def parse_station(principle: str) -> Station | None:
    """The station a principle of the form `heat: receptacle` or `heat: receptacle (…)` states, else None."""
    match = _STATION.fullmatch(principle)
    return Station(match.group(1), match.group(2)) if match else None
