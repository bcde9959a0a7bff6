"""Micro-batches up to a budget of tokens: packed (`packing.py`), or of similar length and padded on the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from krill_tui.training.packing import Pack, new_tokens, pack
from krill_tui.training.tokens import MaskedTokens


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """B sequences padded to T, and where the policy's tokens are in them."""

    ids: Tensor
    """`[B, T]` int64, 0 after a sequence's end."""
    mask: Tensor
    """`[B, T]` float32, 1 on the policy's tokens."""
    rows: Tensor
    """`[N]` row of each token to score: those of the policy that were not the only choice."""
    columns: Tensor
    """`[N]` its column, at least 1."""
    targets: Tensor
    """`[N]` its id."""
    choice_rows: Tensor
    """`[M]` which of the N were chosen among some ids only."""
    choices: Tensor
    """`[M, A]` those ids, padded with -1."""
    pack: Pack | None = None
    """The same sequences in one row, each up to its last token to score."""
    before: Tensor | None = None
    """`[N]` where in that row the token before each token to score is."""

    @property
    def tokens(self) -> int:
        """Tokens that a pass over this batch computes."""
        return self.ids.numel() if self.pack is None else self.pack.ids.numel()

    def to(self, device: torch.device) -> TokenBatch:
        """The same batch on a device."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {k: part.to(device) for k, part in parts.items() if part is not None}
        return TokenBatch(**moved)


def split(sequences: Sequence[MaskedTokens], budget: int, *, packed: bool) -> list[list[int]]:
    """Group sequences into micro-batches of at most `budget` tokens; gives lists of indices."""
    if packed:
        return split_for_packing(sequences, budget)
    return split_by_tokens([len(sequence.ids) for sequence in sequences], budget)


def split_by_tokens(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group sequences, given by their lengths, into micro-batches of at most `budget` padded tokens.

    Longest first, so that a batch that does not fit into memory fails at once and padding stays small. A sequence
    longer than the budget gets a micro-batch of its own. Gives lists of indices.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    groups: list[list[int]] = []
    for index in order:
        longest = lengths[groups[-1][0]] if groups else 0
        if groups and (len(groups[-1]) + 1) * longest <= budget:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def split_for_packing(sequences: Sequence[MaskedTokens], budget: int) -> list[list[int]]:
    """Group sequences into micro-batches that pack to about `budget` tokens at most.

    Sequences that begin with the same tokens come together. A sequence counts with what it adds to the row, at least
    with the tokens to score, whose logits are its own. Gives lists of indices; input order plays no part.
    """
    order = sorted(range(len(sequences)), key=lambda i: sequences[i].ids)
    groups: list[list[int]] = []
    room = 0
    before: tuple[int, ...] | None = None
    for index in order:
        ids, own = sequences[index].ids, sum(sequences[index].mask)
        size = max(new_tokens(before, ids), own)
        if not groups or size > room:
            groups.append([])
            room, size = budget, len(ids)
        groups[-1].append(index)
        room -= size
        before = ids
    return groups


def pad(rows: Sequence[Sequence[float]], width: int, dtype: torch.dtype) -> Tensor:
    """Right-pad rows with 0 to `[len(rows), width]`."""
    padded = torch.zeros(len(rows), width, dtype=dtype)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = torch.tensor(row, dtype=dtype)
    return padded


def make_batch(sequences: Sequence[MaskedTokens], *, packed: bool = False) -> TokenBatch:
    """Pad sequences to the longest of them; `packed` lays them out in one row as well."""
    width = max(len(sequence.ids) for sequence in sequences)
    rows: list[int] = []
    columns: list[int] = []
    choice_rows: list[int] = []
    choices: list[tuple[int, ...]] = []
    for row, sequence in enumerate(sequences):
        for column, own in enumerate(sequence.mask):
            allowed = sequence.allowed[column] if sequence.allowed else ()
            if not own or len(allowed) == 1:
                continue
            if allowed:
                choice_rows.append(len(rows))
                choices.append(allowed)
            rows.append(row)
            columns.append(column)
    most = max((len(allowed) for allowed in choices), default=0)
    table = torch.tensor([[*a, *[-1] * (most - len(a))] for a in choices], dtype=torch.int64)
    ids = pad([sequence.ids for sequence in sequences], width, torch.int64)
    row_index, column_index = torch.tensor(rows, dtype=torch.int64), torch.tensor(columns, dtype=torch.int64)
    packing: Pack | None = None
    before: Tensor | None = None
    if packed:
        last = [0] * len(sequences)
        for index, column in zip(rows, columns, strict=True):
            last[index] = column
        packing = pack([sequence.ids[:end] for sequence, end in zip(sequences, last, strict=True)])
        places = [packing.index(index) for index in range(len(sequences))]
        before = torch.tensor(
            [places[index][column - 1] for index, column in zip(rows, columns, strict=True)],
            dtype=torch.int64,
        )
    return TokenBatch(
        ids=ids,
        mask=pad([sequence.mask for sequence in sequences], width, torch.float32),
        rows=row_index,
        columns=column_index,
        targets=ids[row_index, column_index],
        choice_rows=torch.tensor(choice_rows, dtype=torch.int64),
        choices=table.view(len(choices), most),
        pack=packing,
        before=before,
    )
