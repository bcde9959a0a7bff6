"""Checkpoints: what was interrupted goes on as if it had not been."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from krill_tui.errors import ModelError
from krill_tui.models.worker_protocol import GrpoEpisode
from krill_tui.training.checkpoint import load_checkpoint, save_checkpoint
from krill_tui.training.grpo import GrpoSettings, grpo_step
from krill_tui.training.loading import load_model
from krill_tui.training.model import ModelSettings
from krill_tui.training.trainer import Trainer
from tests.tiny_policy import make_policy, sample_episodes


def _train(trainer: Trainer, steps: int) -> None:
    """Deterministic steps: each samples with the weights it has."""
    for _ in range(steps):
        tokens = sample_episodes(trainer.policy, 4, turns=1)
        episodes = [GrpoEpisode(tokens=t, advantage=(-1.0) ** n) for n, t in enumerate(tokens)]
        grpo_step(trainer, episodes, GrpoSettings(learning_rate=1e-3, kl_coeff=0.1))


def test_an_interrupted_training_ends_with_the_weights_of_an_uninterrupted_one(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    through = Trainer(make_policy(tiny_model_dir))
    through.start_phase()
    _train(through, 2)
    save_checkpoint(through, tmp_path / "rl-2")
    random_state = torch.get_rng_state()
    _train(through, 2)

    resumed = Trainer(make_policy(tiny_model_dir, strength=0.0))
    torch.manual_seed(99)
    load_checkpoint(resumed, tmp_path / "rl-2")
    assert resumed.version == 2
    assert torch.equal(torch.get_rng_state(), random_state)
    _train(resumed, 2)

    for (name, one), (other_name, other) in zip(
        through.policy.peft.named_parameters(), resumed.policy.peft.named_parameters(), strict=True
    ):
        assert name == other_name
        assert torch.equal(one, other), name


def test_the_adapter_is_an_ordinary_peft_folder(tiny_model_dir: Path, tmp_path: Path) -> None:
    trainer = Trainer(make_policy(tiny_model_dir))
    save_checkpoint(trainer, tmp_path / "sft-1")
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    with pytest.MonkeyPatch.context() as patch:
        # PEFT asks transformers for an attribute under a name that warns.
        patch.setattr(type(base), "is_gradient_checkpointing", False)
        theirs = PeftModel.from_pretrained(base, str(tmp_path / "sft-1" / "policy"))
    ids = torch.tensor([[1, 2, 30, 31, 32]])
    with torch.no_grad():
        weights = trainer.policy.merged_weights("policy")
        ours = torch.func.functional_call(trainer.policy.base, weights, (ids,)).logits
        assert torch.allclose(theirs(ids).logits, ours, atol=1e-5)


def test_saving_again_replaces_the_whole_and_leaves_nothing_beside(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    trainer = Trainer(make_policy(tiny_model_dir))
    target = tmp_path / "checkpoints" / "sft-1"
    save_checkpoint(trainer, target)
    trainer.version = 7
    save_checkpoint(trainer, target)
    assert [path.name for path in target.parent.iterdir()] == ["sft-1"]
    assert json.loads((target / "manifest.json").read_text())["version"] == 7
    assert not list(target.rglob("*.bin"))


def test_a_checkpoint_without_its_manifest_is_none(tiny_model_dir: Path, tmp_path: Path) -> None:
    trainer = Trainer(make_policy(tiny_model_dir))
    save_checkpoint(trainer, tmp_path / "a")
    (tmp_path / "a" / "manifest.json").unlink()
    with pytest.raises(ModelError, match="no complete checkpoint"):
        load_checkpoint(trainer, tmp_path / "a")


def test_a_damaged_checkpoint_is_one_clear_line(tiny_model_dir: Path, tmp_path: Path) -> None:
    trainer = Trainer(make_policy(tiny_model_dir))
    save_checkpoint(trainer, tmp_path / "a")
    (tmp_path / "a" / "policy" / "adapter_model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ModelError, match="cannot be read") as caught:
        load_checkpoint(trainer, tmp_path / "a")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_adapter_shape_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    save_checkpoint(Trainer(make_policy(tiny_model_dir)), tmp_path / "a")
    other = Trainer(load_model(str(tiny_model_dir), ModelSettings(lora_rank=8, lora_alpha=8)))
    with pytest.raises(ModelError, match="lora_rank 4, the model 8"):
        load_checkpoint(other, tmp_path / "a")
