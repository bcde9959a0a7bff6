"""Shared-prefix (cascade) attention: the keys and values of a group's prompt are read once a pass.

A GRPO group's episodes begin with the same tokens. With one new token in each row, attention is bound by reading the
cache and by products of few rows, so for a group of eight the prompt's part costs little more than an eighth. The
softmax over prompt and rest is put together from both parts' denominators, as flash attention does it. As in
`packing`, the attention is registered with transformers and finds what it needs on the mask; without that it is plain
`sdpa`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from krill_tui.training import packing

ATTENTION = "krill_prefix"
"""Name of the attention for `set_attn_implementation`."""
_KERNEL = "_scaled_dot_product_flash_attention_for_cpu"
"""What `sdpa` runs on a CPU; called itself it gives the log of the softmax's denominator as well."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class PrefixKv:
    """The keys and values of a sequence's first tokens, by layer `[heads, tokens, head size]`."""

    keys: Sequence[Tensor]
    values: Sequence[Tensor]

    def __len__(self) -> int:
        return self.keys[0].shape[1]

    def copied(self) -> PrefixKv:
        """The same beside the rows of the pool, which are moved and written again."""
        return PrefixKv(*([part.clone() for part in side] for side in (self.keys, self.values)))


@dataclass(frozen=True, slots=True)
class Shared:
    """What the rows of a forward pass begin with."""

    prefixes: Sequence[PrefixKv]
    permutation: Tensor
    """The rows, `[n]`: those of the first prefix, then those of the second and so on."""
    edges: Sequence[int]
    """Where in the permutation each prefix's rows begin, and the end."""
    inverse: Tensor
    """The place of each row in the permutation, `[n]`."""
    prefix_length: int
    """How many of a prefix's tokens are read apart: as many as the shortest has."""

    def mark(self, mask: Tensor) -> None:
        """Let a model that gets this mask, `[n, 1, L, span]`, read them so."""
        mask.krill_shared = self  # type: ignore[attr-defined]


def share(rows: Sequence[PrefixKv]) -> Shared:
    """What rows with these prefixes share."""
    prefixes = list({id(prefix): prefix for prefix in rows}.values())
    members = [[row for row, own in enumerate(rows) if own is prefix] for prefix in prefixes]
    permutation = torch.tensor([row for group in members for row in group])
    edges = [0, *accumulate(map(len, members))]
    return Shared(prefixes, permutation, edges, permutation.argsort(), min(map(len, prefixes)))


def can_share(model: Any) -> bool:
    """Whether this attention may stand in for the model's: PyTorch's own, over everything, in float32 on a CPU.

    Elsewhere a fused kernel is the better choice.
    """
    if not hasattr(torch.ops.aten, _KERNEL):
        return False
    plain = packing.is_plain(model.config.get_text_config())
    known = model.config._attn_implementation in ("sdpa", packing.ATTENTION)
    return plain and known and model.device.type == "cpu" and model.dtype == torch.float32


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **arguments: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention function: `query` `[n, H, L, size]`, `key` and `value` `[n, h, span, size]`."""
    shared: Shared | None = getattr(attention_mask, "krill_shared", None)
    special = any(arguments.get(name) is not None for name in packing.SPECIAL)
    if shared is None or attention_mask is None or special or value.shape[-1] != query.shape[-1]:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **arguments)
    rows, heads, new, size = query.shape
    at, scale = shared.prefix_length, arguments.get("scaling") or size**-0.5
    # The query heads of a key head lie side by side: they are as good as queries of one head.
    queries = query.reshape(rows, key.shape[1], -1, size)
    mask = attention_mask[..., at:].expand(rows, 1, new, -1).repeat(1, 1, heads // key.shape[1], 1)
    own, total_own = getattr(torch.ops.aten, _KERNEL)(
        queries, key[:, :, at:], value[:, :, at:], attn_mask=mask, scale=scale
    )
    # [n, h, q, size] -> [h, n q, size], group by group: all rows of a group ask the same keys.
    asked = queries[shared.permutation].transpose(0, 1).flatten(1, 2) * scale
    weights = torch.empty(*asked.shape[:2], at, dtype=query.dtype)
    common = torch.empty_like(asked)
    edges = [edge * queries.shape[2] for edge in shared.edges]
    pieces = [slice(start, stop) for start, stop in pairwise(edges)]
    for prefix, piece in zip(shared.prefixes, pieces, strict=True):
        torch.bmm(asked[:, piece], prefix.keys[module.layer_idx][:, :at].mT, out=weights[:, piece])
    total = weights.logsumexp(-1, keepdim=True)
    weights.sub_(total).exp_()
    for prefix, piece in zip(shared.prefixes, pieces, strict=True):
        torch.bmm(weights[:, piece], prefix.values[module.layer_idx][:, :at], out=common[:, piece])
    common, total = (
        part.unflatten(1, (rows, -1)).transpose(0, 1)[shared.inverse] for part in (common, total)
    )
    result = torch.lerp(own, common, torch.sigmoid(total - total_own[..., None]))
    return result.reshape(rows, heads, new, size).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
