from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from krill_tui.errors import DataError, StorageError, UsageError
from krill_tui.skill import GENERAL, Skill, SkillKind, SkillOrigin, SkillProposal, SkillStatus
from krill_tui.skills.bank import SkillBank, copy_into, id_stem
from krill_tui.trajectory import StopReason
from tests.episodes import episode

TAUGHT = SkillOrigin(phase="distill", author="teacher")


def proposal(
    principle: str = "mug: cabinet", *, name: str = "Where the mug is", tier: str = GENERAL
) -> SkillProposal:
    return SkillProposal(name=name, principle=principle, tier=tier)


def test_a_bank_reads_back_what_was_put_in(tmp_path: Path) -> None:
    path = tmp_path / "bank.json"
    bank = SkillBank.open(path)
    bank.add(proposal(), TAUGHT)
    bank.add(proposal("heat: take it first", tier="Heat"), TAUGHT, reason="two wins")
    bank.edit("gen_001", principle="mug: shelf")
    bank.set_status("heat_001", SkillStatus.DISABLED)
    bank.set_cycle(3)
    bank.close()
    again = SkillBank.open(path)
    assert again.skills(active_only=False) == bank.skills(active_only=False)
    assert again.history() == bank.history()
    assert (again.version, again.cycle) == (4, 3)
    assert again.get("gen_001").principle == "mug: shelf"
    assert [skill.id for skill in again.skills()] == ["gen_001"]


def test_ids_come_from_the_tier_and_are_never_used_twice() -> None:
    bank = SkillBank.in_memory()
    for tier in (GENERAL, GENERAL, "Heat", "PickTwo", "home_decor", "Pick"):
        bank.add(proposal(tier=tier), TAUGHT)
    assert [s.id for s in bank.skills()] == [
        "gen_001",
        "gen_002",
        "heat_001",
        "picktwo_001",
        "homedecor_001",
        "pick_001",
    ]
    bank.set_status("gen_002", SkillStatus.RETIRED)
    assert bank.add(proposal(), TAUGHT).id == "gen_003"
    assert id_stem("…") == "skill"


def test_an_imported_skill_keeps_its_id_where_that_is_short_and_free() -> None:
    bank = SkillBank.in_memory()
    skill = Skill(id="cle_004", name="a", principle="b", tier="Clean")
    uuid = skill.model_copy(update={"id": "a1b2c3d4-e5f6-7890-abcd-ef1234567890"})
    added = copy_into(bank, [skill, skill, uuid], SkillOrigin(author="import"))
    assert [s.id for s in added] == ["cle_004", "clean_001", "clean_002"]


def test_every_content_change_counts_the_version_up_and_outcomes_do_not() -> None:
    bank = SkillBank.in_memory()
    bank.add(proposal(), TAUGHT)
    bank.edit("gen_001", name="Mugs")
    bank.refine("gen_001", proposal("mug: shelf"), TAUGHT)
    assert bank.version == 3
    bank.edit("gen_001", name="Where the mug is")
    assert bank.version == 3, "an edit that changes nothing is no change"
    bank.record_outcome(episode(skills=("gen_001", "unknown_001"), cited=("gen_001",)))
    bank.record_outcome(episode(skills=("gen_001",), success=False))
    bank.record_outcome(episode(skills=("gen_001",), success=False, stop=StopReason.CANCELLED))
    stats = bank.get("gen_001").stats
    assert (stats.injected, stats.cited, stats.wins, stats.losses) == (3, 1, 1, 1)
    assert bank.version == 3


def test_outcomes_reach_the_file_at_flush(tmp_path: Path) -> None:
    path = tmp_path / "bank.json"
    bank = SkillBank.open(path)
    bank.add(proposal(), TAUGHT)
    bank.record_outcome(episode(skills=("gen_001",)))
    assert SkillBank.open(path).get("gen_001").stats.wins == 0
    bank.flush()
    assert SkillBank.open(path).get("gen_001").stats.wins == 1


def test_a_refined_skill_keeps_its_id_tier_and_counts_and_its_old_version_stays_in_history() -> None:
    bank = SkillBank.in_memory()
    bank.add(proposal("heat it", tier="Heat"), TAUGHT)
    bank.record_outcome(episode(skills=("heat_001",)))
    better = SkillProposal(
        name="Hot", principle="heat it first", kind=SkillKind.LESSON, reason="it came too late"
    )
    new = bank.refine("heat_001", better, SkillOrigin(phase="evolve", cycle=2, author="teacher"))
    assert (new.id, new.tier, new.version, new.stats.wins) == ("heat_001", "Heat", 2, 1)
    change = bank.history("heat_001")[-1]
    assert change.before is not None and change.before.principle == "heat it"
    assert (change.kind, change.author, change.reason) == ("refine", "teacher", "it came too late")


def test_undo_takes_back_changes_by_hand_newest_first() -> None:
    bank = SkillBank.in_memory()
    bank.add(proposal(), TAUGHT)
    bank.edit("gen_001", principle="mug: shelf")
    bank.set_status("gen_001", SkillStatus.DISABLED)
    bank.undo()
    assert bank.get("gen_001").status is SkillStatus.ACTIVE
    bank.undo()
    assert bank.get("gen_001").principle == "mug: cabinet"
    with pytest.raises(UsageError, match="no change by hand"):
        bank.undo()


def test_undoing_an_addition_retires_the_skill() -> None:
    bank = SkillBank.in_memory()
    bank.add(proposal(), SkillOrigin(phase="hand", author="hand"))
    bank.undo()
    assert bank.get("gen_001").status is SkillStatus.RETIRED
    assert bank.skills() == []


def test_undo_refuses_where_somebody_changed_the_skill_since() -> None:
    bank = SkillBank.in_memory()
    bank.add(proposal(), TAUGHT)
    bank.edit("gen_001", principle="mug: shelf")
    bank.refine("gen_001", proposal("mug: drawer"), TAUGHT)
    with pytest.raises(UsageError, match="changed again since"):
        bank.undo()


def test_text_of_a_skill_is_one_printable_line() -> None:
    bank = SkillBank.in_memory()
    skill = bank.add(
        SkillProposal(name="a\x1b[31m\nb", principle="x\ud800\r\n y\u202e", tier="He\tat"), TAUGHT
    )
    assert (skill.name, skill.principle, skill.tier) == ("a[31m b", "x y", "He at")


@pytest.mark.parametrize(
    "broken", [SkillProposal(name=" \n", principle="x"), SkillProposal(name="x", principle="\x00")]
)
def test_a_skill_without_name_or_principle_is_refused(broken: SkillProposal) -> None:
    bank = SkillBank.in_memory()
    with pytest.raises(UsageError, match="name and a principle"):
        bank.add(broken, TAUGHT)
    assert len(bank) == 0 and bank.version == 0


def test_a_write_that_is_interrupted_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bank.json"
    bank = SkillBank.open(path)
    bank.add(proposal(), TAUGHT)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="no space left"):
            bank.edit("gen_001", name="Mugs")
    assert path.read_bytes() == before
    assert list(tmp_path.glob(".bank*")) == [], "nothing half-written lies about"
    bank.edit("gen_001", name="All mugs")
    assert SkillBank.open(path).get("gen_001").name == "All mugs", "the next write holds all changes"
    assert len(SkillBank.open(path).history()) == 3


_WRITER = """
import sys
from krill_tui.skill import SkillOrigin, SkillProposal
from krill_tui.skills.bank import SkillBank
bank = SkillBank.open(sys.argv[1])
for number in range(100000):
    bank.add(SkillProposal(name=f"n{number}", principle="p " * 200), SkillOrigin(author="x"))
    print(number, flush=True)
"""


def test_a_bank_survives_kill_9_with_every_change_that_was_reported(tmp_path: Path) -> None:
    path = tmp_path / "bank.json"
    root = Path(__file__).resolve().parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True, cwd=root
    ) as writer:
        assert writer.stdout is not None
        reported = [int(writer.stdout.readline()) for _ in range(40)][-1]
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read().split()
        reported = int(rest[-1]) if rest else reported
    bank = SkillBank.open(path)
    assert len(bank) >= reported + 1
    assert bank.version == len(bank) == len(bank.history())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not a skill bank"),
        ('{"theme": {"1": {}}}', "is not a skill bank"),
        ('{"meta": {"1": {"version": 1, "cycle": 0}}, "skills": {"1": {"id": 5}}}', "is not a skill bank"),
        ('{"meta": {"1": {"version": "x"}}}', "is not a skill bank"),
        ('{"meta": {"one": {}}}', "is not a skill bank"),
        ('{"meta": {"1": 7}}', "is not a skill bank"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_a_file_that_is_no_bank_gives_one_line_that_names_it(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "bank.json"
    path.write_text(content)
    with pytest.raises(DataError, match=says) as caught:
        SkillBank.open(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert path.read_text() == content


def test_a_batch_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "bank.json"
    bank = SkillBank.open(path)
    with bank.batch():
        for number in range(3):
            bank.add(proposal(f"p {number}"), TAUGHT)
        assert not path.exists()
    assert len(json.loads(path.read_text())["skills"]) == 3
