"""Packed sequences: what several sequences begin with is computed once, and nothing is padded.

Sequences form a prefix tree: a GRPO group's prompt, its system message shared with other groups, turns that went the
same way. The tree's nodes lie one behind the other in one row of tokens with positions of their own. Each token
attends to its ancestors and to what stands before it in its node. As causal attention sees nothing else either, the
hidden states are those of separate sequences.

The attention is registered with transformers under a name of its own and finds the layout on the mask tensor that
models hand down to it unchanged; without a layout it is plain `sdpa`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "krill_packed"
"""Name of the attention for `set_attn_implementation`."""

_SHARE_FROM = 16
"""A shared piece shorter than this is not worth a node of its own."""
_JOB_TOKENS = 64
"""Queries of siblings are put together up to this many (or half their prefix): a call costs something, too."""
SPECIAL = ("sliding_window", "softcap", "s_aux", "position_bias", "cache")
"""Arguments of attention functions that change what may be seen or how it is weighed."""


def is_plain(config: Any) -> bool:
    """Whether a model's (text) config asks for attention over everything before, as far as a config tells."""
    return not any(getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))


class NotPackableError(Exception):
    """The model's attention is more than a causal one."""


@dataclass(frozen=True, slots=True)
class _Node:
    """A piece of the tree: `ids` continue what the nodes of `path` hold."""

    path: tuple[int, ...]
    """Its ancestors, the root first."""
    depth: int
    """Position of its first token."""
    ids: tuple[int, ...]


@dataclass(slots=True)
class Layout:
    """Where the pieces lie and who attends to whom; made by `pack`."""

    sizes: list[int]
    """Tokens of each node, in the order of the row."""
    jobs: list[tuple[tuple[int, ...], tuple[int, ...]]]
    """(nodes of the shared prefix, siblings behind it) that one call of the attention covers."""
    order: list[int]
    """The node that each piece of the jobs' joined output belongs to, inverted: output piece of node i."""
    _masks: list[Tensor | None] | None = field(default=None)

    def masks(self, like: Tensor) -> list[Tensor | None]:
        """Additive masks `[1, 1, queries, keys]` of the jobs in the dtype of `like`; None is plain causal."""
        if self._masks is None:
            self._masks = [self._mask(job, like) for job in self.jobs]
        return self._masks

    def _mask(self, job: tuple[tuple[int, ...], tuple[int, ...]], like: Tensor) -> Tensor | None:
        path, siblings = job
        if not path and len(siblings) == 1:
            return None
        prefix = sum(self.sizes[node] for node in path)
        own = sum(self.sizes[node] for node in siblings)
        mask = like.new_full((own, prefix + own), float("-inf"))
        mask[:, :prefix] = 0
        start = 0
        for node in siblings:
            stop = start + self.sizes[node]
            mask[start:stop, prefix + start : prefix + stop].triu_(1)
            start = stop
        return mask[None, None]


@dataclass(frozen=True, slots=True)
class Pack:
    """Sequences as one row of tokens."""

    ids: Tensor
    """`[1, N]` int64."""
    positions: Tensor
    """`[1, N]` int64, each token's place in its sequence."""
    where: tuple[tuple[int, ...], ...]
    """Nodes of each sequence, in order."""
    starts: tuple[int, ...]
    """Where each node begins in the row."""
    layout: Layout

    def mask(self) -> Tensor:
        """What to give a model as `attention_mask`: an empty 4D tensor that carries the layout."""
        mask = torch.empty(1, 1, 1, 1, device=self.ids.device)
        mask.krill_layout = self.layout  # type: ignore[attr-defined]
        return mask

    def index(self, sequence: int) -> list[int]:
        """Place in the row of each token of a sequence."""
        places: list[int] = []
        for node in self.where[sequence]:
            places += range(self.starts[node], self.starts[node] + self.layout.sizes[node])
        return places

    def to(self, device: torch.device) -> Pack:
        """The same on a device."""
        return Pack(self.ids.to(device), self.positions.to(device), self.where, self.starts, self.layout)


def pack(sequences: Sequence[tuple[int, ...]]) -> Pack:
    """Lay out sequences of token ids as a prefix tree; order and copies do not matter."""
    order = sorted(range(len(sequences)), key=lambda i: sequences[i])
    ordered = [sequences[i] for i in order]
    nodes: list[_Node] = []
    paths: list[tuple[int, ...]] = [()] * len(sequences)
    _grow(ordered, nodes, paths)
    where: list[tuple[int, ...]] = [()] * len(sequences)
    for index, path in zip(order, paths, strict=True):
        where[index] = path
    sizes = [len(node.ids) for node in nodes]
    starts, total = [], 0
    for size in sizes:
        starts.append(total)
        total += size
    jobs = _jobs(nodes)
    pieces = [node for _, siblings in jobs for node in siblings]
    place = {node: index for index, node in enumerate(pieces)}
    ids = [token for node in nodes for token in node.ids]
    positions = [node.depth + offset for node in nodes for offset in range(len(node.ids))]
    return Pack(
        ids=torch.tensor([ids], dtype=torch.int64),
        positions=torch.tensor([positions], dtype=torch.int64),
        where=tuple(where),
        starts=tuple(starts),
        layout=Layout(sizes, jobs, [place[node] for node in range(len(nodes))]),
    )


def new_tokens(before: tuple[int, ...] | None, ids: tuple[int, ...]) -> int:
    """How many tokens a sequence adds behind the one that sorts before it."""
    shared = _common(before, ids) if before is not None else 0
    return len(ids) - (shared if shared >= _SHARE_FROM else 0)


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Length of the common beginning."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _grow(ordered: Sequence[tuple[int, ...]], nodes: list[_Node], paths: list[tuple[int, ...]]) -> None:
    """Build the tree over sorted sequences; `paths` gets the nodes of each."""
    stack: list[tuple[int, int, int, tuple[int, ...]]] = [(0, len(ordered), 0, ())]
    while stack:
        low, high, depth, path = stack.pop()
        shared = _common(ordered[low], ordered[high - 1])
        same = shared == len(ordered[high - 1])
        if (same and shared > depth) or shared - depth >= _SHARE_FROM:
            nodes.append(_Node(path, depth, ordered[low][depth:shared]))
            path, depth = (*path, len(nodes) - 1), shared
        # What sorts first may end where the others go on.
        while low < high and len(ordered[low]) == depth:
            paths[low] = path
            low += 1
        while low < high:
            stop = low + 1
            if len(ordered[low]) > shared:
                branch = ordered[low][shared]
                while stop < high and ordered[stop][shared] == branch:
                    stop += 1
            stack.append((low, stop, depth, path))
            low = stop


def _jobs(nodes: Sequence[_Node]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Put siblings together as long as what they see of each other, only to be masked, stays small."""
    families: dict[tuple[int, ...], list[int]] = {}
    for index, node in enumerate(nodes):
        families.setdefault(node.path, []).append(index)
    jobs = []
    for path, siblings in families.items():
        limit = max(_JOB_TOKENS, sum(len(nodes[node].ids) for node in path) // 2)
        chunk: list[int] = []
        room = limit
        for node in siblings:
            size = len(nodes[node].ids)
            if chunk and size > room:
                jobs.append((path, tuple(chunk)))
                chunk, room = [], limit
            chunk.append(node)
            room -= size
        jobs.append((path, tuple(chunk)))
    return jobs


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **arguments: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention function; `query` `[1, heads, N, size]`, gives `[1, N, heads, size]`."""
    layout: Layout | None = getattr(attention_mask, "krill_layout", None)
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **arguments)
    if any(arguments.get(name) is not None for name in SPECIAL) or arguments.get("is_causal") is False:
        raise NotPackableError
    # Splitting, unlike slicing, has a gradient that is put together once.
    queries, keys, values = (tensor.split(layout.sizes, 2) for tensor in (query, key, value))
    outputs: list[Tensor] = []
    for (path, siblings), mask in zip(layout.jobs, layout.masks(query), strict=True):
        seen = [*path, *siblings]
        output, _ = sdpa_attention_forward(
            module,
            _join([queries[node] for node in siblings]),
            _join([keys[node] for node in seen]),
            _join([values[node] for node in seen]),
            mask,
            **arguments,
        )
        outputs += output.split([layout.sizes[node] for node in siblings], 1)
    return torch.cat([outputs[place] for place in layout.order], 1), None


def _join(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2)


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
