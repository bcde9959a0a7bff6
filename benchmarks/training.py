"""Tokens per second of sampling, SFT and GRPO on a random model of about one million parameters.

    python benchmarks/training.py [--hidden 128 --layers 4 --episodes 64 --turns 12]

The same episodes are also sampled by one `generate` call per turn with the history repeated, which is what simple
implementations do; the ratio of the two is printed. The world is a stand-in: observations of fixed length.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

import torch

from krill_tui.models.base import Message
from krill_tui.models.worker_protocol import ChatMessage, GrpoEpisode, SampleItem
from krill_tui.training.grpo import GrpoSettings, grpo_step
from krill_tui.training.model import ModelSettings, PolicyModel, load_model
from krill_tui.training.sampler import Sampler
from krill_tui.training.sft import sft_step, tokenize_demonstration
from krill_tui.training.tiny import build_model, build_tokenizer
from krill_tui.training.trainer import Trainer
from krill_tui.trajectory import EpisodeTokens

THINGS = (
    "mug",
    "egg",
    "apple",
    "knife",
    "lamp",
    "book",
    "plate",
    "cabinet",
    "drawer",
    "fridge",
    "shelf",
    "desk",
)


def sentence(rng: random.Random, words: int) -> str:
    """Some words and numbers, about one token each."""
    return " ".join(rng.choice((rng.choice(THINGS), str(rng.randrange(20)))) for _ in range(words))


def build(folder: Path, arguments: argparse.Namespace) -> PolicyModel:
    rng = random.Random(0)
    tokenizer = build_tokenizer((sentence(rng, 40) for _ in range(200)), 1024)
    torch.manual_seed(0)
    build_model(
        1024, arguments.hidden, arguments.layers, heads=4, kv_heads=2, mlp=4 * arguments.hidden, context=2048
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(str(folder), ModelSettings(device=arguments.device))


def opening(group: int) -> list[Message]:
    """System and first user message; the episodes of a group share them."""
    rng = random.Random(group)
    return [
        {"role": "system", "content": sentence(rng, 100)},
        {"role": "user", "content": sentence(rng, 100)},
    ]


def sample_episodes(policy: PolicyModel, arguments: argparse.Namespace) -> tuple[list[EpisodeTokens], float]:
    """Play all episodes with the sampler; gives their tokens and the seconds it took."""
    sampler = Sampler(policy)
    rng = random.Random(1)
    columns: list[tuple[list[int], list[int], list[float], list[tuple[int, ...]]]] = [
        ([], [], [], []) for _ in range(arguments.episodes)
    ]
    seconds = 0.0
    for turn in range(arguments.turns):
        items = []
        for episode in range(arguments.episodes):
            following: list[Message] = [{"role": "user", "content": sentence(rng, 20)}]
            new = opening(episode // 8) if turn == 0 else following
            items.append(
                SampleItem(
                    episode=str(episode),
                    messages=tuple(ChatMessage(role=m["role"], content=m["content"]) for m in new),
                    admissible=tuple(f"go to {thing} {number}" for thing in THINGS for number in (1, 2)),
                    constrained=arguments.constrained,
                    max_tokens=arguments.reply,
                    seed=episode,
                )
            )
        began = time.perf_counter()
        outputs = sampler.sample(items)
        seconds += time.perf_counter() - began
        for column, output in zip(columns, outputs, strict=True):
            ids, mask, logprobs, allowed = column
            context, own = len(output.context_ids), len(output.ids)
            ids += [*output.context_ids, *output.ids]
            mask += [0] * context + [1] * own
            logprobs += [0.0] * context + list(output.logprobs)
            allowed += [()] * context + list(output.allowed or [()] * own)
    return [
        EpisodeTokens(ids=tuple(i), mask=tuple(m), logprobs=tuple(lp), allowed=tuple(a))
        for i, m, lp, a in columns
    ], seconds


@torch.no_grad()
def sample_by_generate(policy: PolicyModel, episodes: list[EpisodeTokens], turns: int) -> float:
    """Seconds that `generate` takes for the replies of some turns, each prompt read from its start."""
    seconds = 0.0
    for turn in range(turns):
        prompts, length = [], 1
        for episode in episodes:
            start, stop = _reply_bounds(episode, turn)
            prompts.append(list(episode.ids[:start]))
            length = max(length, stop - start)
        width = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=policy.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=policy.device)
        began = time.perf_counter()
        policy.base.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            top_k=0,
            max_new_tokens=length,
            min_new_tokens=length,
        )
        seconds += time.perf_counter() - began
    return seconds


def _reply_bounds(episode: EpisodeTokens, turn: int) -> tuple[int, int]:
    mask = episode.mask
    starts = [i for i in range(1, len(mask)) if mask[i] and not mask[i - 1]]
    start = starts[min(turn, len(starts) - 1)]
    stop = next((i for i in range(start, len(mask)) if not mask[i]), len(mask))
    return start, stop


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("hidden", 128), ("layers", 4), ("episodes", 64), ("turns", 12), ("reply", 24)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--constrained", action="store_true")
    parser.add_argument("--baseline-turns", type=int, default=3, help="turns to sample by generate as well")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        policy = build(Path(folder), arguments)
    print(
        f"{sum(p.numel() for p in policy.base.parameters()):,} parameters, {torch.get_num_threads()} threads"
    )

    episodes, seconds = sample_episodes(policy, arguments)
    own = sum(sum(episode.mask) for episode in episodes)
    total = sum(len(episode.ids) for episode in episodes)
    print(f"sampling   {own / seconds:8,.0f} policy tokens/s  ({own:,} of {total:,} tokens, {seconds:.2f} s)")
    if arguments.baseline_turns:
        few = argparse.Namespace(**{**vars(arguments), "turns": arguments.baseline_turns})
        _, ours = sample_episodes(policy, few)
        batched = sample_by_generate(policy, episodes, few.turns)
        single = sum(sample_by_generate(policy, [episode], few.turns) for episode in episodes[:4])
        single *= len(episodes) / 4
        print(
            f"first {few.turns} turns of all episodes: {ours:.2f} s; ratios to generate with the history repeated:"
        )
        print(f"           {single / ours:8.1f} x faster than a call per step and episode")
        print(f"           {batched / ours:8.1f} x faster than a call per step for all episodes together")

    trainer = Trainer(policy)
    batch = [GrpoEpisode(tokens=tokens, advantage=(-1.0) ** i) for i, tokens in enumerate(episodes)]
    grpo_step(trainer, batch[:8], GrpoSettings(learning_rate=1e-5))
    values = grpo_step(trainer, batch, GrpoSettings(learning_rate=1e-5))
    print(f"grpo step  {values['training_tokens_per_second']:8,.0f} tokens/s with reference")
    values = grpo_step(trainer, batch, GrpoSettings(learning_rate=1e-5, kl_coeff=0.0))
    print(f"grpo step  {values['training_tokens_per_second']:8,.0f} tokens/s without")

    rng = random.Random(2)
    messages: list[Message] = [*opening(0)]
    for _ in range(arguments.turns):
        messages.append(
            {"role": "assistant", "content": f"<think>{sentence(rng, 6)}</think><action>look</action>"}
        )
        messages.append({"role": "user", "content": sentence(rng, 20)})
    demonstrations = [tokenize_demonstration(trainer, messages[:-1])] * 16
    sft_step(trainer, demonstrations[:4], learning_rate=1e-4)
    values = sft_step(trainer, demonstrations, learning_rate=1e-4)
    print(f"sft step   {values['training_tokens_per_second']:8,.0f} tokens/s")


if __name__ == "__main__":
    main()
