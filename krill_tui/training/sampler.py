"""Sampling many live episodes at once, each with its KV cache kept between its turns."""

from __future__ import annotations

import copy
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from krill_tui.errors import ModelError
from krill_tui.models.base import Message
from krill_tui.models.worker_protocol import SampleItem, SampleOutput
from krill_tui.training.architecture import attention_masks
from krill_tui.training.constraint import ReplyState
from krill_tui.training.kv import KvPool
from krill_tui.training.model import PolicyModel, output_logits
from krill_tui.training.prefix import ATTENTION, PrefixKv, Shared, can_share, share
from krill_tui.training.ranks import is_out_of_memory, release_memory

_PREFILL_TOKENS = 8192
"""Padded tokens of one prefill pass."""
_SHORTEST_REPLY = 16
"""With less room than this an episode has reached the end of the context."""
_SHARED_WIDTH = 4
"""New tokens a row up to which reading the cache takes longer than computing with it."""
_SHARED_ROWS = 3
"""Rows a prefix must have on average to be read apart."""
_SEED_BITS = 2**63 - 1
"""Of a seed; larger ones are folded into as many."""
_NOISE = 2e-5
"""Bound on how far a float32 logit moves with the shape of the batch it is computed in, as a share of the largest
logit of its row. Measured on krill-tiny between batches of 1, 7 and 140: 5e-6."""


@dataclass(slots=True)
class _Episode:
    """A live episode: one row of the pool."""

    name: str
    ids: list[int] = field(default_factory=list)
    cached: int = 0
    """How many of `ids` are in the pool."""
    ended: bool = True
    """The last reply closed with the end-of-turn token."""
    prefix: PrefixKv | None = None
    """What it has in common with others of its group, while that is cached."""

    def pending(self) -> list[int]:
        return self.ids[self.cached :]


@dataclass(slots=True)
class _Turn:
    """One reply under way."""

    item: SampleItem
    episode: _Episode
    state: ReplyState
    context: tuple[int, ...]


class Sampler:
    """Continues episodes with a copy of the policy that has its adapter merged in.

    What is guaranteed, in float32: a reply's tokens are the same in a batch of any size and make-up, on one machine
    with one number of threads. The sums of a forward pass depend on the batch's shape, in the last bits only. So a
    decision that so small a difference could turn (two logits that nearly tie, a random number close to the border
    between two tokens) is not taken from the batch: the sequence is computed again alone, and that is always the same
    computation. It happens for one token in a thousand, up to one in seventy where a small model writes random words.
    The log-probabilities that come along may still differ in the last bits. In bfloat16 the noise is too large for
    that, and replies may differ with the batch.
    """

    def __init__(self, policy: PolicyModel, warn: Callable[[str], None] = lambda message: None) -> None:
        """`warn` is told when memory runs short."""
        self._policy = policy
        self._warn = warn
        self._most_rows = 0
        """Rows of one forward pass; 0: any number. Set once memory ran out."""
        self._chat = policy.chat
        self._episodes: list[_Episode] = []
        """In the order of the pool's rows."""
        self._by_name: dict[str, _Episode] = {}
        self._pool = KvPool()
        self._prefixes: WeakValueDictionary[tuple[int, ...], PrefixKv] = WeakValueDictionary()
        """Prompts of groups with live members, for those who come later."""
        adapted = policy.merged_weights("policy")
        memo = {id(p): p for name, p in policy.base.named_parameters() if name not in adapted}
        self._model: Any = copy.deepcopy(policy.base, memo)
        self._shares = can_share(self._model)
        if self._shares:
            self._model.set_attn_implementation(ATTENTION)
            # Some models only warn and keep their own.
            self._shares = self._model.config._attn_implementation == ATTENTION
        self.refresh()

    def refresh(self) -> None:
        """Take over the policy's present weights; what was cached under the old ones is computed again when needed."""
        with torch.no_grad():
            for name, weight in self._policy.merged_weights("policy").items():
                self._model.get_parameter(name).copy_(weight)
        for episode in self._episodes:
            episode.cached, episode.prefix = 0, None
        self._prefixes.clear()

    @torch.inference_mode()
    def finish(self, names: Sequence[str]) -> None:
        """Forget episodes; unknown ones are none."""
        for name in names:
            episode = self._by_name.pop(name, None)
            if episode is None:
                continue
            row, last = self._episodes.index(episode), len(self._episodes) - 1
            if row != last:
                self._pool.copy_row(last, row, self._episodes[last].cached)
                self._episodes[row] = self._episodes[last]
            self._episodes.pop()

    @torch.inference_mode()
    def sample(self, items: Sequence[SampleItem]) -> list[SampleOutput]:
        """One reply for each item, in their order.

        A reply depends on its conversation, its seed and the position in its own sequence, not on the batch. An item
        without room for a reply gets none (`finish="context"`) and leaves its episode unchanged.
        """
        turns: dict[str, _Turn] = {}
        for item in items:
            turn = self._begin(item)
            if turn is not None:
                turns[item.episode] = turn
        active, leaders = self._arrange(list(turns.values()))
        logits = self._prefill(active, leaders)
        while active:
            self._advance(active, logits)
            active = self._drop_done(active)
            logits = self._forward(active)
        return [self._output(item, turns.get(item.episode)) for item in items]

    def _begin(self, item: SampleItem) -> _Turn | None:
        messages: list[Message] = [{"role": m.role, "content": m.content} for m in item.messages]
        episode = self._by_name.get(item.episode)
        if episode is None:
            context = self._chat.context(messages)
        else:
            context = self._chat.next_context(messages, ended=episode.ended)
        length = (len(episode.ids) if episode else 0) + len(context)
        left = self._policy.context - length - 1
        state = ReplyState(self._chat, item.admissible, item.constrained, min(item.max_tokens, left))
        if left < min(item.max_tokens, _SHORTEST_REPLY) or state.room > left + 1:
            return None
        state.push_forced()
        if episode is None:
            episode = self._by_name[item.episode] = _Episode(item.episode, [*context, *state.ids])
            self._episodes.append(episode)
            self._adopt_prefix(episode, len(self._episodes) - 1)
        else:
            episode.ids += [*context, *state.ids]
        return _Turn(item, episode, state, context)

    def _arrange(self, turns: list[_Turn]) -> tuple[list[_Turn], list[int]]:
        """Put the episodes to sample into the first rows, in this order: those to compute, by the length of what is
        pending unless one pass takes them all, then those that start with the same tokens as one of them (a GRPO
        group's first turn).

        Gives the turns in that order, and for each of the latter the row to copy.
        """
        pending = [len(turn.episode.pending()) for turn in turns]
        if len(pending) * max(pending, default=0) <= _PREFILL_TOKENS:
            # In the order in which they lie, nothing has to be moved.
            rows = {id(episode): row for row, episode in enumerate(self._episodes)}
            turns.sort(key=lambda turn: rows[id(turn.episode)])
        else:
            turns.sort(key=lambda turn: len(turn.episode.pending()))
        first: dict[tuple[int, ...], _Turn] = {}
        own: list[_Turn] = []
        followers: list[tuple[_Turn, _Turn]] = []
        for turn in turns:
            leader = turn if turn.episode.cached else first.setdefault(tuple(turn.episode.ids), turn)
            if leader is turn:
                own.append(turn)
            else:
                followers.append((turn, leader))
        rows_of = {id(turn): row for row, turn in enumerate(own)}
        turns = own + [turn for turn, _ in followers]
        self._reorder(turns)
        return turns, [rows_of[id(leader)] for _, leader in followers]

    def _reorder(self, turns: list[_Turn]) -> None:
        """Make the episodes of `turns` the first rows of the pool."""
        self._pool.reserve(len(self._episodes))
        wanted = [turn.episode for turn in turns]
        chosen = {id(episode) for episode in wanted}
        wanted += [episode for episode in self._episodes if id(episode) not in chosen]
        if any(a is not b for a, b in zip(wanted, self._episodes, strict=True)):
            rows = {id(episode): row for row, episode in enumerate(self._episodes)}
            longest = max((episode.cached for episode in wanted), default=0)
            if longest:
                self._pool.permute([rows[id(episode)] for episode in wanted], longest)
            self._episodes = wanted

    def _prefill(self, active: list[_Turn], leaders: list[int]) -> Tensor:
        """Compute the first rows and copy to the last `len(leaders)` rows what they share with a leader each."""
        own = len(active) - len(leaders)
        logits = self._forward(active[:own])
        for row, leader in enumerate(leaders, start=own):
            episode, first = active[row].episode, active[leader].episode
            episode.cached = len(episode.ids)
            self._pool.copy_row(leader, row, episode.cached)
            if self._shares and first.prefix is None and leaders.count(leader) + 1 >= _SHARED_ROWS:
                first.prefix = self._copy_prefix(leader, first.cached)
                if first.prefix is not None:
                    self._prefixes[tuple(first.ids)] = first.prefix
            episode.prefix = first.prefix
        return torch.cat([logits, logits[leaders]]) if leaders else logits

    def _copy_prefix(self, row: int, columns: int) -> PrefixKv | None:
        """What a group shares; None where there is no memory for it: each row then reads its own."""
        try:
            return self._pool.prefix(row, columns).copied()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _adopt_prefix(self, episode: _Episode, row: int) -> None:
        """Begin an episode with its group's prompt, where others of the group are still at work."""
        prefix = self._prefixes.get(tuple(episode.ids))
        if prefix is None:
            return
        try:
            self._pool.put_prefix(prefix, row)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return
        # The last token is computed again, for its logits.
        episode.prefix, episode.cached = prefix, len(prefix) - 1

    def _forward(self, active: list[_Turn]) -> Tensor:
        """Compute what is pending in the first rows; gives the logits after each row's last token, `[n, V]`."""
        if not active:
            return torch.empty(0)
        logits = []
        start = 0
        while start < len(active):
            stop, width = start, 0
            while stop < len(active):
                pending = len(active[stop].episode.pending())
                if stop > start and (stop + 1 - start) * max(width, pending) > _PREFILL_TOKENS:
                    break
                if self._most_rows and stop - start == self._most_rows:
                    break
                stop, width = stop + 1, max(width, pending)
            try:
                logits.append(self._forward_rows(slice(start, stop), width))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self._use_fewer_rows(stop - start, error)
                continue
            start = stop
        return torch.cat(logits)

    def _use_fewer_rows(self, rows: int, error: Exception) -> None:
        """What a pass that failed wrote is written again before it is read, so the pass can simply be split."""
        release_memory()
        if rows == 1:
            raise ModelError(
                "out of memory while sampling a single episode",
                hint="lower env.concurrency or rl.max_prompt_length, or use policy.dtype bfloat16",
            ) from error
        self._most_rows = rows // 2
        self._warn(f"out of memory while sampling: {self._most_rows} episodes in one pass from now on")

    def _forward_rows(self, rows: slice, width: int) -> Tensor:
        episodes = self._episodes[rows]
        pendings = [episode.pending() for episode in episodes]
        device = self._policy.device
        ids = torch.tensor([p + [0] * (width - len(p)) for p in pendings], device=device)
        cached = torch.tensor([episode.cached for episode in episodes], device=device)
        positions = cached[:, None] + torch.arange(width, device=device)
        span = max(episode.cached for episode in episodes) + width
        self._pool.select(rows, positions, span)
        mask = attention_masks(self._model.config, positions, span, self._model.dtype)
        if shared := self._shared(episodes, rows.start, width):
            shared.mark(mask)
        hidden = self._model.base_model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._pool,
            use_cache=True,
        ).last_hidden_state
        last = torch.tensor([len(p) - 1 for p in pendings], device=device)
        for episode in episodes:
            episode.cached = len(episode.ids)
        return output_logits(self._model, hidden[torch.arange(len(last), device=device), last])

    def _shared(self, episodes: list[_Episode], first_row: int, width: int) -> Shared | None:
        """What the rows of a pass begin with, where reading that once is worth the trouble.

        An episode that shares nothing, as one of a group too small, is a group of its own, read where it lies.
        """
        if width > _SHARED_WIDTH or not all(episode.cached for episode in episodes):
            return None
        groups = {id(episode if episode.prefix is None else episode.prefix) for episode in episodes}
        if len(groups) * _SHARED_ROWS > len(episodes):
            return None
        return share(
            [
                self._pool.prefix(row, episode.cached) if episode.prefix is None else episode.prefix
                for row, episode in enumerate(episodes, start=first_row)
            ]
        )

    def _advance(self, active: list[_Turn], logits: Tensor) -> None:
        """Draw one token in every row and append it, with the forced ones that follow."""
        choices = [turn.state.choices() for turn in active]
        noise = logits.abs().amax(-1) * (_NOISE if logits.dtype == self._model.dtype else 0.0)
        free = [row for row, allowed in enumerate(choices) if not allowed]
        bound = [row for row, allowed in enumerate(choices) if allowed]
        if free:
            self._draw(active, free, logits[free] if bound else logits, noise[free], None)
        if bound:
            most = max(len(choices[row]) for row in bound)
            table = torch.tensor(
                [[*choices[row], *[-1] * (most - len(choices[row]))] for row in bound], device=logits.device
            )
            among = logits[bound].gather(1, table.clamp(min=0)).masked_fill(table < 0, float("-inf"))
            self._draw(active, bound, among, noise[bound], choices)

    def _draw(
        self,
        active: list[_Turn],
        rows: list[int],
        logits: Tensor,
        noise: Tensor,
        choices: list[tuple[int, ...]] | None,
    ) -> None:
        turns = [active[row] for row in rows]
        uniforms = [uniform(turn.item.seed, len(turn.episode.ids)) for turn in turns]
        temperatures = [turn.item.temperature for turn in turns]
        picks, logprobs, close = draw(logits, temperatures, uniforms, noise)
        for n in close:
            alone = self._logits_alone(turns[n].episode)
            if choices:
                alone = alone[:, list(choices[rows[n]])]
            [picks[n]], [logprobs[n]], _ = draw(alone, temperatures[n : n + 1], uniforms[n : n + 1])
        for row, turn, pick, logprob in zip(rows, turns, picks, logprobs, strict=True):
            before = len(turn.state.ids)
            turn.state.push(choices[row][pick] if choices else pick, logprob)
            turn.state.push_forced()
            turn.episode.ids += turn.state.ids[before:]

    def _logits_alone(self, episode: _Episode) -> Tensor:
        """The logits after an episode's last token, `[1, V]`, as a function of its tokens and nothing else."""
        ids = torch.tensor([episode.ids], device=self._policy.device)
        hidden = self._model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return output_logits(self._model, hidden[:, -1])

    def _drop_done(self, active: list[_Turn]) -> list[_Turn]:
        """Move the rows of complete replies behind those that go on; rows that end together stay where they are."""
        live = len(active)
        row = 0
        while row < live:
            if not active[row].state.done:
                row += 1
                continue
            live -= 1
            while live > row and active[live].state.done:
                live -= 1
            if row != live:
                columns = max(active[row].episode.cached, active[live].episode.cached)
                self._pool.swap_rows(row, live, columns)
                active[row], active[live] = active[live], active[row]
                self._episodes[row], self._episodes[live] = self._episodes[live], self._episodes[row]
        return active[:live]

    def _output(self, item: SampleItem, turn: _Turn | None) -> SampleOutput:
        if turn is None:
            return SampleOutput(
                episode=item.episode, text="", context_ids=(), ids=(), logprobs=(), finish="context"
            )
        state = turn.state
        turn.episode.ended = state.ended
        return SampleOutput(
            episode=item.episode,
            text=self._chat.reply_text(state.ids),
            context_ids=turn.context,
            ids=tuple(state.ids),
            logprobs=tuple(state.logprobs),
            allowed=tuple(state.allowed) if any(state.allowed) else (),
            finish="stop" if state.complete else "length",
        )


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on an episode's seed and a token's position in its sequence, on nothing else."""
    digest = blake2b(struct.pack("<qQ", seed & _SEED_BITS, position), digest_size=4).digest()
    return int.from_bytes(digest, "little") / 2**32


def draw(
    logits: Tensor, temperatures: Sequence[float], uniforms: Sequence[float], noise: Tensor | float = 0.0
) -> tuple[list[int], list[float], list[int]]:
    """Draw one index from each row of `logits` `[n, V]` by inverting its distribution function.

    Gives the indices and their log-probabilities at the temperature; at temperature 0 the most likely index with its
    log-probability at temperature 1. Gives as well the rows whose draw could turn if every logit moved by up to `noise`
    (`[n]`): that moves the difference of two logits by 2 noise at most, and the odds F / (1 - F) of a distribution
    function at temperature t by a factor within exp(2 noise / t), which is little where F is near 0 or 1.
    """
    if logits.device.type == "mps":  # no double precision there
        logits = logits.cpu()
        noise = noise.cpu() if isinstance(noise, Tensor) else noise
    greedy = torch.tensor([t == 0 for t in temperatures], device=logits.device)
    scale = torch.tensor([t or 1.0 for t in temperatures], device=logits.device)
    logprobs = torch.log_softmax(logits / scale[:, None], -1)
    total = logprobs.exp().double().cumsum(-1)
    points = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)[:, None] * total[:, -1:]
    last = logits.shape[1] - 1
    picks = torch.searchsorted(total, points, right=True).clamp(max=last)
    # The borders of the token's interval; the first token has none below, the last none above.
    below = total.gather(1, (picks - 1).clamp(min=0)).masked_fill(picks == 0, 0.0)
    above = torch.where(picks == last, total[:, -1:], total.gather(1, picks))
    share = torch.expm1(2 * torch.as_tensor(noise, device=logits.device) / scale)[:, None] / total[:, -1:]
    near = points - below < share * below * (total[:, -1:] - below)
    near |= above - points < share * above * (total[:, -1:] - above)
    close = near.squeeze(1)
    if greedy.any():
        best = logprobs.topk(min(2, last + 1), -1)
        picks = torch.where(greedy[:, None], best.indices[:, :1], picks)
        close = torch.where(greedy, best.values[:, 0] - best.values[:, -1] < 2 * noise, close)
    logprobs = logprobs.gather(1, picks).squeeze(1)
    return picks.squeeze(1).tolist(), logprobs.tolist(), close.nonzero().squeeze(1).tolist()
