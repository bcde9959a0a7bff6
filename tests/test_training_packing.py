"""Packed sequences give what separate ones give, and leak nothing between each other."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from krill_tui.models.worker_protocol import GrpoEpisode
from krill_tui.training.batches import make_batch, split_for_packing
from krill_tui.training.grpo import GrpoSettings, grpo_step
from krill_tui.training.model import ModelSettings, PolicyModel
from krill_tui.training.packing import pack
from krill_tui.training.sft import sft_step
from krill_tui.training.tokens import ChatTokenizer, MaskedTokens, load_tokenizer
from krill_tui.training.trainer import Trainer
from tests.tiny_policy import make_policy, sample_episodes

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
}


def _group(seed: int, prompt: int = 40, size: int = 5) -> list[MaskedTokens]:
    """Sequences with a common prompt and two replies each, of different lengths."""
    rng = random.Random(seed)
    start = [rng.randrange(9, 250) for _ in range(prompt)]
    sequences = []
    for _ in range(size):
        lengths = [(rng.randrange(1, 9), 1), (rng.randrange(1, 30), 0), (rng.randrange(1, 9), 1), (2, 0)]
        ids = start + [rng.randrange(9, 250) for length, _ in lengths for _ in range(length)]
        mask = [0] * prompt + [own for length, own in lengths for _ in range(length)]
        sequences.append(MaskedTokens(tuple(ids), tuple(mask)))
    return sequences


def _other_bases() -> dict[str, Any]:
    torch.manual_seed(0)
    alibi = {k: v for k, v in SIZES.items() if k not in ("num_key_value_heads", "intermediate_size")}
    return {
        "qwen2": Qwen2ForCausalLM(Qwen2Config(**SIZES)),
        "gpt2": GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=256)),
        "sliding": MistralForCausalLM(MistralConfig(**SIZES, sliding_window=16)),
        "alibi": FalconForCausalLM(FalconConfig(**alibi, alibi=True)),
    }


def _policy(base: Any, folder: Path) -> PolicyModel:
    base.name_or_path = "random"
    chat = ChatTokenizer(load_tokenizer(folder))
    policy = PolicyModel(base, chat, ModelSettings(lora_rank=4), name="random")
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in policy.policy_parameters.items():
            if "lora_B" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return policy


def _scores(policy: PolicyModel, sequences: list[MaskedTokens], *, packed: bool) -> Tensor:
    with torch.no_grad():
        return policy.token_scores(make_batch(sequences, packed=packed))[0]


def _gradients(policy: PolicyModel, sequences: list[MaskedTokens], *, packed: bool) -> list[Tensor]:
    parameters = list(policy.policy_parameters.values())
    logprobs = policy.token_scores(make_batch(sequences, packed=packed))[0]
    weights = torch.linspace(-1, 1, logprobs.numel()).view_as(logprobs)
    return list(torch.autograd.grad((logprobs * weights).sum() / 10, parameters))


def test_a_pack_holds_every_sequence_once_and_shared_beginnings_once() -> None:
    rng = random.Random(3)
    for trial in range(200):
        stems = [tuple(rng.randrange(3) for _ in range(rng.randrange(0, 60))) for _ in range(3)]
        sequences = [
            rng.choice(stems) + tuple(rng.randrange(3) for _ in range(rng.randrange(0, 25))) for _ in range(7)
        ]
        row = pack([*sequences, sequences[0]])
        ids, positions = row.ids[0].tolist(), row.positions[0].tolist()
        for index, sequence in enumerate([*sequences, sequences[0]]):
            places = row.index(index)
            assert tuple(ids[place] for place in places) == sequence, trial
            assert [positions[place] for place in places] == list(range(len(sequence)))
        assert sum(row.layout.sizes) == len(ids)
        covered = sorted(node for _, siblings in row.layout.jobs for node in siblings)
        assert covered == list(range(len(row.layout.sizes)))
    prompt = tuple(range(100))
    assert pack([(*prompt, 1, 2), (*prompt, 3), (*prompt, 1, 2), prompt]).ids.shape[1] == 103


def test_packing_is_a_quarter_of_the_tokens_for_a_group_of_eight() -> None:
    group = _group(0, prompt=300, size=8)
    total = sum(len(sequence.ids) for sequence in group)
    assert make_batch(group, packed=True).tokens < total / 3


def test_micro_batches_keep_groups_together_within_the_budget_in_any_order() -> None:
    sequences = _group(1) + _group(2) + _group(3)
    rng = random.Random(0)
    rng.shuffle(sequences)
    groups = split_for_packing(sequences, 250)
    assert sorted(i for group in groups for i in group) == list(range(15))
    assert len(groups) > 1
    assert all(make_batch([sequences[i] for i in g], packed=True).tokens <= 250 for g in groups)
    backwards = split_for_packing(sequences[::-1], 250)
    assert [{14 - i for i in group} for group in backwards] == [set(group) for group in groups]


@pytest.mark.parametrize("fused", [True, False])
def test_packed_and_padded_computation_agree(tiny_model_dir: Path, fused: bool) -> None:
    policy = make_policy(tiny_model_dir)
    assert policy.packable
    policy.fused = fused
    sequences = [*_group(1), *_group(2), _group(3, size=1)[0], _group(1)[0]]
    one = _scores(policy, sequences, packed=False)
    other = _scores(policy, sequences, packed=True)
    assert one.abs().max() > 1
    assert (one - other).abs().max() < 1e-5
    for a, b in zip(
        _gradients(policy, sequences, packed=False), _gradients(policy, sequences, packed=True), strict=True
    ):
        assert (a - b).abs().max() < 1e-5 * max(1.0, a.abs().max().item())


def test_steps_packed_and_padded_agree(tiny_model_dir: Path) -> None:
    metrics = []
    for packable in (True, False):
        trainer = Trainer(make_policy(tiny_model_dir), token_budget=300)
        if not packable:
            trainer.policy.base.config.sliding_window = 10_000
        assert trainer.policy.packable == packable
        tokens = [t for t in sample_episodes(trainer.policy, 6) for _ in range(2)]
        episodes = [GrpoEpisode(tokens=t, advantage=0.3 * (n % 4) - 0.4) for n, t in enumerate(tokens)]
        values = grpo_step(trainer, episodes, GrpoSettings(learning_rate=1e-3, kl_coeff=0.1))
        values |= {f"sft {k}": v for k, v in sft_step(trainer, _group(4), learning_rate=1e-3).items()}
        metrics.append(values)
    one, other = metrics
    assert one["computed_tokens"] < 0.8 * other["computed_tokens"]
    for name in one:
        if not name.endswith(("per_second", "computed_tokens")):
            assert one[name] == pytest.approx(other[name], abs=1e-5), name


def test_a_completion_does_not_see_another(tiny_model_dir: Path) -> None:
    policy = make_policy(tiny_model_dir)
    assert policy.packable
    group = _group(5)
    before = _scores(policy, group, packed=True)
    for changed in range(len(group)):
        ids, mask = list(group[changed].ids), group[changed].mask
        ids[40] = 9 + ids[40] % 240
        ids[-3] = 9 + (ids[-3] + 1) % 240
        other = [*group]
        other[changed] = replace(group[changed], ids=tuple(ids))
        after = _scores(policy, other, packed=True)
        difference = (after - before).abs().amax(1)
        assert difference[changed] > 1e-3, mask
        difference[changed] = 0
        assert difference.max() < 1e-6


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize(
    ("kind", "packable"), [("qwen2", True), ("gpt2", True), ("sliding", False), ("alibi", False)]
)
def test_models_are_packed_where_that_changes_nothing(
    tiny_model_dir: Path, kind: str, packable: bool
) -> None:
    base = _other_bases()[kind]
    policy = _policy(base, tiny_model_dir)
    assert policy.packable == packable
    sequences = _group(1) + _group(2)
    padded = _scores(policy, sequences, packed=False)
    for row, sequence in enumerate(sequences):
        alone = _scores(policy, [sequence], packed=packable)
        assert (alone[0] - padded[row, : len(sequence.ids)]).abs().max() < 1e-5
    if packable:
        assert (_scores(policy, sequences, packed=True) - padded).abs().max() < 1e-5
