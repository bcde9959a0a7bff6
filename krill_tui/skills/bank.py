"""The SkillBank: skills in two tiers, every change of them kept, in a TinyDB file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ValidationError
from tinydb import TinyDB
from tinydb.storages import MemoryStorage
from tinydb.table import Document

from krill_tui.errors import DataError, UsageError
from krill_tui.io.text import clean_text
from krill_tui.skill import GENERAL, Skill, SkillOrigin, SkillProposal, SkillStats, SkillStatus
from krill_tui.skills.decision import Decision
from krill_tui.skills.storage import AtomicStorage, WriteOnFlush, bank_text
from krill_tui.trajectory import Record, StopReason, Trajectory

HAND = "hand"
"""Author of changes that a person made."""

_OUTCOMES_PER_WRITE = 256

ChangeKind = Literal["add", "refine", "edit", "status", "undo"]


class BankChange(Record):
    """One change of the bank's content, as the history keeps it."""

    seq: int
    """1 for the first change; never reused."""
    version: int
    """Bank version this change made."""
    time: float
    """Unix seconds."""
    kind: ChangeKind
    author: str
    skill_id: str
    before: Skill | None = None
    after: Skill | None = None
    reason: str = ""
    undoes: int | None = None
    """`seq` of the change that an `undo` took back."""


class SkillBank:
    """All skills of a run, in memory and on disk.

    One writer: the engine. A change is on disk when its method returns; counts of `record_outcome`
    follow with the next change, every few outcomes, or at `flush`.
    """

    def __init__(self, database: TinyDB, path: Path | None, clock: Callable[[], float]) -> None:
        self._db = database
        self.path = path
        self._clock = clock
        self._skills: dict[str, Skill] = {}
        self._changes: list[BankChange] = []
        self._pending: list[BankChange] = []
        self._dirty: set[str] = set()
        self._numbers: dict[str, int] = {}
        self._places: dict[str, int] = {}
        """Skill id -> number of its document in the file, for life: it is the bank order."""
        self._last_seq = 0
        self._outcomes = 0
        self._depth = 0
        self._version = 0
        self._cycle = 0
        self._decision: Decision | None = None
        self._unsaved = False
        """Something beside skills and changes is not on disk yet."""
        self.keeps_decisions = True
        """False for a file of an earlier version, which may hold a cycle whose decision is lost."""
        self._load()

    @classmethod
    def open(cls, path: str | Path, *, clock: Callable[[], float] = time.time) -> Self:
        """Open a bank, or begin one where there is no file yet.

        Raises:
            DataError: the file is not a skill bank of Krill.
        """
        path = Path(path)
        return cls(TinyDB(path, storage=WriteOnFlush(AtomicStorage)), path, clock)

    @classmethod
    def restore(cls, path: Path, changes: Sequence[BankChange], cycle: int) -> None:
        """Make the file of a bank anew from its changes, in their order; nothing may be there.

        Raises:
            StorageError: it cannot be written.
        """
        bank = cls.open(path)
        for change in changes:
            assert change.after is not None
            bank._skills[change.skill_id] = change.after
            bank._dirty.add(change.skill_id)
        bank._changes, bank._pending = list(changes), list(changes)
        bank._version = changes[-1].version if changes else 0
        bank._cycle = cycle
        bank._commit()
        bank.close()

    @classmethod
    def in_memory(cls, *, clock: Callable[[], float] = time.time) -> Self:
        """A bank that is never written."""
        return cls(TinyDB(storage=WriteOnFlush(MemoryStorage)), None, clock)

    # Reading

    @property
    def version(self) -> int:
        """Number of content changes so far; counts of outcomes do not count."""
        return self._version

    @property
    def cycle(self) -> int:
        """Evolution cycles finished."""
        return self._cycle

    @property
    def decision(self) -> Decision | None:
        """What the newest round of the teacher decided, until `forget_decision`."""
        return self._decision

    def __len__(self) -> int:
        return len(self._skills)

    def __contains__(self, skill_id: object) -> bool:
        return skill_id in self._skills

    def get(self, skill_id: str) -> Skill:
        """The skill as it is now.

        Raises:
            UsageError: there is no such skill.
        """
        try:
            return self._skills[skill_id]
        except KeyError:
            raise UsageError(f"there is no skill {clean_text(skill_id, 60)!r} in the bank") from None

    def skills(self, tier: str | None = None, *, active_only: bool = True) -> list[Skill]:
        """Skills in bank order (oldest first), of one tier or of all."""
        return [
            skill
            for skill in self._skills.values()
            if (tier is None or skill.tier == tier)
            and (not active_only or skill.status is SkillStatus.ACTIVE)
        ]

    def tiers(self) -> list[str]:
        """Tiers that hold a skill, general first, then in bank order."""
        found = dict.fromkeys(skill.tier for skill in self._skills.values())
        return [tier for tier in found if tier == GENERAL] + [tier for tier in found if tier != GENERAL]

    def history(self, skill_id: str | None = None) -> list[BankChange]:
        """Changes in order, of one skill or of all."""
        return [change for change in self._changes if skill_id is None or change.skill_id == skill_id]

    # Changing

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Write the file once, after the block, instead of after each change in it."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            self._commit()

    def add(self, new: Skill | SkillProposal, origin: SkillOrigin, *, reason: str = "") -> Skill:
        """Add a skill; a `Skill` keeps its id where that is short and free, else it gets the next one.

        Raises:
            UsageError: it has no name or no principle.
        """
        now = self._clock()
        skill = Skill(
            id=self._free_id(new),
            name=clean_text(new.name, 120),
            principle=clean_text(new.principle),
            when_to_apply=clean_text(new.when_to_apply),
            tier=clean_text(new.tier, 60) or GENERAL,
            also=new.also if isinstance(new, Skill) else (),
            kind=new.kind,
            status=new.status if isinstance(new, Skill) else SkillStatus.ACTIVE,
            origin=origin,
            stats=new.stats if isinstance(new, Skill) else SkillStats(),
            created=(new.created or now) if isinstance(new, Skill) else now,
            updated=now,
            version=new.version if isinstance(new, Skill) else 1,
        )
        return self._change("add", origin.author, None, skill, reason)

    def refine(
        self, skill_id: str, proposal: SkillProposal, origin: SkillOrigin, *, reason: str = ""
    ) -> Skill:
        """Give a skill the proposal's text as its next version; tier, id and counts stay."""
        old = self.get(skill_id)
        new = old.model_copy(
            update={
                "name": clean_text(proposal.name, 120),
                "principle": clean_text(proposal.principle),
                "when_to_apply": clean_text(proposal.when_to_apply),
                "kind": proposal.kind,
                "origin": origin,
                "version": old.version + 1,
                "updated": self._clock(),
            }
        )
        return self._change("refine", origin.author, old, new, reason or proposal.reason)

    def edit(
        self,
        skill_id: str,
        *,
        name: str | None = None,
        principle: str | None = None,
        when_to_apply: str | None = None,
        tier: str | None = None,
        author: str = HAND,
    ) -> Skill:
        """Change the given fields of a skill; without a real change nothing happens."""
        old = self.get(skill_id)
        fields = {"name": name, "principle": principle, "when_to_apply": when_to_apply, "tier": tier}
        limits = {"name": 120, "tier": 60}
        update: dict[str, Any] = {
            key: clean_text(value, limits.get(key, 2000))
            for key, value in fields.items()
            if value is not None
        }
        if update.get("tier") == "":
            update["tier"] = GENERAL
        if all(getattr(old, key) == value for key, value in update.items()):
            return old
        if update.get("tier", old.tier) != old.tier:
            update["also"] = ()
        new = old.model_copy(update={**update, "version": old.version + 1, "updated": self._clock()})
        return self._change("edit", author, old, new)

    def set_status(
        self, skill_id: str, status: SkillStatus, author: str = HAND, *, reason: str = ""
    ) -> Skill:
        """Enable, disable or retire a skill."""
        old = self.get(skill_id)
        if old.status is status:
            return old
        new = old.model_copy(update={"status": status, "updated": self._clock()})
        return self._change("status", author, old, new, reason)

    def undo(self, author: str = HAND) -> BankChange:
        """Take back `author`'s newest change that is not taken back yet; a new skill is retired.

        Raises:
            UsageError: there is nothing to undo, or the skill was changed again since.
        """
        undone = {change.undoes for change in self._changes}
        mine = (
            c
            for c in reversed(self._changes)
            if c.author == author and c.kind != "undo" and c.seq not in undone
        )
        change = next(mine, None)
        if change is None or change.after is None:
            raise UsageError("there is no change by hand to undo")
        current = self.get(change.skill_id)
        if _content(current) != _content(change.after):
            raise UsageError(f"{change.skill_id} was changed again since: edit it instead")
        if change.before is None:
            restored = current.model_copy(update={"status": SkillStatus.RETIRED, "updated": self._clock()})
        else:
            restored = change.before.model_copy(update={"stats": current.stats, "updated": self._clock()})
        self._change("undo", author, current, restored, undoes=change.seq)
        return self._changes[-1]

    def set_cycle(self, cycle: int) -> None:
        """Note that an evolution cycle was finished."""
        self._cycle = cycle
        self._commit()

    def decide(self, decision: Decision) -> None:
        """Keep what a round of the teacher decided; within `batch` it is written with the skills, in one go."""
        self._decision = decision
        self._commit()

    def forget_decision(self) -> None:
        """The journal holds it: leave it out from the next write on."""
        if self._decision is not None:
            self._decision, self._unsaved = None, True

    def skills_at(self, version: int) -> dict[str, Skill]:
        """The skills as they were at a version of the bank, by id."""
        return {c.skill_id: c.after for c in self._changes if c.version <= version and c.after is not None}

    def record_outcome(self, trajectory: Trajectory) -> None:
        """Count a finished episode for the skills that stood in its prompt.

        One that was cancelled counts as injected, neither won nor lost; one that broke not at all: it will be played
        again.
        """
        if trajectory.stop_reason is StopReason.ERROR:
            return
        judged = trajectory.stop_reason is not StopReason.CANCELLED
        for skill_id in trajectory.skills:
            skill = self._skills.get(skill_id)
            if skill is None:
                continue
            stats = SkillStats(
                injected=skill.stats.injected + 1,
                cited=skill.stats.cited + (skill_id in trajectory.cited),
                wins=skill.stats.wins + (judged and trajectory.success),
                losses=skill.stats.losses + (judged and not trajectory.success),
            )
            self._skills[skill_id] = skill.model_copy(update={"stats": stats})
            self._dirty.add(skill_id)
        self._outcomes += 1
        if self._outcomes >= _OUTCOMES_PER_WRITE:
            self._commit()

    def forget_outcomes(self) -> None:
        """Set all counts to 0, in memory: for counting a run's episodes anew after a kill."""
        for skill_id, skill in self._skills.items():
            if skill.stats != SkillStats():
                self._skills[skill_id] = skill.model_copy(update={"stats": SkillStats()})
                self._dirty.add(skill_id)

    def flush(self) -> None:
        """Write what is not on disk yet: counts, a decision that was said."""
        if self._dirty or self._unsaved:
            self._commit()

    def as_json(self) -> str:
        """The text of its file, as it is now."""
        self.flush()
        return bank_text(self._db.storage.read() or {})

    def close(self) -> None:
        """Write what is not on disk yet and let go of the file."""
        self.flush()
        self._db.close()

    # Inside

    def _change(
        self,
        kind: ChangeKind,
        author: str,
        before: Skill | None,
        after: Skill,
        reason: str = "",
        undoes: int | None = None,
    ) -> Skill:
        if not after.name or not after.principle:
            raise UsageError("a skill needs a name and a principle")
        self._version += 1
        change = BankChange(
            seq=self._next_seq(),
            version=self._version,
            time=self._clock(),
            kind=kind,
            author=author,
            skill_id=after.id,
            before=before,
            after=after,
            reason=clean_text(reason),
            undoes=undoes,
        )
        self._skills[after.id] = after
        self._dirty.add(after.id)
        self._changes.append(change)
        self._pending.append(change)
        self._commit()
        return after

    def _commit(self) -> None:
        if self._depth:
            return
        # A few operations however many skills: each costs TinyDB a pass over the whole table.
        table = self._db.table("skills")
        last = max(self._places.values(), default=0)
        for id_ in self._skills:
            if id_ not in self._places:
                last += 1
                self._places[id_] = last
        dirty = [(self._places[id_], skill) for id_, skill in self._skills.items() if id_ in self._dirty]
        table.remove(doc_ids=[number for number, _ in dirty if table.contains(doc_id=number)])
        table.insert_multiple(
            Document(skill.model_dump(mode="json"), doc_id=number) for number, skill in dirty
        )
        self._db.table("history").insert_multiple(
            Document(change.model_dump(mode="json"), doc_id=change.seq) for change in self._pending
        )
        decision = self._decision.model_dump(mode="json") if self._decision else None
        meta = {"format": "krill", "version": self._version, "cycle": self._cycle, "decision": decision}
        self._db.table("meta").upsert(Document(meta, doc_id=1))
        self.keeps_decisions = True
        self._dirty.clear()
        self._unsaved = False
        self._pending.clear()
        self._outcomes = 0
        storage = self._db.storage
        assert isinstance(storage, WriteOnFlush)
        storage.flush()

    def _next_seq(self) -> int:
        """Never one that a change or its document has, whatever numbers are missing between."""
        self._last_seq += 1
        return self._last_seq

    def _free_id(self, new: Skill | SkillProposal) -> str:
        if isinstance(new, Skill) and _is_short_id(new.id) and new.id not in self._skills:
            return new.id
        stem = id_stem(new.tier)
        number = self._numbers.get(stem, 1)
        while (skill_id := f"{stem}_{number:03d}") in self._skills:
            number += 1
        self._numbers[stem] = number
        return skill_id

    def _load(self) -> None:
        where = self.path or "skill bank"
        try:
            skills = sorted(self._db.table("skills").all(), key=lambda document: document.doc_id)
            changes = sorted(self._db.table("history").all(), key=lambda document: document.doc_id)
            meta = self._db.table("meta").all()
            self._skills = {skill.id: skill for skill in map(_skill, skills)}
            self._places = {str(document["id"]): document.doc_id for document in skills}
            if len(self._places) < len(skills):
                raise DataError(f"{where}: is not a skill bank of Krill: an id stands in it twice")
            self._changes = [BankChange.model_validate(dict(change)) for change in changes]
            numbers = [change.doc_id for change in changes] + [change.seq for change in self._changes]
            self._last_seq = max(numbers, default=0)
            if meta:
                self._version, self._cycle = int(meta[0]["version"]), int(meta[0]["cycle"])
                self.keeps_decisions = "decision" in meta[0]
                decision = meta[0].get("decision")
                self._decision = Decision.model_validate(decision) if decision is not None else None
        except ValidationError as error:
            problem = error.errors()[0]
            field = ".".join(map(str, problem["loc"]))
            raise DataError(f"{where}: is not a skill bank of Krill: {field}: {problem['msg']}") from None
        except (KeyError, TypeError, ValueError, AttributeError):
            raise DataError(f"{where}: is not a skill bank of Krill: its tables cannot be read") from None


def id_stem(tier: str) -> str:
    """First part of the ids of a tier: `gen` for general, else its letters (`PickTwo`: `picktwo`)."""
    if tier == GENERAL:
        return "gen"
    return "".join(letter for letter in tier.lower() if letter.isascii() and letter.isalnum())[:16] or "skill"


def _is_short_id(skill_id: str) -> bool:
    allowed = all(letter.isascii() and (letter.isalnum() or letter in "_.-") for letter in skill_id)
    return 0 < len(skill_id) <= 24 and allowed and skill_id[0].isalnum()


def _content(skill: Skill) -> Any:
    return skill.model_dump(exclude={"stats", "updated"})


def _skill(document: Document) -> Skill:
    return Skill.model_validate(dict(document))


def copy_into(bank: SkillBank, skills: Iterable[Skill], origin: SkillOrigin) -> list[Skill]:
    """Add many skills (an import) with one write; their own origin is kept where they have one."""
    with bank.batch():
        return [
            bank.add(skill, skill.origin if skill.origin != SkillOrigin() else origin) for skill in skills
        ]
