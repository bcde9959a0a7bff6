"""A trial of a model that was just loaded: whether it is sampled and trained as it should be, before anything is paid
or played."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from krill_tui.errors import ModelRefusedError
from krill_tui.models.base import Message
from krill_tui.models.worker_protocol import ChatMessage, SampleItem, SampleOutput
from krill_tui.training.batches import make_batch
from krill_tui.training.model import PolicyModel
from krill_tui.training.ranks import is_out_of_memory
from krill_tui.training.sampler import Sampler
from krill_tui.training.tokens import MaskedTokens

_TOKENS = 8
"""Of a turn; two turns are sampled."""
_TOLERANCE, _COARSE_TOLERANCE = 1e-3, 0.5
"""How far a token's log-probability in the sampler may be from the trainer's, in float32 and below it."""
_SAMPLE_ELSEWHERE = "take another model, or sample it with policy.sampler vllm"
_OPENINGS = (
    "You see a cabinet 1, a drawer 2 and a fridge 1. On the table there is a mug and an egg.",
    "You see nothing.",
)
_ANSWERS = ("Nothing happens.", "You open the drawer 2. In it, you see a spoon, a knife and a fork.")
_DEMONSTRATION: list[Message] = [
    {"role": "system", "content": "You are in a room."},
    {"role": "user", "content": _OPENINGS[0]},
    {"role": "assistant", "content": "<think>look</think><action>look</action>"},
]


@dataclass(frozen=True, slots=True)
class _Played:
    """A sampled episode."""

    tokens: MaskedTokens
    logprobs: tuple[float, ...]


def probe(policy: PolicyModel, *, sampling: bool) -> None:
    """Sample two turns of two episodes with their caches kept, compare with the trainer, go forward and backward.

    `sampling`: the worker is to sample it itself; otherwise only training is tried. Changes nothing of the policy.

    Raises:
        ModelRefusedError: the model cannot be worked with, in one line.
    """
    kind = policy.base.config.model_type
    played: list[_Played] = []
    if sampling:
        try:
            played = _play(policy)
        except Exception as error:  # whatever a model's code does with a cache that it does not expect
            if is_out_of_memory(error):
                return
            raise ModelRefusedError(
                f"{policy.name}: {kind} cannot be sampled with the cache kept between turns: {_reason(error)}",
                hint=_SAMPLE_ELSEWHERE,
            ) from error
    try:
        gap = max((_gap(policy, episode) for episode in played), default=0.0)
        demonstration = policy.chat.conversation(_DEMONSTRATION)
        finite = _is_trained(policy, demonstration) if len(demonstration.ids) <= policy.context else True
    except Exception as error:  # as above, in the trainer
        if is_out_of_memory(error):
            return
        raise ModelRefusedError(f"{policy.name}: {kind} cannot be trained here: {_reason(error)}") from error
    finally:
        for parameter in policy.policy_parameters.values():
            parameter.grad = None
    if not finite:
        raise ModelRefusedError(
            f"{policy.name}: {kind} gives no finite gradient in {str(policy.base.dtype).removeprefix('torch.')}",
            hint="another policy.dtype",
        )
    if not gap <= (_TOLERANCE if policy.base.dtype == torch.float32 else _COARSE_TOLERANCE):
        raise ModelRefusedError(
            f"{policy.name}: {kind} gives a reply another probability when it is sampled with a cache than when it "
            f"is trained on (log-probabilities are {gap:.2g} apart)",
            hint=_SAMPLE_ELSEWHERE,
        )


def _play(policy: PolicyModel) -> list[_Played]:
    """Two turns of two episodes of different lengths; none where the context has no room for them."""
    sampler = Sampler(policy)
    turns = [_turn(sampler, _OPENINGS, first=True)]
    if any(output.finish == "context" for output in turns[0]):
        return []
    turns.append(_turn(sampler, _ANSWERS, first=False))
    outputs = zip(*turns, strict=True)
    return [_sequence([output for output in pair if output.finish != "context"]) for pair in outputs]


def _turn(sampler: Sampler, texts: Sequence[str], *, first: bool) -> list[SampleOutput]:
    system = (ChatMessage(role="system", content="You are in a room."),) if first else ()
    return sampler.sample(
        [
            SampleItem(
                episode=f"probe-{n}",
                messages=(*system, ChatMessage(role="user", content=text)),
                temperature=1.0,
                max_tokens=_TOKENS,
                seed=n,
            )
            for n, text in enumerate(texts)
        ]
    )


def _sequence(outputs: Sequence[SampleOutput]) -> _Played:
    ids: list[int] = []
    mask: list[int] = []
    logprobs: list[float] = []
    allowed: list[tuple[int, ...]] = []
    for output in outputs:
        context, own = len(output.context_ids), len(output.ids)
        ids += [*output.context_ids, *output.ids]
        mask += [0] * context + [1] * own
        logprobs += [0.0] * context + [*output.logprobs]
        allowed += [()] * context + [*(output.allowed or [()] * own)]
    return _Played(MaskedTokens(tuple(ids), tuple(mask), tuple(allowed)), tuple(logprobs))


@torch.no_grad()
def _gap(policy: PolicyModel, played: _Played) -> float:
    """The largest difference between the sampler's log-probabilities and the trainer's."""
    found = policy.token_scores(make_batch([played.tokens]))[0][0]
    gap = (found - torch.tensor(played.logprobs, device=found.device)).abs().max()
    return float(gap) if bool(gap.isfinite()) else float("inf")


def _is_trained(policy: PolicyModel, tokens: MaskedTokens) -> bool:
    """Whether a pass forward and backward gives each adapter's layer a finite gradient."""
    (-policy.token_scores(make_batch([tokens]))[0].sum()).backward()
    gradients = [parameter.grad for parameter in policy.policy_parameters.values()]
    given = [gradient for gradient in gradients if gradient is not None]
    return bool(given) and all(bool(gradient.isfinite().all()) for gradient in given)


def _reason(error: Exception) -> str:
    line = str(error).strip().split("\n", 1)[0]
    return f"{type(error).__name__}: {line[:160]}"
