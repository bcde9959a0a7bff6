"""Losses, gradients and advantages are TRL's: its own trainers run here on the same tensors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from krill_tui.models.worker_protocol import GrpoEpisode
from krill_tui.training.advantage import ScaleRewards, batch_advantages
from krill_tui.training.grpo import GrpoSettings, grpo_step
from krill_tui.training.losses import LossType, grpo_loss, token_weights
from krill_tui.training.model import PolicyModel
from krill_tui.training.sft import sft_step
from krill_tui.training.tokens import MaskedTokens
from krill_tui.training.trainer import Trainer
from krill_tui.trajectory import EpisodeTokens
from tests.tiny_policy import gradients_of, make_policy, sample_episodes
from tests.trl_oracle import MAX_COMPLETION, Completion, TrlGrpo

pytest.importorskip("trl")

GROUPS, GROUP_SIZE = 3, 4
EPISODES = GROUPS * GROUP_SIZE
LOSS_TYPES: tuple[LossType, ...] = ("grpo", "dr_grpo", "dapo", "gspo")
# The second group has no spread.
RETURNS = [1.0, 0.0, 0.9, -0.2, 0.3, 0.3, 0.3, 0.3, 0.0, 0.0, 0.0, 1.0]


@pytest.fixture(scope="module")
def trl(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> TrlGrpo:
    return TrlGrpo(tiny_model_dir, tmp_path_factory.mktemp("trl"), groups=GROUPS, group_size=GROUP_SIZE)


def _completions() -> list[Completion]:
    """Ragged, each of one token to `MAX_COMPLETION`, with the environment's tokens between those of the policy."""
    lengths = [1 + (5 * n) % MAX_COMPLETION for n in range(EPISODES)]
    return [
        ([7 + i for i in range(length)], [int(i % 5 not in (3, 4)) for i in range(length)])
        for length in lengths
    ]


def _score(trl: TrlGrpo, scale_rewards: str = "group", returns: list[float] = RETURNS) -> dict[str, Any]:
    return trl.score([[5, 6]] * EPISODES, _completions(), returns, scale_rewards)


@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
@pytest.mark.parametrize("returns", [RETURNS, [0.5] * EPISODES, [0.1 * n for n in range(EPISODES)]])
def test_advantages_are_trls(trl: TrlGrpo, scale_rewards: ScaleRewards, returns: list[float]) -> None:
    theirs = _score(trl, scale_rewards, returns)["advantages"]
    groups = [returns[i : i + GROUP_SIZE] for i in range(0, EPISODES, GROUP_SIZE)]
    ours = [float(a) for group in batch_advantages(groups, scale_rewards) for a in group]
    assert ours == pytest.approx(theirs.tolist(), abs=1e-5)


@pytest.mark.parametrize("use_bias_correction_kl", [False, True])
@pytest.mark.parametrize("epsilon_high", [None, 0.28])
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_losses_and_their_gradients_are_trls(
    trl: TrlGrpo,
    loss_type: LossType,
    beta: float,
    epsilon_high: float | None,
    use_bias_correction_kl: bool,
) -> None:
    inputs = _score(trl)
    mask = inputs["completion_mask"] * inputs["tool_mask"]
    generator = torch.Generator().manual_seed(len(loss_type))
    logprobs = -3 * torch.rand(mask.shape, generator=generator)
    # Episodes lean to one side, so that gspo's mean ratios are on both sides of the clip, too.
    lean = 0.4 * (1 - 2 * (torch.arange(EPISODES) // 2 % 2))[:, None]
    inputs["old_per_token_logps"] = logprobs + lean + 0.3 * torch.randn(mask.shape, generator=generator)
    inputs["ref_per_token_logps"] = logprobs + 0.5 * torch.randn(mask.shape, generator=generator)

    theirs_at = logprobs.clone().requires_grad_()
    theirs = trl.loss(
        inputs,
        theirs_at,
        loss_type=loss_type,
        beta=beta,
        clip_epsilon=0.2,
        epsilon_high=epsilon_high,
        use_bias_correction_kl=use_bias_correction_kl,
    )
    theirs.backward()
    ours_at = logprobs.clone().requires_grad_()
    ours = grpo_loss(
        ours_at,
        inputs["old_per_token_logps"],
        inputs["ref_per_token_logps"] if beta else None,
        inputs["advantages"],
        mask,
        token_weights(mask, loss_type, EPISODES, int(mask.sum()), MAX_COMPLETION),
        clip_epsilon=0.2,
        epsilon_high=epsilon_high,
        kl_coeff=beta,
        loss_type=loss_type,
        use_bias_correction_kl=use_bias_correction_kl,
    )
    ours.loss.backward()
    assert ours.clipped_low.any() and ours.clipped_high.any()
    assert ours.loss.item() == pytest.approx(theirs.item(), abs=1e-5)
    assert theirs_at.grad is not None and ours_at.grad is not None
    assert theirs_at.grad.abs().max() > 1e-3
    torch.testing.assert_close(ours_at.grad, theirs_at.grad, atol=1e-5, rtol=0)
    if loss_type != "gspo":
        for name, values in (("low_mean", ours.clipped_low), ("high_mean", ours.clipped_high)):
            share = (values * mask).sum().item() / mask.sum().item()
            assert share == pytest.approx(trl.metric(f"clip_ratio/{name}"), abs=1e-6)
    if beta:
        assert (ours.kl * mask).sum().item() / mask.sum().item() == pytest.approx(trl.metric("kl"), abs=1e-5)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_truncated_episodes_are_masked_as_trl_masks_them(
    trl: TrlGrpo, loss_type: LossType, monkeypatch: pytest.MonkeyPatch
) -> None:
    completions = _completions()
    end = trl.trainer.eos_token_ids[0]
    for n in range(0, EPISODES, 2):
        completions[n] = ([*completions[n][0][:-1], end], completions[n][1])
    monkeypatch.setattr(trl.trainer, "mask_truncated_completions", True)
    inputs = trl.score([[5, 6]] * EPISODES, completions, RETURNS, "group")
    width = inputs["completion_ids"].shape[1]
    cut = [ids[-1] != end for ids, _ in completions]
    masks = [
        [0] * width if c else [*m, *[0] * (width - len(m))]
        for c, (_, m) in zip(cut, completions, strict=True)
    ]
    mask = torch.tensor(masks)
    logprobs = -3 * torch.rand(mask.shape, generator=torch.Generator().manual_seed(2))
    inputs["old_per_token_logps"] = logprobs + 0.1
    theirs = trl.loss(inputs, logprobs, loss_type=loss_type, beta=0.0, clip_epsilon=0.2, epsilon_high=None)
    ours = grpo_loss(
        logprobs,
        logprobs + 0.1,
        None,
        inputs["advantages"],
        mask,
        token_weights(mask, loss_type, EPISODES, int(mask.sum()), MAX_COMPLETION),
        clip_epsilon=0.2,
        epsilon_high=None,
        kl_coeff=0.0,
        loss_type=loss_type,
    )
    assert abs(theirs.item()) > 1e-3
    assert ours.loss.item() == pytest.approx(theirs.item(), abs=1e-5)


def _peft_logprobs(policy: PolicyModel, ids: Tensor, adapter: str, temperature: float) -> Tensor:
    """`[B, T - 1]` log-probabilities of each next token by PEFT's own layers and a plain softmax."""
    policy.peft.set_adapter(adapter)
    logits = policy.peft(ids).logits[:, :-1].float() / temperature
    policy.peft.set_adapter("policy")
    return torch.log_softmax(logits, -1).gather(2, ids[:, 1:, None]).squeeze(2)


def _as_completions(episodes: Sequence[EpisodeTokens]) -> tuple[list[list[int]], list[Completion]]:
    """An episode as TRL lays it out: the prompt up to the first token of the policy, then the rest with its mask."""
    starts = [tokens.mask.index(1) for tokens in episodes]
    prompts = [list(tokens.ids[:start]) for tokens, start in zip(episodes, starts, strict=True)]
    rests = [(t.ids[start:], t.mask[start:]) for t, start in zip(episodes, starts, strict=True)]
    return prompts, [(list(ids), list(mask)) for ids, mask in rests]


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_whole_step_has_the_gradient_of_trls_loss(
    trl: TrlGrpo, tiny_model_dir: Path, loss_type: LossType
) -> None:
    """From sampled episodes to the adapter's gradient, against TRL's loss over PEFT's own layers, two iterations."""
    temperature = 0.8
    trainer = Trainer(make_policy(tiny_model_dir))
    trainer.policy.freeze_reference()
    trainer.token_budget = 300
    episodes = sample_episodes(trainer.policy, EPISODES, turns=2, constrained=False, temperature=temperature)
    prompts, completions = _as_completions(episodes)
    inputs = trl.score(prompts, completions, RETURNS, "group")
    mask = inputs["completion_mask"] * inputs["tool_mask"]
    advantages = inputs["advantages"].tolist()
    batch = [GrpoEpisode(tokens=t, advantage=a) for t, a in zip(episodes, advantages, strict=True)]
    settings = GrpoSettings(
        learning_rate=0.05,
        clip_epsilon=0.02,
        kl_coeff=0.1,
        loss_type=loss_type,
        temperature=temperature,
        max_completion_length=MAX_COMPLETION,
    )

    def theirs(old: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        """Gradients, and log-probabilities `[B, completion]`."""

        def logprobs(adapter: str) -> Tensor:
            rows = []
            for n, (prompt, (ids, _)) in enumerate(zip(prompts, completions, strict=True)):
                row = _peft_logprobs(trainer.policy, torch.tensor([[*prompt, *ids]]), adapter, temperature)[0]
                # What a reply's end forced was certain, not drawn.
                allowed = (episodes[n].allowed or ((),) * len(episodes[n].ids))[len(prompt) :]
                drawn = torch.tensor([len(choices) != 1 for choices in allowed])
                own = row[len(prompt) - 1 :] * drawn
                rows.append(torch.nn.functional.pad(own, (0, mask.shape[1] - len(completions[n][0]))))
            return torch.stack(rows)

        now = logprobs("policy")
        with torch.no_grad():
            inputs["ref_per_token_logps"] = logprobs("reference")
        inputs["old_per_token_logps"] = now.detach() if old is None else old
        trl.loss(inputs, now, loss_type=loss_type, beta=0.1, clip_epsilon=0.02, epsilon_high=None).backward()
        gradients = {
            n: p.grad.clone() for n, p in trainer.policy.policy_parameters.items() if p.grad is not None
        }
        trainer.clear_gradients()
        return gradients, now.detach()

    old_logprobs: dict[int, Tensor] = {}
    first, old = theirs(None)
    ours = gradients_of(trainer, lambda: grpo_step(trainer, batch, settings))
    _assert_same(ours, first)
    metrics = grpo_step(trainer, batch, settings, old_logprobs=old_logprobs)
    assert metrics["clip_ratio/region_mean"] == 0
    second, _ = theirs(old)
    ours = gradients_of(
        trainer,
        lambda: metrics.update(grpo_step(trainer, batch, settings, old_logprobs=old_logprobs)),
    )
    assert metrics["clip_ratio/region_mean"] > 0
    _assert_same(ours, second)


def _assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    largest = max(gradient.abs().max().item() for gradient in theirs.values())
    assert math.isfinite(largest) and largest > 1e-3
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-5 * max(1.0, largest), rtol=0)


def test_the_sft_loss_and_its_gradient_are_trls(tiny_model_dir: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    ours = Trainer(make_policy(tiny_model_dir))
    episodes = [MaskedTokens(t.ids, t.mask) for t in sample_episodes(ours.policy, 5, constrained=False)]
    examples = [
        {"input_ids": list(t.ids), "labels": [i if m else -100 for i, m in zip(t.ids, t.mask, strict=True)]}
        for t in episodes
    ]
    metrics: dict[str, float] = {}
    gradients = gradients_of(ours, lambda: metrics.update(sft_step(ours, episodes, learning_rate=1e-3)))
    model = make_policy(tiny_model_dir)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs: Any = SFTTrainer(
            model=model.peft,
            args=SFTConfig(
                output_dir=str(tmp_path),
                report_to="none",
                use_cpu=True,
                bf16=False,
                dataset_kwargs={"skip_prepare_dataset": True},
                per_device_train_batch_size=len(examples),
            ),
            train_dataset=Dataset.from_list(examples),
            processing_class=model.chat.tokenizer,
        )
        inputs = theirs.data_collator(examples)
        loss = theirs.compute_loss(theirs.model, inputs)
    loss.backward()
    assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-5)
    _assert_same(gradients, {n: p.grad for n, p in model.policy_parameters.items() if p.grad is not None})
