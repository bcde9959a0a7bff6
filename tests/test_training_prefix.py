"""Attention that reads the prompt of a group once: the same result, and the same replies."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from krill_tui.training import prefix as prefixes
from krill_tui.training import sampler as sampling
from krill_tui.training.kv import KvPool
from krill_tui.training.prefix import ATTENTION, PrefixKv, can_share, share
from krill_tui.training.sampler import Sampler
from tests.tiny_policy import answer, item, make_policy, opening

CLOSE = 2e-6


def _layer(groups: int) -> SimpleNamespace:
    return SimpleNamespace(layer_idx=0, num_key_value_groups=groups, is_causal=True)


@pytest.mark.parametrize("new", [1, 3])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 2), (3, 3), (4, 1)])
@pytest.mark.parametrize("members", [[0, 0, 0], [0, 1, 0, 1, 1, 2, 0], [2, 1, 0, 2, 1, 0]])
def test_shared_attention_equals_plain_attention(
    members: list[int], heads: int, key_heads: int, new: int
) -> None:
    generator = torch.Generator().manual_seed(len(members) + heads + new)
    rows, span, size, lengths = len(members), 23, 8, (9, 6, 12)
    key, value = (torch.randn(rows, key_heads, 40, size, generator=generator) for _ in range(2))
    prompts = [
        PrefixKv(*([torch.randn(key_heads, length, size, generator=generator)] for _ in range(2)))
        for length in lengths
    ]
    for row, group in enumerate(members):
        key[row, :, : lengths[group]] = prompts[group].keys[0]
        value[row, :, : lengths[group]] = prompts[group].values[0]
    query = torch.randn(rows, new, heads, size, generator=generator).transpose(1, 2)
    # Each row has got another length; what stands behind it is garbage of others.
    ends = torch.randint(14, span - new + 1, (rows,), generator=generator)
    seen = torch.arange(span) <= (ends[:, None] + torch.arange(new))[:, None, :, None]
    mask = torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))
    arguments = (_layer(heads // key_heads), query, key[:, :, :span], value[:, :, :span])
    expected, _ = prefixes._attention(*arguments, mask.clone(), scaling=0.4)
    shared = share([prompts[group] for group in members])
    assert shared.prefix_length == min(lengths[group] for group in set(members))
    shared.mark(mask)
    # Were the rows' own copies of the shared part read, this would be seen.
    key[:, :, : shared.prefix_length] = float("nan")
    found, _ = prefixes._attention(*arguments, mask, scaling=0.4)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < CLOSE


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The sizes of the passes that shared something."""
    sizes: list[int] = []

    def counted(rows: list[PrefixKv]) -> prefixes.Shared:
        sizes.append(len(rows))
        return share(rows)

    monkeypatch.setattr(sampling, "share", counted)
    yield sizes


def _play(sampler: Sampler, group: int, constrained: bool) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """Three turns of three groups whose members answer differently."""
    played = []
    for turn in range(3):
        items = [
            item(
                f"{n}-{m}",
                opening("room " * (n + 1)) if turn == 0 else answer("mug " * (m + turn)),
                seed=100 * n + m,
                constrained=constrained,
            )
            for n in range(3)
            for m in range(group)
        ]
        played += [(output.ids, output.logprobs) for output in sampler.sample(items)]
    return played


@pytest.mark.parametrize("constrained", [True, False])
def test_groups_reply_as_they_do_without_sharing(
    tiny_model_dir: Path, constrained: bool, used: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy(tiny_model_dir)
    shared = _play(Sampler(policy), 4, constrained)
    assert used and max(used) == 12
    monkeypatch.setattr(sampling, "_SHARED_WIDTH", 0)
    used.clear()
    plain = _play(Sampler(policy), 4, constrained)
    assert not used
    assert [ids for ids, _ in shared] == [ids for ids, _ in plain]
    for (_, a), (_, b) in zip(shared, plain, strict=True):
        assert a == pytest.approx(b, abs=1e-4)


def test_small_groups_and_new_weights_share_nothing(tiny_model_dir: Path, used: list[int]) -> None:
    policy = make_policy(tiny_model_dir)
    _play(Sampler(policy), 2, constrained=True)
    assert not used
    sampler = Sampler(policy)
    items = [item(f"e{n}", opening(), seed=n) for n in range(4)]
    sampler.sample(items)
    assert used
    sampler.refresh()
    used.clear()
    # What was read under the old weights is read again, each row for itself.
    sampler.sample([item(f"e{n}", answer(), seed=n) for n in range(4)])
    assert not used


def test_a_late_member_shares_what_the_others_of_its_group_kept(
    tiny_model_dir: Path, used: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy(tiny_model_dir)
    sampler, alone = Sampler(policy), Sampler(policy)
    first = [item(f"e{n}", opening(), seed=n) for n in range(4)]
    sampler.sample(first)
    used.clear()
    late, [e0] = item("late", opening(), seed=9), [item("e0", answer(), seed=0)]
    widths: list[int] = []
    forward = Sampler._forward_rows

    def watched(self: Sampler, rows: slice, width: int) -> torch.Tensor:
        widths.append(len(self._by_name["late"].pending()))
        return forward(self, rows, width)

    monkeypatch.setattr(Sampler, "_forward_rows", watched)
    together = sampler.sample([late, e0, *(item(f"e{n}", answer(), seed=n) for n in range(1, 4))])
    monkeypatch.undo()
    # Only the last token of its prompt is computed.
    assert widths[0] == 1
    assert together[0].ids == alone.sample([late])[0].ids
    alone.sample(first[:1])
    assert together[1].ids == alone.sample([e0])[0].ids
    # All five in one pass, the prompt read once.
    assert 5 in used
    [prompt] = sampler._prefixes.values()
    assert all(episode.prefix is prompt for episode in sampler._episodes)


def test_a_prompt_is_kept_as_long_as_its_group_plays(tiny_model_dir: Path) -> None:
    sampler = Sampler(make_policy(tiny_model_dir))
    names = [f"e{n}" for n in range(4)]
    sampler.sample([item(name, opening(), seed=n) for n, name in enumerate(names)])
    assert len(sampler._prefixes) == 1
    sampler.finish(names[:3])
    assert len(sampler._prefixes) == 1
    sampler.finish(names[3:])
    gc.collect()
    assert not sampler._prefixes


def test_episodes_without_a_group_do_not_keep_others_from_sharing(
    tiny_model_dir: Path, used: list[int]
) -> None:
    policy = make_policy(tiny_model_dir)
    sampler, alone = Sampler(policy), Sampler(policy)
    first = [item(f"e{n}", opening(), seed=n) for n in range(8)]
    first += [item(f"o{n}", opening("room " * (n + 2)), seed=n) for n in range(2)]
    started = sampler.sample(first)
    assert 10 in used
    again = [item(i.episode, answer("mug"), seed=i.seed) for i in first]
    went_on = sampler.sample(again)
    for number in (0, 8, 9):
        assert started[number].ids == alone.sample([first[number]])[0].ids
        assert went_on[number].ids == alone.sample([again[number]])[0].ids
    # Where those of a group are few among many, nothing is gained.
    sampler.finish([f"e{n}" for n in range(2, 8)])
    used.clear()
    sampler.sample([item(name, answer("egg"), seed=3) for name in ("e0", "e1", "o0", "o1")])
    assert not used


def test_no_memory_for_the_common_part_costs_no_reply(
    tiny_model_dir: Path, used: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy(tiny_model_dir)
    items = [item(f"e{n}", opening(), seed=n) for n in range(4)]
    expected = [output.ids for output in Sampler(policy).sample(items)]
    used.clear()

    def fail(self: KvPool, row: int, columns: int) -> PrefixKv:
        torch.empty(1 << 46)  # more than there are addresses
        raise AssertionError

    monkeypatch.setattr(KvPool, "prefix", fail)
    assert [output.ids for output in Sampler(policy).sample(items)] == expected
    assert not used


def test_only_plain_attention_on_a_cpu_is_replaced(tiny_model_dir: Path) -> None:
    model = Sampler(make_policy(tiny_model_dir))._model
    assert model.config._attn_implementation == ATTENTION
    model.set_attn_implementation("sdpa")
    assert can_share(model)
    model.config.sliding_window = 16
    assert not can_share(model)
    model.config.sliding_window = None
    model.set_attn_implementation("eager")
    assert not can_share(model)
