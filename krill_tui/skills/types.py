"""Old address of `krill_tui.skill`."""

from krill_tui.skill import GENERAL, Skill, SkillKind, SkillOrigin, SkillProposal, SkillStats, SkillStatus

__all__ = ["GENERAL", "Skill", "SkillKind", "SkillOrigin", "SkillProposal", "SkillStats", "SkillStatus"]
