"""The policy: a frozen causal language model with two LoRA adapters, `policy` (trained) and `reference` (frozen)."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from krill_tui.errors import ModelError
from krill_tui.training.architecture import adapter_targets, context_limits
from krill_tui.training.batches import TokenBatch
from krill_tui.training.lora import MergedLinear
from krill_tui.training.packing import ATTENTION, NotPackableError, Pack, is_plain, pack
from krill_tui.training.shard import Sharded
from krill_tui.training.tokens import ChatTokenizer

Adapter = Literal["policy", "reference"]
T = TypeVar("T")
_FUSE_BELOW = 50_000_000
"""Up to this many parameters the adapter is multiplied into the weights before a pass: one product per layer instead
of three. Above, PEFT's own layers save the memory."""

_TOLERANCE, _COARSE_TOLERANCE = 1e-4, 5e-2
"""How far packed hidden states may be from others, relative, in float32 and below it. Where attention leaks they are
as far apart as unrelated ones."""


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """How to load the policy."""

    lora_rank: int = 16
    lora_alpha: int = 32
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"
    seed: int = 0
    max_context: int = 2048
    gradient_checkpointing: bool = False
    targets: tuple[str, ...] = ()
    """Names of the layers to adapt, as PEFT has them; empty: all linear ones."""


class PolicyModel:
    """Base model, adapters and tokenizer, with log-probabilities of given tokens."""

    def __init__(
        self,
        base: Any,
        chat: ChatTokenizer,
        settings: ModelSettings,
        name: str = "",
        sharded: Sharded | None = None,
    ) -> None:
        """`base`: a Hugging Face causal LM, already on its device; it is frozen here and never changed.

        Where it is `sharded` the adapters are put into it, until `release`: there is one module tree then, and weights
        with the adapter multiplied in are not made.
        """
        self.name = name
        self.sharded = sharded
        self.base_parameters = sum(p.numel() for p in base.parameters())
        self.chat = chat
        self.settings = settings
        self.base = base.requires_grad_(False).eval()
        self.device: torch.device = base.device
        self.context = min([settings.max_context, *context_limits(base.config)])
        # As many bits as torch takes.
        torch.manual_seed(settings.seed & (2**63 - 1))
        config = LoraConfig(
            r=settings.lora_rank,
            lora_alpha=settings.lora_alpha,
            target_modules=list(settings.targets) or adapter_targets(base),
            task_type="CAUSAL_LM",
            base_model_name_or_path=name,
        )
        with warnings.catch_warnings():
            # PEFT still asks transformers for an attribute under its old name, and says how it treats GPT-2's layers.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False", category=UserWarning)
            tree = base if sharded else _sharing_copy(base)
            self.peft: Any = get_peft_model(tree, config, adapter_name="policy")
            self.peft.add_adapter("reference", config)
        self._layers = _lora_layers(self.peft)
        self._train_policy_only()
        self._trees = [self.peft.get_base_model()]
        small = self.base_parameters <= _FUSE_BELOW
        linear = all(type(layer.get_base_layer()) is nn.Linear for layer in self._layers.values())
        # What is computed again in the backward pass must find the same weights, which merged ones are not.
        self.fused = small and linear and not settings.gradient_checkpointing and not sharded
        if self.fused:
            self._merged, self._merged_layers = _with_merged_layers(base, self._layers)
            self._trees.append(self._merged)
        if settings.gradient_checkpointing:
            _checkpoint_layers(self.peft.get_base_model(), base)
        self._reference_weights: dict[str, Tensor] | None = None
        self._packable: bool | None = None

    def release(self) -> None:
        """Take the adapters out of a sharded base, which another policy can then be made of."""
        if self._packable:
            self._attend("sdpa")
        self.peft.unload()

    @property
    def policy_parameters(self) -> dict[str, nn.Parameter]:
        """The trained weights by name, in a fixed order."""
        return {n: p for n, p in self.peft.named_parameters() if p.requires_grad}

    def merged_weights(self, adapter: Adapter) -> dict[str, Tensor]:
        """Weights of the adapted linear layers with the adapter in them, by their name in the base model."""
        weights = {}
        for name, layer in self._layers.items():
            base = layer.get_base_layer().weight
            weights[f"{name}.weight"] = (base + layer.get_delta_weight(adapter)).to(base.dtype)
        return weights

    def freeze_reference(self) -> None:
        """Copy the policy adapter into the reference."""
        with torch.no_grad():
            for layer in self._layers.values():
                for part in (layer.lora_A, layer.lora_B):
                    part["reference"].weight.copy_(part["policy"].weight)
        self.forget_reference_weights()

    def forget_reference_weights(self) -> None:
        """To be called when the reference adapter was changed from outside."""
        self._reference_weights = None

    def token_scores(
        self, batch: TokenBatch, adapter: Adapter = "policy", temperature: float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Score the policy's tokens under an adapter, at a temperature (0 counts as 1).

        A token that was chosen among `allowed` ids is scored among those only. Gives, each float32 `[B, T]` and 0 where
        the mask is 0: log-probabilities (with gradient for the policy), entropies of the distributions, and 1 where the
        token is the most likely one. Logits are computed at the policy's tokens only.
        """
        batch = batch.to(self.device)
        logits = self._inside(lambda: self._logits(batch, adapter))
        if temperature not in (0.0, 1.0):
            logits = logits / temperature
        scores = score(logits, batch.targets, batch.choice_rows, batch.choices)
        # Tokens that were forced are not among the scored: probability 1, entropy 0, always right.
        fill = (0.0, 0.0, 1.0)
        where = (batch.rows, batch.columns)
        logprobs, entropies, hits = (
            torch.full(batch.ids.shape, value, device=self.device).index_put(where, values)
            for value, values in zip(fill, scores, strict=True)
        )
        return logprobs, entropies, hits * batch.mask

    def _logits(self, batch: TokenBatch, adapter: Adapter) -> Tensor:
        """`[N, V]`, of the tokens to score."""
        if batch.pack is not None:
            hidden = self._hidden_packed(batch.pack, adapter)[0, batch.before]
        else:
            hidden = self._hidden(adapter, input_ids=batch.ids[:, :-1])[batch.rows, batch.columns - 1]
        return output_logits(self.base, hidden)

    def _inside(self, run: Callable[[], T]) -> T:
        """Run something that computes with the base's weights."""
        return run() if self.sharded is None else self.sharded(run)

    @property
    def packable(self) -> bool:
        """Whether this model computes packed sequences as it does separate ones; tried out once."""
        if self._packable is None:
            self._packable = self._try_packing()
        return self._packable

    @torch.no_grad()
    def _try_packing(self) -> bool:
        """Compare both ways on a few tokens. What a short trial cannot show is read from the configuration."""
        config = self.base.config.get_text_config()
        if not is_plain(config) or self.base.config._attn_implementation != "sdpa":
            return False
        self._attend(ATTENTION)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(int(config.vocab_size), (3, 40), generator=generator)
        ids[:, :24] = ids[0, :24]
        rows = [tuple(row) for row in ids.tolist()]
        packed = pack([rows[0], rows[1][:30], rows[2]])
        try:
            found = self._inside(lambda: self._hidden_packed(packed.to(self.device), "policy"))[0]
            expected = self._inside(lambda: self._hidden("policy", input_ids=ids.to(self.device)))
            pairs = [(found[packed.index(i)], expected[i, : 30 if i == 1 else 40]) for i in range(3)]
        except (NotPackableError, RuntimeError, TypeError, ValueError, IndexError):
            pairs = []
            if self.sharded:  # the same has happened in all processes
                self.sharded.start_over()
        scale = _TOLERANCE if self.base.dtype == torch.float32 else _COARSE_TOLERANCE
        same = [bool((a - b).norm() <= scale * b.norm()) for a, b in pairs]
        if same and all(same):
            return True
        self._attend("sdpa")
        return False

    def _attend(self, implementation: str) -> None:
        for tree in self._trees:
            tree.set_attn_implementation(implementation)

    def _hidden_packed(self, row: Pack, adapter: Adapter) -> Tensor:
        """Last hidden states `[1, N, H]` of sequences in one row."""
        mask = row.mask()
        return self._hidden(adapter, input_ids=row.ids, position_ids=row.positions, attention_mask=mask)

    def _hidden(self, adapter: Adapter, **arguments: Tensor) -> Tensor:
        """Last hidden states `[B, T, H]`. Padding stands right of everything real, so causality is mask enough."""
        if not self.fused:
            self.peft.set_adapter(adapter)
            self._train_policy_only()
            return self.peft.get_base_model().base_model(**arguments, use_cache=False).last_hidden_state
        with torch.no_grad():
            weights = self.merged_weights("policy") if adapter == "policy" else self._merged_reference()
        for name, layer in self._merged_layers.items():
            layer.name, layer.weight = adapter, weights[f"{name}.weight"]
        return self._merged.base_model(**arguments, use_cache=False).last_hidden_state

    def _merged_reference(self) -> dict[str, Tensor]:
        if self._reference_weights is None:
            with torch.no_grad():
                self._reference_weights = self.merged_weights("reference")
        return self._reference_weights

    def _train_policy_only(self) -> None:
        for name, parameter in self.peft.named_parameters():
            parameter.requires_grad_(".policy." in name)


def output_logits(model: Any, hidden: Tensor) -> Tensor:
    """Logits `[N, V]` float32 of last hidden states `[N, H]`, scaled the way some families do it (Granite, Cohere,
    Gemma); `loading.load_base` has checked that this is what the model itself computes."""
    logits = model.get_output_embeddings()(hidden).float()
    config = model.config.get_text_config()
    if scaling := getattr(config, "logits_scaling", None):
        logits = logits / scaling
    if scale := getattr(config, "logit_scale", None):
        logits = logits * scale
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = cap * torch.tanh(logits / cap)
    return logits


def _checkpoint_layers(model: Any, base: Any) -> None:
    """Switch gradient checkpointing on in the layers that have it; what else they hold stays in evaluation mode.

    Raises:
        ModelError: the architecture has no such layers.
    """
    if not getattr(base, "supports_gradient_checkpointing", False):
        raise ModelError(f"{base.config.model_type} models have no gradient checkpointing in transformers")
    # transformers 5 has renamed it on the way; reentrant or not, the default suits frozen weights.
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            # Layers checkpoint only in training mode; dropout inside them has a mode of its own and stays off.
            module.training = True


def score(
    logits: Tensor, targets: Tensor, choice_rows: Tensor, choices: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of each target, entropy of its distribution, and whether it is the most likely.

    `logits` `[N, V]`, `targets` `[N]`; for the rows `choice_rows` `[M]` the distribution is renormalised over
    `choices` `[M, A]` (ids, padded with -1). Gives float `[N]` each, the first with gradient.
    """
    scores = _score_all(logits, targets)
    if not choice_rows.numel():
        return scores
    among = logits[choice_rows].gather(1, choices.clamp(min=0)).masked_fill(choices < 0, float("-inf"))
    position = (choices == targets[choice_rows, None]).int().argmax(-1)
    first, second, third = (
        free.index_put((choice_rows,), bound)
        for free, bound in zip(scores, _score_all(among, position), strict=True)
    )
    return first, second, third


def _score_all(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logprobs = torch.log_softmax(logits, -1)
    with torch.no_grad():
        entropies = torch.special.entr(logprobs.exp()).sum(-1)
        hits = (logprobs.argmax(-1) == targets).to(logprobs.dtype)
    return logprobs.gather(1, targets[:, None]).squeeze(1), entropies, hits


def _sharing_copy(base: Any) -> Any:
    """A second module tree over the same parameters, for PEFT to put its layers into."""
    return copy.deepcopy(base, {id(p): p for p in base.parameters()})


def _with_merged_layers(base: Any, layers: dict[str, Any]) -> tuple[Any, dict[str, MergedLinear]]:
    """Another module tree over the same parameters, in which one module each stands for an adapted layer."""
    tree = _sharing_copy(base)
    merged = {name: MergedLinear(layer) for name, layer in layers.items()}
    for name, module in merged.items():
        tree.set_submodule(name, module)
    return tree, merged


def _lora_layers(peft: Any) -> dict[str, Any]:
    """PEFT's layers by the name of the linear layer each of them wraps, as the base model names it."""
    return {
        name: module for name, module in peft.get_base_model().named_modules() if hasattr(module, "lora_A")
    }
