"""Checkpoints: adapters, optimizer and random state, complete or not there at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from krill_tui.errors import ModelError
from krill_tui.io.checksums import MANIFEST, damage, write_manifest
from krill_tui.io.files import sync_folder
from krill_tui.io.json_text import loads_leniently
from krill_tui.training.model import Adapter
from krill_tui.training.trainer import Trainer

FORMAT = 1
_ADAPTERS: tuple[Adapter, ...] = ("policy", "reference")
_WEIGHTS = "adapter_model.safetensors"


def save_checkpoint(trainer: Trainer, directory: Path) -> None:
    """Write a checkpoint; an existing one of that name is replaced.

    `policy/` and `reference/` are ordinary PEFT folders; `optimizer.safetensors` holds AdamW's moments and the random
    state; `manifest.json`, written last, the rest and the checksums of all files. Everything is written into a sibling
    folder that is then renamed, and the disk holds it when this returns.
    """
    directory.parent.mkdir(exist_ok=True)  # not its parents: a deleted run stays deleted
    # A killed run's worker may still be writing one of this name.
    partial = directory.with_name(f".{directory.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for adapter in _ADAPTERS:
        _save_adapter(trainer, adapter, partial / adapter)
    save_file(_optimizer_tensors(trainer), partial / "optimizer.safetensors")
    write_manifest(partial, _manifest(trainer))
    old = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        os.replace(directory, old)
    os.replace(partial, directory)
    sync_folder(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


def export_adapter(trainer: Trainer, directory: Path) -> None:
    """Write the policy adapter as a PEFT folder, whole or not at all; an existing one of that name is replaced."""
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    directory.parent.mkdir(parents=True, exist_ok=True)
    _save_adapter(trainer, "policy", partial)
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(partial, directory)


def _save_adapter(trainer: Trainer, adapter: Adapter, folder: Path) -> None:
    folder.mkdir()
    peft = trainer.policy.peft
    state = get_peft_model_state_dict(peft, adapter_name=adapter, save_embedding_layers=False)
    save_file({name: tensor.contiguous().cpu() for name, tensor in state.items()}, folder / _WEIGHTS)
    peft.peft_config[adapter].save_pretrained(str(folder))
    # A set of names is written in an order that differs from process to process; equal checkpoints have equal files.
    path = folder / "adapter_config.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    ordered = {key: sorted(value) if isinstance(value, list) else value for key, value in written.items()}
    path.write_text(json.dumps(ordered, indent=2, sort_keys=True), encoding="utf-8")


def load_checkpoint(trainer: Trainer, directory: Path) -> None:
    """Restore adapters, optimizer, random state and version into a trainer with the same base model.

    Raises:
        ModelError: no complete checkpoint there, one that was damaged, or one of another adapter shape or base model.
    """
    manifest = _read_manifest(directory)
    if problems := damage(directory):
        raise ModelError(f"the checkpoint {directory} cannot be read: {problems[0]}")
    expected = _manifest(trainer)
    for name in ("lora_rank", "lora_alpha", "parameters"):
        if manifest.get(name) != expected[name]:
            raise ModelError(
                f"the checkpoint {directory} has {name} {manifest.get(name)}, the model {expected[name]}"
            )
    try:
        for adapter in _ADAPTERS:
            state = load_file(directory / adapter / _WEIGHTS)
            set_peft_model_state_dict(trainer.policy.peft, state, adapter_name=adapter)
        tensors = load_file(directory / "optimizer.safetensors")
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelError(
            f"the checkpoint {directory} cannot be read: {str(error).splitlines()[0]}"
        ) from error
    trainer.policy.forget_reference_weights()
    torch.set_rng_state(tensors.pop("rng_state"))
    trainer.reset_optimizer()
    _restore_optimizer(trainer, tensors)
    trainer.version = int(manifest["version"])


def _manifest(trainer: Trainer) -> dict[str, Any]:
    policy = trainer.policy
    return {
        "format": FORMAT,
        "model": policy.name,
        "version": trainer.version,
        "lora_rank": policy.settings.lora_rank,
        "lora_alpha": policy.settings.lora_alpha,
        "parameters": policy.base_parameters,
    }


def _read_manifest(directory: Path) -> dict[str, Any]:
    try:
        manifest = loads_leniently((directory / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"no complete checkpoint in {directory}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ModelError(f"the checkpoint {directory} has a format this version does not know")
    return manifest


def _optimizer_tensors(trainer: Trainer) -> dict[str, Tensor]:
    tensors = {"rng_state": torch.get_rng_state()}
    for name, parameter in trainer.policy.policy_parameters.items():
        for key, value in trainer.optimizer.state.get(parameter, {}).items():
            tensors[f"{key}/{name}"] = value.detach().cpu().clone()
    return tensors


def _restore_optimizer(trainer: Trainer, tensors: dict[str, Tensor]) -> None:
    parameters = trainer.policy.policy_parameters
    for path, value in tensors.items():
        key, name = path.split("/", 1)
        parameter = parameters.get(name)
        if parameter is None:
            raise ModelError(f"the checkpoint's optimizer knows a weight {name} that the model has not")
        # Fused AdamW keeps its step counter on the parameter's device, too.
        trainer.optimizer.state[parameter][key] = value.to(parameter.device)
