"""LoRA adapters that others have made: a PEFT folder of TRL, LLaMA-Factory or `peft`, read as what a run starts from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file

from krill_tui.errors import ModelRefusedError
from krill_tui.training.model import PolicyModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "use_dora": (False,),
    "use_rslora": (False,),
    "lora_bias": (False,),
    "modules_to_save": ([],),
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    "layers_to_transform": ([],),
    "layer_replication": ([],),
    "trainable_token_indices": ([], {}),
    "target_parameters": ([],),
    "alora_invocation_tokens": ([],),
    "exclude_modules": ([],),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}
"""Settings under which an adapter is no more than two matrices beside each layer, and their values. Initialisations
that change the base as well (pissa, olora, corda, loftq) are none of them."""


@dataclass(frozen=True, slots=True)
class AdapterShape:
    """What of an adapter has to be known before it is put on a model."""

    rank: int
    alpha: int
    targets: tuple[str, ...]
    """Names of its layers; empty: all linear ones."""


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter of PEFT's, and neither a model nor a checkpoint of ours."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").exists()


def adapter_base(folder: Path) -> str:
    """The model an adapter was made for, "" where its config does not say."""
    try:
        named = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, RecursionError, AttributeError):
        return ""
    return named if isinstance(named, str) else ""


def read_shape(folder: Path) -> AdapterShape:
    """Read an adapter's config.

    Raises:
        ModelRefusedError: it is none of LoRA's, or does what cannot be trained on here.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind = str(config.get("peft_type"))
        rank, alpha = int(config["r"]), int(config["lora_alpha"])
        targets = config["target_modules"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise ModelRefusedError(f"{folder / CONFIG}: cannot be read as an adapter's config") from error
    if kind != "LORA":
        raise ModelRefusedError(f"{folder}: a {kind} adapter; only LoRA can be started from")
    for name, allowed in _PLAIN.items():
        value = config.get(name)
        if value is not None and value not in allowed:
            raise ModelRefusedError(
                f"{folder}: the adapter has {name} {json.dumps(value)[:60]}, which cannot be trained on here",
                hint="merge it into its base with peft's merge_and_unload, and start from that model",
            )
    if not 0 < rank <= 1024 or alpha < 1 or alpha != config["lora_alpha"]:
        raise ModelRefusedError(f"{folder}: the adapter has rank {rank} and alpha {config['lora_alpha']}")
    names: tuple[str, ...] = ()
    if isinstance(targets, list) and targets and all(isinstance(name, str) for name in targets):
        names = tuple(sorted(targets))
    elif targets != "all-linear":
        raise ModelRefusedError(
            f"{folder}: the adapter names its layers by a pattern",
            hint="write its target_modules as a list of names",
        )
    return AdapterShape(rank, alpha, names)


def load_adapter(policy: PolicyModel, folder: Path) -> list[str]:
    """Put a PEFT folder's weights into both adapters of a policy that was made with its shape.

    Gives what is to be said of it, a line each.

    Raises:
        ModelRefusedError: weights that are not there, not safetensors, or another base's.
    """
    if not (folder / WEIGHTS).is_file():
        pickled = any((folder / name).is_file() for name in ("adapter_model.bin", "adapter_model.pt"))
        reason = "its weights are a pickle, which is not read" if pickled else f"holds no {WEIGHTS}"
        raise ModelRefusedError(f"{folder}: {reason}", hint="save the adapter as safetensors")
    try:
        state = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError, ValueError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ModelRefusedError(f"{folder / WEIGHTS}: cannot be read: {reason}") from error
    expected = get_peft_model_state_dict(policy.peft, adapter_name="policy", save_embedding_layers=False)
    if odd := sorted(state.keys() ^ expected.keys()):
        missing = "lacks" if odd[0] in expected else "holds"
        raise ModelRefusedError(
            f"{folder}: the adapter {missing} {odd[0]}: it was made for another model than {policy.name}",
            hint="set policy.model to its base",
        )
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise ModelRefusedError(
                f"{folder}: {name} is {tuple(tensor.shape)} and not {tuple(expected[name].shape)}: it was made for "
                f"another model than {policy.name}",
                hint="set policy.model to its base",
            )
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise ModelRefusedError(f"{folder}: {name} holds values that are no finite numbers")
    for adapter in ("policy", "reference"):
        set_peft_model_state_dict(policy.peft, state, adapter_name=adapter)
    policy.forget_reference_weights()
    settings = policy.settings
    said = [
        f"starting from the adapter in {folder.name}: rank {settings.lora_rank}, alpha {settings.lora_alpha}"
    ]
    base = adapter_base(folder)
    if base and Path(base).name != Path(policy.name).name:
        said.append(f"the adapter in {folder.name} names {base} as its base, not {policy.name}")
    return said
