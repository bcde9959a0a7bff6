"""SFT and GRPO steps on a tiny real model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from krill_tui.errors import ModelError
from krill_tui.models.base import Message
from krill_tui.models.worker_protocol import GrpoEpisode
from krill_tui.training.advantage import group_advantages
from krill_tui.training.batches import make_batch, split_by_tokens
from krill_tui.training.grpo import GrpoSettings, grpo_step, over_iterations
from krill_tui.training.sampler import Sampler
from krill_tui.training.sft import sft_step, tokenize_demonstration
from krill_tui.training.tokens import MaskedTokens
from krill_tui.training.trainer import Trainer
from krill_tui.trajectory import EpisodeTokens
from tests.tiny_policy import as_tokens, gradients_of, item, make_policy, opening, sample_episodes

Fresh = Callable[[], Trainer]
DEMONSTRATIONS: list[list[Message]] = [
    [
        {"role": "system", "content": "mug: cabinet [gen_003]"},
        {"role": "user", "content": "Your task is to: put a mug in cabinet. " * (1 + n % 3)},
        {
            "role": "assistant",
            "content": f"<think>mug: cabinet [gen_003]</think><action>go to cabinet {n}</action>",
        },
        {"role": "user", "content": "You see nothing."},
        {"role": "assistant", "content": "<think>now look</think><action>look</action>"},
    ]
    for n in range(5)
]


@pytest.fixture
def fresh(tiny_model_dir: Path) -> Fresh:
    return lambda: Trainer(make_policy(tiny_model_dir))


def _weights(trainer: Trainer, adapter: str = "policy") -> dict[str, torch.Tensor]:
    return {
        name: parameter.detach().clone()
        for name, parameter in trainer.policy.peft.named_parameters()
        if f".{adapter}." in name
    }


def _difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max((a[name] - b[name]).abs().max().item() for name in a)


def _demonstrations(trainer: Trainer) -> list[MaskedTokens]:
    return [tokenize_demonstration(trainer, messages) for messages in DEMONSTRATIONS]


def _episodes(trainer: Trainer, count: int = 6) -> list[GrpoEpisode]:
    tokens = sample_episodes(trainer.policy, count)
    advantages = group_advantages([n % 2 + 0.1 * n for n in range(count)])
    return [GrpoEpisode(tokens=t, advantage=float(a)) for t, a in zip(tokens, advantages, strict=True)]


def test_micro_batches_hold_all_sequences_within_the_budget() -> None:
    lengths = [5, 30, 7, 30, 2, 90, 11]
    groups = split_by_tokens(lengths, 60)
    assert sorted(i for group in groups for i in group) == list(range(7))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= 60
    assert groups[0] == [5]


def test_sft_lowers_the_loss(fresh: Fresh) -> None:
    trainer = fresh()
    losses = [sft_step(trainer, _demonstrations(trainer), learning_rate=1e-2)["loss"] for _ in range(50)]
    assert losses[-1] < 0.5 * losses[0]
    assert trainer.version == 50


def test_the_sft_loss_is_the_mean_over_all_reply_tokens_of_the_batch(fresh: Fresh) -> None:
    trainer = fresh()
    demonstrations = _demonstrations(trainer)
    total, count = 0.0, 0
    with torch.no_grad():
        weights = trainer.policy.merged_weights("policy")
        for tokens in demonstrations:
            ids = torch.tensor([tokens.ids])
            logits = torch.func.functional_call(trainer.policy.base, weights, (ids,)).logits[0]
            logprobs = torch.log_softmax(logits[:-1], -1).gather(1, ids[0, 1:, None]).squeeze(1)
            mask = torch.tensor(tokens.mask[1:])
            total -= (logprobs * mask).sum().item()
            count += int(mask.sum())
    metrics = sft_step(trainer, demonstrations, learning_rate=0.0, update=False)
    assert metrics["loss"] == pytest.approx(total / count, abs=1e-5)
    assert metrics["policy_tokens"] == count


def test_measuring_changes_nothing(fresh: Fresh) -> None:
    trainer = fresh()
    before = _weights(trainer)
    metrics = sft_step(trainer, _demonstrations(trainer), learning_rate=1.0, update=False)
    assert "grad_norm" not in metrics
    assert _difference(before, _weights(trainer)) == 0
    assert trainer.version == 0


@pytest.mark.parametrize("budget", [1, 200])
def test_an_sft_step_does_not_depend_on_micro_batches_or_order(fresh: Fresh, budget: int) -> None:
    whole, split = fresh(), fresh()
    split.token_budget = budget
    demonstrations = _demonstrations(whole)
    one = sft_step(whole, demonstrations, learning_rate=1e-3)
    other = sft_step(split, demonstrations[::-1], learning_rate=1e-3)
    for name in ("loss", "entropy", "mean_token_accuracy", "grad_norm"):
        assert other[name] == pytest.approx(one[name], abs=1e-5)
    assert _difference(_weights(whole), _weights(split)) < 1e-5


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "gspo"])
def test_a_grpo_step_does_not_depend_on_micro_batches_or_order(fresh: Fresh, loss_type: str) -> None:
    whole, split = fresh(), fresh()
    split.token_budget = 150
    whole.policy.freeze_reference()
    split.policy.freeze_reference()
    episodes = _episodes(whole)
    settings = GrpoSettings(learning_rate=1e-3, kl_coeff=0.1, loss_type=loss_type)  # type: ignore[arg-type]
    one = grpo_step(whole, episodes, settings)
    other = grpo_step(split, episodes[::-1], settings)
    for name in one.keys() - {"training_tokens_per_second"}:
        assert other[name] == pytest.approx(one[name], abs=1e-5), name
    # AdamW's first step is the sign of a gradient: where that is rounding, so is the sign.
    assert one["grad_norm"] > 1e-3


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "gspo"])
def test_a_grpo_gradient_is_the_same_however_the_batch_is_cut(fresh: Fresh, loss_type: str) -> None:
    """Micro-batches, order, padding or packing, merged weights or PEFT's layers: at the second of two iterations."""
    trainer = fresh()
    trainer.policy.freeze_reference()
    episodes = _episodes(trainer)
    settings = GrpoSettings(
        learning_rate=1e-2,
        kl_coeff=0.1,
        clip_epsilon=0.05,
        loss_type=loss_type,  # type: ignore[arg-type]
    )
    old: dict[int, torch.Tensor] = {}
    grpo_step(trainer, episodes, settings, old_logprobs=old)
    backwards = {len(episodes) - 1 - i: row for i, row in old.items()}

    def gradient(given: list[GrpoEpisode], before: dict[int, torch.Tensor]) -> dict[str, torch.Tensor]:
        return gradients_of(trainer, lambda: grpo_step(trainer, given, settings, old_logprobs=before))

    whole = gradient(episodes, old)
    assert max(g.abs().max().item() for g in whole.values()) > 1e-3
    for budget, packed, fused in (
        (1, False, True),
        (150, True, True),
        (150, False, False),
        (9999, False, True),
    ):
        trainer.token_budget, trainer.policy._packable, trainer.policy.fused = budget, packed, fused
        assert _difference(gradient(episodes[::-1], backwards), whole) < 1e-5, (budget, packed, fused)


@pytest.mark.parametrize("constrained", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampler_and_trainer_agree_before_and_after_an_update(
    fresh: Fresh, constrained: bool, temperature: float
) -> None:
    trainer = fresh()
    sampler = Sampler(trainer.policy)
    settings = GrpoSettings(learning_rate=2e-2, temperature=temperature)
    for _ in range(2):
        tokens = sample_episodes(
            trainer.policy, 6, constrained=constrained, temperature=temperature, sampler=sampler
        )
        episodes = [GrpoEpisode(tokens=t, advantage=(-1.0) ** n) for n, t in enumerate(tokens)]
        metrics = grpo_step(trainer, episodes, settings)
        assert metrics["sampling/importance_sampling_ratio/mean"] == pytest.approx(1.0, abs=1e-4)
        assert metrics["sampling/sampling_logp_difference/max"] < 1e-4
        assert metrics["clip_ratio/region_mean"] == 0
        # Until it is refreshed, the sampler is the policy before the update.
        stale = grpo_step(trainer, episodes, settings)
        assert stale["sampling/sampling_logp_difference/max"] > 1e-3
        sampler.refresh()


def test_a_merged_adapter_gives_the_logits_of_pefts_layers(fresh: Fresh) -> None:
    policy = fresh().policy
    ids = torch.randint(10, 300, (2, 40), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        by_layers = policy.peft(ids).logits
        in_sampler = Sampler(policy)._model(ids).logits
        merged = copy.deepcopy(policy.peft).merge_and_unload(adapter_names=["policy"])(ids).logits
        base = policy.base(ids).logits
    assert (base - by_layers).abs().max() > 0.1
    for logits in (in_sampler, merged):
        assert (logits - by_layers).abs().max() < 1e-4


def test_an_episode_whose_tokens_are_masked_counts_as_an_episode_and_no_more(fresh: Fresh) -> None:
    settings = GrpoSettings(learning_rate=1e-3, kl_coeff=0.0)
    whole = fresh()
    first, *rest = _episodes(whole)
    silent = EpisodeTokens(
        ids=first.tokens.ids, mask=(0,) * len(first.tokens.ids), logprobs=first.tokens.logprobs
    )
    with_silent = grpo_step(whole, [GrpoEpisode(tokens=silent, advantage=3.0), *rest], settings)
    alone = grpo_step(fresh(), rest, settings)
    share = len(rest) / (len(rest) + 1)
    assert with_silent["grad_norm"] == pytest.approx(share * alone["grad_norm"], rel=1e-4)
    assert with_silent["policy_tokens"] == alone["policy_tokens"]


def test_the_update_does_not_depend_on_the_samplers_last_bits(fresh: Fresh) -> None:
    one, other = fresh(), fresh()
    episodes = _episodes(one)
    settings = GrpoSettings(learning_rate=1e-3)
    grpo_step(one, episodes, settings)
    moved = [
        GrpoEpisode(
            tokens=e.tokens.model_copy(update={"logprobs": tuple(x + 1e-3 for x in e.tokens.logprobs)}),
            advantage=e.advantage,
        )
        for e in episodes
    ]
    metrics = grpo_step(other, moved, settings)
    assert _difference(_weights(one), _weights(other)) == 0
    assert metrics["sampling/sampling_logp_difference/max"] > 9e-4


def test_later_iterations_are_clipped_against_the_policy_before_the_first(fresh: Fresh) -> None:
    trainer = fresh()
    episodes = _episodes(trainer)
    settings = GrpoSettings(learning_rate=2e-2, clip_epsilon=0.01, kl_coeff=0.0)
    old: dict[int, torch.Tensor] = {}
    steps = [grpo_step(trainer, episodes, settings, old_logprobs=old) for _ in range(3)]
    assert steps[0]["clip_ratio/region_mean"] == 0 == steps[0]["policy_move"]
    assert all(step["clip_ratio/region_mean"] > 0 for step in steps[1:])
    assert trainer.version == 3
    shown = over_iterations(steps)
    assert shown["clip_ratio/region_mean"] == pytest.approx(
        sum(step["clip_ratio/region_mean"] for step in steps) / 3
    )
    assert shown["sampling/sampling_logp_difference/max"] == steps[0]["sampling/sampling_logp_difference/max"]


def test_metrics_have_the_names_of_the_field(fresh: Fresh) -> None:
    trainer = fresh()
    metrics = grpo_step(trainer, _episodes(trainer), GrpoSettings(learning_rate=1e-3))
    assert metrics.keys() >= {
        "loss",
        "kl",
        "entropy",
        "clip_ratio/low_mean",
        "clip_ratio/high_mean",
        "clip_ratio/region_mean",
        "grad_norm",
        "learning_rate",
        "training_tokens_per_second",
    }
    assert all(math.isfinite(value) for value in metrics.values())


def test_kl_is_zero_against_a_reference_just_frozen_and_grows_with_training(fresh: Fresh) -> None:
    trainer = fresh()
    trainer.start_phase()
    episodes = _episodes(trainer)
    values = [grpo_step(trainer, episodes, GrpoSettings(learning_rate=1e-2))["kl"] for _ in range(4)]
    assert values[0] == pytest.approx(0.0, abs=1e-6)
    assert values[-1] > 1e-4


def test_training_never_moves_the_reference_or_the_base(fresh: Fresh) -> None:
    trainer = fresh()
    trainer.start_phase()
    reference = _weights(trainer, "reference")
    base = {name: p.detach().clone() for name, p in trainer.policy.base.named_parameters()}
    policy = _weights(trainer)
    episodes = _episodes(trainer)
    for fused in (True, False):
        trainer.policy.fused = fused
        grpo_step(trainer, episodes, GrpoSettings(learning_rate=1e-2))
        sft_step(trainer, _demonstrations(trainer), learning_rate=1e-2)
    assert _difference(reference, _weights(trainer, "reference")) == 0
    assert all(torch.equal(base[name], p) for name, p in trainer.policy.base.named_parameters())
    assert _difference(policy, _weights(trainer)) > 1e-3


def test_both_ways_to_compute_with_the_adapter_agree(fresh: Fresh) -> None:
    fused, layered = fresh(), fresh()
    layered.policy.fused = False
    episodes = _episodes(fused)
    one = grpo_step(fused, episodes, GrpoSettings(learning_rate=1e-3))
    other = grpo_step(layered, episodes, GrpoSettings(learning_rate=1e-3))
    for name in ("loss", "kl", "entropy", "grad_norm"):
        assert other[name] == pytest.approx(one[name], abs=1e-5)


def test_context_tokens_get_no_gradient(fresh: Fresh) -> None:
    trainer = fresh()
    tokens = _episodes(trainer, 1)[0].tokens
    batch = make_batch([MaskedTokens(tokens.ids, tokens.mask, tokens.allowed)])
    scored = set(batch.columns.tolist())
    own = {i for i, m in enumerate(tokens.mask) if m}
    assert scored <= own
    logprobs = trainer.policy.token_scores(batch)[0][0]
    assert all(logprobs[i] == 0 for i in range(len(tokens.ids)) if i not in own)


def test_a_forced_token_has_probability_one_and_a_chosen_one_is_renormalised(fresh: Fresh) -> None:
    trainer = fresh()
    ids, mask = (1, 2, 40, 41, 42, 43), (0, 0, 0, 1, 1, 1)
    free = make_batch([MaskedTokens(ids, mask)])
    bound = make_batch([MaskedTokens(ids, mask, ((), (), (), (41,), (42, 50, 60), ()))])
    with torch.no_grad():
        all_of = {
            t: trainer.policy.token_scores(make_batch([MaskedTokens((*ids[:4], t), mask[:5])]))[0][0, 4]
            for t in (42, 50, 60)
        }
        one, two = trainer.policy.token_scores(free)[0][0], trainer.policy.token_scores(bound)[0][0]
    total = torch.logsumexp(torch.stack(list(all_of.values())), 0)
    assert two[3] == 0
    assert two[4].item() == pytest.approx((all_of[42] - total).item(), abs=1e-5)
    assert two[5].item() == pytest.approx(one[5].item(), abs=1e-6)


def test_an_update_that_is_not_finite_is_refused_and_leaves_the_weights(fresh: Fresh) -> None:
    trainer = fresh()
    episodes = _episodes(trainer, 2)
    broken = [GrpoEpisode(tokens=episodes[0].tokens, advantage=float("inf")), episodes[1]]
    before = _weights(trainer)
    with pytest.raises(ModelError, match="not finite"):
        grpo_step(trainer, broken, GrpoSettings(learning_rate=1e-3))
    assert _difference(before, _weights(trainer)) == 0
    assert trainer.version == 0


def test_batches_with_nothing_to_learn_from_are_refused(fresh: Fresh) -> None:
    trainer = fresh()
    silent = EpisodeTokens(ids=(1, 2, 3), mask=(0, 0, 0), logprobs=(0, 0, 0))
    with pytest.raises(ModelError, match="no policy token"):
        grpo_step(trainer, [GrpoEpisode(tokens=silent, advantage=1.0)], GrpoSettings(learning_rate=1e-3))
    with pytest.raises(ModelError, match="no reply"):
        sft_step(trainer, [MaskedTokens((1, 2), (0, 0))], learning_rate=1e-3)


def test_grpo_learns_which_of_two_actions_is_rewarded(fresh: Fresh) -> None:
    trainer = fresh()
    trainer.start_phase()
    sampler = Sampler(trainer.policy)
    rates = []
    for step in range(12):
        names = [f"{step}-{n}" for n in range(16)]
        items = [
            item(
                name,
                opening(),
                seed=100 * step + n,
                constrained=True,
                max_tokens=14,
                admissible=("look", "open drawer 2"),
            )
            for n, name in enumerate(names)
        ]
        outputs = sampler.sample(items)
        sampler.finish(names)
        rewards = [float("look" in output.text.rpartition("<action>")[2]) for output in outputs]
        rates.append(sum(rewards) / len(rewards))
        episodes = [
            GrpoEpisode(tokens=as_tokens([output]), advantage=float(advantage))
            for output, advantage in zip(outputs, group_advantages(rewards), strict=True)
        ]
        grpo_step(trainer, episodes, GrpoSettings(learning_rate=2e-2))
        sampler.refresh()
    assert sum(rates[:2]) / 2 < 0.8
    assert sum(rates[-3:]) / 3 > 0.95
