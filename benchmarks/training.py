"""Speed of sampling, GRPO and SFT beside Hugging Face's `generate` and TRL's trainers, on one model and the same data.

    python benchmarks/training.py [--quick] [--repeats 3] [--parts sampling grpo sft] [--model FOLDER]
        [--json FILE]

A random model (by default 3 million parameters, LoRA r=16 on all linear layers, float32), or the one of `--model`, does
the same work each way:

- sampling: the turns of all episodes; against a `generate` call per turn with the history repeated, once for each
  episode and once for all episodes together. Of the turns three are measured and multiplied.
- grpo: a whole step, that is sampling, loss, backward and optimizer, on 8 prompts x 8 completions of 300 + 24 tokens;
  against TRL's `GRPOTrainer`, the best of its micro-batches.
- sft: steps on whole episodes with loss on the replies; against TRL's `SFTTrainer` with packing, the best of its
  batches; the same tokens counted.

Times are the process's own processor seconds; with one thread on a free core they are wall seconds, and on a busy
machine they still compare. Ratios are of medians. `% of roof` divides the floating point operations that the work
needs by those of matrix products of the same sizes, measured beside it. TRL is in the `dev` extra; without it the
parts that need it are left out.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from krill_tui.models.worker_protocol import ChatMessage, GrpoEpisode, SampleItem
from krill_tui.training.advantage import group_advantages
from krill_tui.training.grpo import GrpoSettings, grpo_step
from krill_tui.training.loading import load_model
from krill_tui.training.model import ModelSettings, PolicyModel
from krill_tui.training.sampler import Sampler
from krill_tui.training.sft import sft_step
from krill_tui.training.tiny import build_model, build_tokenizer
from krill_tui.training.tokens import MaskedTokens
from krill_tui.training.trainer import Trainer
from krill_tui.trajectory import EpisodeTokens

THINGS = [
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
]
GROUP = 8
clock = time.process_time


@dataclass
class Line:
    """One line of the table."""

    part: str
    what: str
    seconds: list[float]
    rate: float = 0.0
    unit: str = ""
    ratio: float = 0.0
    """How many times longer than ours; 0 for our own lines."""
    note: str = ""

    def text(self) -> str:
        median = statistics.median(self.seconds)
        spread = f"{min(self.seconds):.2f}-{max(self.seconds):.2f}" if len(self.seconds) > 1 else ""
        rate = f"{self.rate:12,.1f} {self.unit:<17}" if self.rate else " " * 30
        ratio = f"{self.ratio:6.1f} x" if self.ratio else " " * 8
        return f"{self.part:<9}{self.what:<42}{median:8.2f} s {spread:<14}{rate}{ratio}  {self.note}".rstrip()


@dataclass
class Bench:
    """Model, options and what was found."""

    options: argparse.Namespace
    folder: Path
    lines: list[Line] = field(default_factory=list)

    def add(self, *values: Any, **named: Any) -> Line:
        line = Line(*values, **named)
        self.lines.append(line)
        print(line.text(), flush=True)
        return line

    def policy(self) -> PolicyModel:
        return load_model(str(self.folder), ModelSettings(device=self.options.device))


def sentence(rng: random.Random, words: int) -> str:
    """Some words and numbers, about one token each."""
    return " ".join(rng.choice((rng.choice(THINGS), str(rng.randrange(20)))) for _ in range(words))


def build(folder: Path, options: argparse.Namespace) -> None:
    """Write the random model and its tokenizer, or copy what `--model` names and take over its widths."""
    options.mlp = 3 * options.hidden
    if options.model:
        shutil.copytree(options.model, folder, dirs_exist_ok=True)
        config = transformers.AutoConfig.from_pretrained(folder).get_text_config()
        options.hidden, options.layers = config.hidden_size, config.num_hidden_layers
        options.vocab, options.mlp = config.vocab_size, config.intermediate_size
        return
    rng = random.Random(0)
    tokenizer = build_tokenizer((sentence(rng, 40) for _ in range(200)), options.vocab)
    torch.manual_seed(0)
    model = build_model(
        options.vocab,
        options.hidden,
        options.layers,
        heads=options.hidden // 64,
        kv_heads=max(1, options.hidden // 128),
        mlp=options.mlp,
        context=2048,
    )
    with torch.no_grad():
        # A head as large as a trained one's, so that there is something to be certain of.
        model.get_input_embeddings().weight.mul_(8)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def repeat(times: int, work: Callable[[], object]) -> list[float]:
    """Seconds of each of some repetitions after one that does not count."""
    work()
    seconds = []
    for _ in range(times):
        gc.collect()
        began = clock()
        work()
        seconds.append(clock() - began)
    return seconds


def roof(tokens: int, options: argparse.Namespace) -> float:
    """Floating point operations per second of matrix products as wide as the model's, for `tokens` rows."""
    hidden, mlp = options.hidden, options.mlp
    shapes = [(hidden, hidden), (hidden, mlp), (mlp, hidden)]
    pairs = [(torch.randn(tokens, a), torch.randn(a, b)) for a, b in shapes]
    seconds = statistics.median(repeat(5, lambda: [a @ b for a, b in pairs]))
    return sum(2 * tokens * a * b for a, b in shapes) / seconds


def layer_parameters(policy: PolicyModel) -> int:
    """Parameters that each token is multiplied with, head left out."""
    return sum(
        p.numel() for name, p in policy.base.named_parameters() if p.dim() == 2 and "embed" not in name
    )


class TimedSampler(Sampler):
    """Tells reading (several tokens a row) from writing (one)."""

    def __init__(self, policy: PolicyModel) -> None:
        super().__init__(policy)
        self.spent = {"reading": [0.0, 0], "writing": [0.0, 0]}

    def _forward_rows(self, rows: slice, width: int) -> torch.Tensor:
        tokens = sum(len(episode.pending()) for episode in self._episodes[rows])
        began = clock()
        logits = super()._forward_rows(rows, width)
        spent = self.spent["reading" if width > 1 else "writing"]
        spent[0] += clock() - began
        spent[1] += tokens
        return logits


def play(
    bench: Bench, policy: PolicyModel, turns: int, *, constrained: bool
) -> tuple[list[EpisodeTokens], float, dict[str, list[float]]]:
    """Play all episodes; gives their tokens, the sampler's seconds, and those of reading and writing."""
    options = bench.options
    sampler = TimedSampler(policy)
    rng = random.Random(1)
    columns: list[list[list[Any]]] = [[[], [], [], []] for _ in range(options.episodes)]
    seconds = 0.0
    for turn in range(turns):
        items = []
        for episode in range(options.episodes):
            opening = random.Random(episode // GROUP)
            messages = (
                (
                    ChatMessage(role="system", content=sentence(opening, 100)),
                    ChatMessage(role="user", content=sentence(opening, 100)),
                )
                if turn == 0
                else (ChatMessage(role="user", content=sentence(rng, 20)),)
            )
            items.append(
                SampleItem(
                    episode=str(episode),
                    messages=messages,
                    admissible=tuple(f"{thing} {number}" for thing in THINGS for number in (1, 2)),
                    constrained=constrained,
                    max_tokens=options.reply,
                    seed=episode,
                )
            )
        began = clock()
        outputs = sampler.sample(items)
        seconds += clock() - began
        for (ids, mask, logprobs, allowed), output in zip(columns, outputs, strict=True):
            context, own = len(output.context_ids), len(output.ids)
            ids += [*output.context_ids, *output.ids]
            mask += [0] * context + [1] * own
            logprobs += [0.0] * context + list(output.logprobs)
            allowed += [()] * context + list(output.allowed or [()] * own)
    episodes = [
        EpisodeTokens(ids=tuple(i), mask=tuple(m), logprobs=tuple(lp), allowed=tuple(a))
        for i, m, lp, a in columns
    ]
    return episodes, seconds, sampler.spent


def turns_of(episode: EpisodeTokens) -> list[tuple[int, int]]:
    """Where each reply begins and ends."""
    edges = [i for i in range(1, len(episode.mask)) if episode.mask[i] != episode.mask[i - 1]]
    edges += [len(episode.mask)] * (len(edges) % 2)
    return list(zip(edges[::2], edges[1::2], strict=True))


@torch.no_grad()
def generate(policy: PolicyModel, episodes: list[EpisodeTokens], turn: int) -> float:
    """Seconds that one `generate` call takes for the replies of a turn, each prompt read from its start."""
    bounds = [turns_of(episode)[turn] for episode in episodes]
    prompts = [list(e.ids[:start]) for e, (start, _) in zip(episodes, bounds, strict=True)]
    length = max(stop - start for start, stop in bounds)
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=policy.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=policy.device)
    began = clock()
    policy.base.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=True,
        top_k=0,
        max_new_tokens=length,
        min_new_tokens=length,
    )
    return clock() - began


def sampling(bench: Bench) -> None:
    """Our sampler against `generate`."""
    options, policy = bench.options, bench.policy()
    count, turns = options.episodes, options.turns
    for constrained in (False, True):
        plays = [play(bench, policy, turns, constrained=constrained) for _ in range(options.repeats)]
        episodes = plays[0][0]
        seconds = [played[1] for played in plays]
        ours = statistics.median(seconds)
        own = sum(sum(episode.mask) for episode in episodes)
        name = f"Krill, {'constrained' if constrained else 'free'}, {count} episodes x {turns} turns"
        bench.add(
            "sampling", name, seconds, count / ours, "episodes/s", note=f"{own / ours:,.0f} policy tokens/s"
        )
        for phase in ("reading", "writing"):
            spent = [played[2][phase] for played in plays]
            median = statistics.median(s for s, _ in spent)
            rate = spent[0][1] / median if median else 0.0
            bench.add("", f"  of it {phase}", [s for s, _ in spent], rate, "tokens/s")
        if constrained:
            continue
        few = sorted({0, turns // 2, turns - 1})
        generate(policy, episodes[:2], 0)
        batched = [
            turns * statistics.fmean(generate(policy, episodes, turn) for turn in few)
            for _ in range(options.repeats)
        ]
        alone = episodes[:: max(1, count // 4)]
        single = [
            turns * count * statistics.fmean(generate(policy, [e], turn) for turn in few for e in alone)
            for _ in range(options.repeats)
        ]
        for name, other in (("one call per step and episode", single), ("one call per step", batched)):
            median = statistics.median(other)
            bench.add("", f"generate, {name}", other, count / median, "episodes/s", median / ours)


def prompts(count: int, length: int, tokenizer: Any) -> list[str]:
    """Different prompts of exactly `length` tokens."""
    found = []
    for seed in range(count):
        rng = random.Random(1000 + seed)
        text = ""
        while len(tokenizer.encode(text, add_special_tokens=False)) < length - 3:
            text += f" {rng.choice(THINGS)}"
        found.append(text.strip())
    return found


def score(text: str) -> float:
    """A reward that differs between completions."""
    return len(set(text)) / 10


def grpo(bench: Bench) -> None:
    """A whole step, sampling included, against TRL."""
    options, policy = bench.options, bench.policy()
    texts = prompts(options.groups, options.prompt, policy.chat.tokenizer)
    trainer = Trainer(policy)
    sampler = TimedSampler(policy)
    parts: dict[str, list[float]] = {"sampling": [], "loss, backward, optimizer": []}
    sizes: dict[str, float] = {}
    seed = 0

    def step() -> None:
        nonlocal seed
        began = clock()
        names = [f"{g}-{n}" for g in range(options.groups) for n in range(GROUP)]
        items = []
        for name in names:
            seed += 1
            message = ChatMessage(role="user", content=texts[int(name.split("-")[0])])
            items.append(SampleItem(episode=name, messages=(message,), max_tokens=options.reply, seed=seed))
        outputs = sampler.sample(items)
        sampler.finish(names)
        sampled = clock()
        episodes = []
        for group in range(options.groups):
            members = outputs[group * GROUP : (group + 1) * GROUP]
            advantages = group_advantages([score(output.text) for output in members])
            for output, advantage in zip(members, advantages, strict=True):
                context, own = len(output.context_ids), len(output.ids)
                tokens = EpisodeTokens(
                    ids=(*output.context_ids, *output.ids),
                    mask=(*[0] * context, *[1] * own),
                    logprobs=(*[0.0] * context, *output.logprobs),
                )
                episodes.append(GrpoEpisode(tokens=tokens, advantage=float(advantage)))
        settings = GrpoSettings(learning_rate=1e-5, kl_coeff=options.beta)
        sizes.update(grpo_step(trainer, episodes, settings))
        sampler.refresh()
        parts["sampling"].append(sampled - began)
        parts["loss, backward, optimizer"].append(clock() - sampled)

    seconds = repeat(options.repeats, step)
    ours = statistics.median(seconds)
    nominal, computed = sizes["num_tokens"], sizes["computed_tokens"]
    work = layer_parameters(policy) * 2 * computed * 2
    work += 2 * 2 * sizes["policy_tokens"] * options.hidden * options.vocab
    trained = statistics.median(parts["loss, backward, optimizer"][1:])
    share = work / trained / roof(int(computed), options)
    name = f"Krill, {options.groups} x {GROUP} completions of {options.prompt} + {options.reply}"
    bench.add("grpo", name, seconds, nominal / ours, "nominal tokens/s")
    for part, spent in parts.items():
        note = ""
        rate = sizes["policy_tokens"] / statistics.median(spent[1:])
        unit = "policy tokens/s"
        if part != "sampling":
            rate, unit = computed / trained, "computed tokens/s"
            note = (
                f"{share:.0%} of roof without attention; {nominal / computed:.1f} x fewer tokens by packing"
            )
        bench.add("", f"  of it {part}", spent[1:], rate, unit, note=note)
    if not importlib.util.find_spec("trl"):
        return
    best: Line | None = None
    total = options.groups * GROUP
    for micro in sorted({total, total // 4, total // 8}, reverse=True):
        spent = trl_grpo(bench, texts, micro, total // micro)
        median = statistics.median(spent)
        name = f"TRL GRPOTrainer, micro-batch {micro} x {total // micro}"
        line = bench.add("", name, spent, nominal / median, "nominal tokens/s", median / ours)
        if best is None or line.ratio < best.ratio:
            best = line
    assert best is not None
    best.note = "its best"


class StepClock(transformers.TrainerCallback):
    """Processor seconds of each optimizer step of a Hugging Face trainer."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_step_begin(self, *arguments: Any, **named: Any) -> None:
        self._began = clock()

    def on_step_end(self, *arguments: Any, **named: Any) -> None:
        self.seconds.append(clock() - self._began)


def trl_arguments(bench: Bench, micro: int, accumulate: int) -> dict[str, Any]:
    """What both of TRL's trainers get: quiet, without checkpointing of activations, as many steps as we do."""
    return {
        "output_dir": str(bench.folder / "trl"),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulate,
        "max_steps": bench.options.repeats + 1,
        "learning_rate": 1e-5,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": bench.options.device == "cpu",
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1000,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def trl_lora() -> Any:
    """Our adapter as TRL is given it."""
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


def trl_model(bench: Bench) -> tuple[Any, Any]:
    """The same model and tokenizer."""
    model = transformers.AutoModelForCausalLM.from_pretrained(bench.folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(bench.folder)
    return model, tokenizer


def trl_grpo(bench: Bench, texts: list[str], micro: int, accumulate: int) -> list[float]:
    """Seconds of TRL's steps after the first."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    options = bench.options
    model, tokenizer = trl_model(bench)
    steps = StepClock()
    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=lambda completions, **_: [score(text) for text in completions],
        args=GRPOConfig(
            **trl_arguments(bench, micro, accumulate),
            num_generations=GROUP,
            max_completion_length=options.reply,
            generation_kwargs={"min_new_tokens": options.reply},
            num_iterations=1,
            beta=options.beta,
            loss_type="grpo",
        ),
        train_dataset=Dataset.from_dict({"prompt": texts * (options.repeats + 2)}),
        peft_config=trl_lora(),
        callbacks=[steps],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return steps.seconds[1:]


def demonstrations(options: argparse.Namespace) -> list[MaskedTokens]:
    """Whole episodes of about 400 tokens with random ids, one in six the policy's; no two begin alike."""
    rng = random.Random(5)
    found = []
    for _ in range(options.episodes):
        ids = [rng.randrange(20, options.vocab // 4) for _ in range(rng.randrange(120, 220))]
        mask = [0] * len(ids)
        for _ in range(rng.randrange(4, 9)):
            for own, length in ((1, 8), (0, rng.randrange(30, 50))):
                ids += [rng.randrange(20, options.vocab // 4) for _ in range(length)]
                mask += [own] * length
        found.append(MaskedTokens(tuple(ids), tuple(mask)))
    return found


def sft(bench: Bench) -> None:
    """Steps on the same demonstrations against TRL's trainer with packing."""
    options, policy = bench.options, bench.policy()
    trainer = Trainer(policy)
    episodes = demonstrations(options)
    total = sum(len(tokens.ids) for tokens in episodes)
    size = 16
    batches = [episodes[start : start + size] for start in range(0, len(episodes), size)]

    def epoch() -> None:
        for batch in batches:
            sft_step(trainer, batch, learning_rate=1e-5)

    seconds = repeat(options.repeats, epoch)
    ours = total / statistics.median(seconds)
    own = sum(sum(tokens.mask) for tokens in episodes)
    work = layer_parameters(policy) * 2 * total * 2 + 2 * 2 * own * options.hidden * options.vocab
    share = work / statistics.median(seconds) / roof(total // len(batches), options)
    name = f"Krill, {len(episodes)} episodes, {size} per step"
    bench.add("sft", name, seconds, ours, "tokens/s", note=f"{share:.0%} of roof without attention")
    if not importlib.util.find_spec("trl"):
        return
    best: Line | None = None
    for micro, accumulate in ((8, 1), (4, 2), (2, 4), (1, 8)):
        spent, tokens = trl_sft(bench, episodes, micro, accumulate)
        rate = tokens / sum(spent)
        name = f"TRL SFTTrainer, packing, {micro} x 1024 x {accumulate}"
        line = bench.add("", name, spent, rate, "tokens/s", ours / rate)
        if best is None or line.ratio < best.ratio:
            best = line
    assert best is not None
    best.note = "its best"


def trl_sft(
    bench: Bench, episodes: list[MaskedTokens], micro: int, accumulate: int
) -> tuple[list[float], int]:
    """Seconds of TRL's steps after the first, and the tokens they read, padding left out."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = trl_model(bench)
    steps = StepClock()
    rows = episodes * (2 + 2 * bench.options.repeats)
    data = {"input_ids": [list(e.ids) for e in rows], "completion_mask": [list(e.mask) for e in rows]}
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        args=SFTConfig(
            **trl_arguments(bench, micro, accumulate),
            packing=True,
            max_length=1024,
            completion_only_loss=True,
        ),
        train_dataset=Dataset.from_dict(data),
        peft_config=trl_lora(),
        callbacks=[steps],
    )
    packed = trainer.train_dataset
    filled = statistics.fmean(len(row) for row in packed["input_ids"])  # type: ignore[index]
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return steps.seconds[1:], round(filled * micro * accumulate * (len(steps.seconds) - 1))


PARTS: dict[str, Callable[[Bench], None]] = {"sampling": sampling, "grpo": grpo, "sft": sft}


def numbers() -> Iterator[tuple[str, int, str]]:
    """Options that are whole numbers."""
    yield "hidden", 256, "width of the model; 64 per head"
    yield "layers", 4, ""
    yield "vocab", 1024, ""
    yield "episodes", 64, "episodes of sampling and SFT"
    yield "turns", 12, "turns of an episode"
    yield "groups", 8, f"prompts of a GRPO step, {GROUP} completions each"
    yield "prompt", 300, "tokens of a GRPO prompt"
    yield "reply", 24, "tokens of a reply"
    yield "repeats", 3, "measurements of each line"
    yield "threads", 1, "of torch"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default, text in numbers():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} ({default})".strip())
    parser.add_argument("--beta", type=float, default=0.0, help="KL coefficient of GRPO (TRL's default: 0)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--quick", action="store_true", help="a small model and few episodes, to see that it runs"
    )
    parser.add_argument("--model", type=Path, help="folder of a model in place of a random one")
    parser.add_argument("--json", type=Path, help="file to write the lines to")
    options = parser.parse_args()
    if options.quick:
        vars(options).update(
            hidden=64, layers=2, episodes=16, turns=3, groups=2, prompt=60, reply=8, repeats=1
        )
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder), options)
        bench = Bench(options, Path(folder))
        policy = bench.policy()
        parameters = sum(p.numel() for p in policy.base.parameters())
        peak = roof(4096, options) / 1e9
        print(
            f"{parameters:,} parameters, {torch.get_num_threads()} threads, {policy.device}, torch {torch.__version__}"
        )
        print(f"roof: {peak:.0f} GFLOP/s in matrix products of 4096 rows of the model's widths", flush=True)
        for part in options.parts:
            PARTS[part](bench)
    if options.json:
        report = {
            "model": str(options.model or "random"),
            "parameters": parameters,
            "roof_gflops": peak,
            "options": {k: v for k, v in vars(options).items() if k not in ("json", "model")},
            "lines": [vars(line) for line in bench.lines],
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
