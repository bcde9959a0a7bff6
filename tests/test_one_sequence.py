"""One episode is one sequence: sampling, SFT and RL build the same tokens and the same mask, token for token."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from krill_tui.agent.prompts import PromptOptions
from krill_tui.agent.rollout import Rollout, conversation
from krill_tui.models.base import Message, Sampling
from krill_tui.paths import asset
from krill_tui.skill import GENERAL, Skill, SkillOrigin
from krill_tui.training.loading import load_model
from krill_tui.training.model import ModelSettings, PolicyModel
from krill_tui.training.sft import tokenize_demonstration
from krill_tui.training.tokens import MaskedTokens
from krill_tui.training.trainer import Trainer
from krill_tui.trajectory import Task
from tests.chatml import DEFAULT_SYSTEM, build_chatml_model
from tests.in_process import play_household

SKILLS = tuple(
    Skill(id=f"gen_{n:03}", name=text, principle=text, tier=GENERAL, origin=SkillOrigin(phase="hand"))
    for n, text in enumerate(("mug: cabinet", "heat: stoveburner", "egg: fridge"), start=1)
)
COMPACT = PromptOptions(style="compact", list_admissible=False)
FULL = PromptOptions(style="full", list_admissible=True)


@pytest.fixture(scope="module")
def tiny() -> PolicyModel:
    return load_model(str(asset("krill-tiny")), ModelSettings())


@pytest.fixture(scope="module")
def qwen_like(tmp_path_factory: pytest.TempPathFactory) -> PolicyModel:
    folder = build_chatml_model(tmp_path_factory.mktemp("chatml"), context=8192)
    return load_model(str(folder), ModelSettings(max_context=8192))


def _messages(rollout: Rollout, options: PromptOptions) -> list[Message]:
    """The episode as SFT would be shown it: from its trajectory alone."""
    trajectory = rollout.trajectory
    task = Task(
        id=trajectory.task_id,
        env=trajectory.env,
        split=trajectory.split,
        description=trajectory.task,
        category=trajectory.category,
    )
    return conversation(trajectory, task, options)


def _own_parts(mask: Sequence[int]) -> list[tuple[int, int]]:
    """Where each reply begins and ends."""
    edges = [i for i in range(1, len(mask)) if mask[i] != mask[i - 1]] + [len(mask)]
    return list(zip(edges[::2], edges[1::2], strict=False))


def _assert_one_sequence(rollout: Rollout, policy: PolicyModel, options: PromptOptions) -> None:
    sampled = rollout.tokens
    assert sampled is not None
    learned = tokenize_demonstration(Trainer(policy), _messages(rollout, options))
    assert sampled.ids == learned.ids
    assert sampled.mask == learned.mask
    assert len(_own_parts(sampled.mask)) == len(rollout.trajectory.steps)


@pytest.mark.parametrize("constrained", [True, False])
async def test_an_episode_of_krill_tiny_is_what_sft_would_read(tiny: PolicyModel, constrained: bool) -> None:
    sampling = Sampling(temperature=0.0, max_tokens=48, constrained=constrained)
    rollouts, _ = await play_household(
        tiny, 4, concurrency=4, sampling=sampling, prompt=COMPACT, skills=SKILLS, max_steps=8
    )
    assert max(len(rollout.trajectory.steps) for rollout in rollouts) == 8
    for rollout in rollouts:
        assert all(f"[{skill.id}]" in rollout.trajectory.system for skill in SKILLS)
        _assert_one_sequence(rollout, tiny, COMPACT)


async def test_an_episode_in_qwens_form_is_what_sft_would_read(qwen_like: PolicyModel) -> None:
    # With room for an action only, a model that knows nothing says what the constraint lets it, in SFT's own tokens.
    sampling = Sampling(temperature=1.0, max_tokens=1, constrained=True)
    rollouts, _ = await play_household(
        qwen_like, 4, concurrency=4, sampling=sampling, prompt=FULL, skills=SKILLS, max_steps=6
    )
    for rollout in rollouts:
        _assert_one_sequence(rollout, qwen_like, FULL)
        assert rollout.tokens
        text = qwen_like.chat.tokenizer.decode(rollout.tokens.ids)
        whole = qwen_like.chat.tokenizer.apply_chat_template(_messages(rollout, FULL), tokenize=False)
        # The template's line end after the last reply would be context of a turn that does not come.
        assert text + "\n" == whole
        assert text.startswith("<|im_start|>system\n")
        assert text.count("<|im_end|>\n<|im_start|>user\n") == len(rollout.trajectory.steps)


async def test_free_replies_stand_in_the_same_frame_whatever_their_tokens(qwen_like: PolicyModel) -> None:
    """A model that knows nothing splits its text in ways no tokenizer does: its ids stay, all around them is SFT's."""
    sampling = Sampling(temperature=1.0, max_tokens=10)
    rollouts, _ = await play_household(
        qwen_like, 4, concurrency=4, sampling=sampling, prompt=FULL, skills=SKILLS, max_steps=4
    )
    for rollout in rollouts:
        sampled, messages = rollout.tokens, _messages(rollout, FULL)
        assert sampled is not None
        learned = qwen_like.chat.conversation(messages)
        replies = [m["content"] for m in messages if m["role"] == "assistant"]
        assert [_said(qwen_like, part) for part in _parts(sampled.ids, sampled.mask, 1)] == replies
        assert [_said(qwen_like, part) for part in _parts(learned.ids, learned.mask, 1)] == replies
        # A reply that was cut is closed by the template, not by the policy.
        end = qwen_like.chat.end_of_turn
        frames = [
            part[1:] if n and part[0] == end else part
            for n, part in enumerate(_parts(sampled.ids, sampled.mask, 0))
        ]
        assert frames == _parts(learned.ids, learned.mask, 0)


def _parts(ids: Sequence[int], mask: Sequence[int], own: int) -> list[tuple[int, ...]]:
    """The replies (`own` 1) or what stands between them (0)."""
    parts: list[list[int]] = []
    for i, (token, m) in enumerate(zip(ids, mask, strict=True)):
        if m == own and (i == 0 or mask[i - 1] != own):
            parts.append([])
        if m == own:
            parts[-1].append(token)
    return [tuple(part) for part in parts]


def _said(policy: PolicyModel, ids: Sequence[int]) -> str:
    return policy.chat.decode(ids)


def test_without_a_system_message_the_template_gives_its_own(qwen_like: PolicyModel) -> None:
    tokens: MaskedTokens = qwen_like.chat.conversation([{"role": "user", "content": "You see a mug 1."}])
    assert DEFAULT_SYSTEM in qwen_like.chat.tokenizer.decode(tokens.ids)
    assert not any(tokens.mask)
