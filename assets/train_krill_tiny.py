"""Train krill-tiny, the embedded policy, from scratch on text of procedural households.

    python assets/train_krill_tiny.py --out DIR --minutes 60 --seed 0

Stage `base` teaches to read (drills of lookups, then whole episodes, drills kept in to the end); stage `weak` goes
on with players who often do anything that is possible, so that a beginner comes out who still knows how to read.
`--diagnose`, `--gates` and `--measure` only test what is in DIR. Everything is logged as JSON lines in DIR/log.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from tiny_episodes import BEGINNER, HEED
from tiny_measure import diagnose, gates, measure
from tiny_rows import CONTEXT, Encoder, Mix, Row, corpus, draw_batches, known_words
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.nn.functional import cross_entropy

from krill_tui.training.tiny import build_model, build_tokenizer
from krill_tui.training.tokens import load_tokenizer

VOCABULARY = 1024
ROPE_THETA = 1e6
"""High: most of a head's dimensions then compare contents, whatever the distance."""
INITIAL_STD = 0.05
TEST_HOUSEHOLDS = range(5_000_000, 6_000_000)
SHAPE = {"hidden": 128, "layers": 4, "heads": 2, "kv_heads": 2, "mlp": 512}

AVERAGE_EVERY = 6.0
"""Seconds between two averages of the weights, with several processes."""


def set_circuits(model: Any) -> None:
    """Give the attention a start from which looking things up is soon learnt.

    In the first layer, one head looks one token back and one two: with query and key biases alone, rotary embedding
    makes the score a function of the distance that peaks there. The first writes the token before into a subspace
    that the second layer's first head compares with the present token, to copy what follows there: an induction head.
    From the usual random start lookups were still guesses after a million tokens. All of it stays trainable.
    """
    size = model.config.hidden_size // model.config.num_attention_heads
    half = size // 2
    speeds = torch.tensor([ROPE_THETA ** (-i / half) for i in range(half)])
    basis, _ = torch.linalg.qr(torch.randn(model.config.hidden_size, model.config.hidden_size))
    first, second = (model.model.layers[i].self_attn for i in range(2))
    with torch.no_grad():
        for head, distance in enumerate((1, 2)):
            at = head * size
            first.q_proj.bias[at : at + half] = 8.0
            first.k_proj.bias[at : at + half] = 8.0 * torch.cos(speeds * distance)
            first.k_proj.bias[at + half : at + size] = 8.0 * torch.sin(speeds * distance)
        token, before = basis[:, :size].T, basis[:, size : 2 * size].T
        first.v_proj.weight[:size], first.o_proj.weight[:, :size] = token, 2 * INITIAL_STD * before.T
        second.q_proj.weight[:size], second.k_proj.weight[:size] = 1.3 * token, 1.3 * before
        second.v_proj.weight[:size], second.o_proj.weight[:, :size] = token, 2 * INITIAL_STD * token.T


def new_model(vocabulary: int, seed: int) -> Any:
    """The untrained model."""
    torch.manual_seed(seed)
    model = build_model(vocabulary, context=CONTEXT, rope_theta=ROPE_THETA, **SHAPE)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                # What is written into the residual stream begins small beside the embeddings.
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                parameter.normal_(0.0, INITIAL_STD / 8 if writes else INITIAL_STD)
    set_circuits(model)
    return model


def collate(rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """ids and weights `[B, T]`, padded on the right with 0."""
    length = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    weights = torch.zeros(len(rows), length)
    for n, row in enumerate(rows):
        ids[n, : len(row.ids)] = torch.tensor(row.ids)
        weights[n, : len(row.ids)] = torch.tensor(row.weights)
    return ids, weights


def loss_of(model: Any, rows: Sequence[Row], device: str) -> tuple[Tensor, Tensor]:
    """(sum of weighted cross-entropies, sum of weights)."""
    ids, weights = (part.to(device) for part in collate(rows))
    chosen = weights[:, 1:] > 0
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[:, :-1][chosen])
    each = cross_entropy(logits.float(), ids[:, 1:][chosen], reduction="none")
    weight = weights[:, 1:][chosen]
    return (each * weight).sum(), weight.sum()


class Run:
    """One training: model, optimizer, clock, log.

    With several processes each trains on text of its own, and weights and moments are averaged every few seconds
    (local SGD): a process that gets less of its core slows nobody down. Logged steps are the first one's.
    """

    def __init__(self, options: argparse.Namespace, rank: int = 0) -> None:
        self.options = options
        self.rank = rank
        self.out = Path(options.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.rng = Random(f"{options.seed}/{rank}" if rank else options.seed)
        # A model knows its own tokenizer only: one that goes on keeps it.
        kept = _model_folder(options.resume) if options.resume else None
        self.tokenizer: Any = (
            load_tokenizer(kept) if kept else build_tokenizer(corpus(Random(0)), VOCABULARY, known_words())
        )
        self.encoder = Encoder(self.tokenizer)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model: Any = new_model(len(self.tokenizer), options.seed).to(self.device)
        self.step = self.tokens = self._shared_tokens = 0
        self.seconds = 0.0
        self.batches: list[list[Row]] = []
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.05, fused=True
        )

    def log(self, **values: object) -> None:
        if self.rank:
            return
        line = json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()})
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def train(self, stage: str, seconds: float, peak: float) -> None:
        """Train for so long; the learning rate warms up over 100 steps and falls linearly to a twentieth."""
        start, first, last = time.perf_counter(), self.step, 0.0
        begun, shown, averaged = self.seconds, [0.0, 0.0], 0
        self._shared_tokens = self.tokens
        # As many for every process, however late its last step ends.
        averages = int(seconds // AVERAGE_EVERY) if dist.is_initialized() else 0
        while (spent := time.perf_counter() - start) < seconds:
            done = spent / seconds
            rate = peak * min(1.0, (self.step - first + 1) / 100) * (1.0 - 0.95 * done)
            total, weight = self._step(stage, done, rate)
            shown[0] += total
            shown[1] += weight
            self.seconds = begun + time.perf_counter() - start
            if self.step % 100 == 0:
                self.log(
                    stage=stage, step=self.step, seconds=self.seconds, tokens=self.tokens, lr=rate,
                    loss=shown[0] / shown[1], tokens_per_second=self.tokens / self.seconds,
                )  # fmt: skip
                shown = [0.0, 0.0]
            if averaged < averages and time.perf_counter() - start >= (averaged + 1) * AVERAGE_EVERY:
                averaged += 1
                self._average()
            if not self.rank and spent - last > 150:
                last = spent
                self.save(stage)
                self.check()
        for _ in range(averages - averaged):
            self._average()
        if not self.rank:
            self.save(stage)
            self.check()

    @torch.no_grad()
    def _average(self) -> None:
        """The mean over the processes of the weights and of AdamW's moments; their tokens are added up."""
        state = self.optimizer.state.values()
        moments = [entry[name] for entry in state for name in ("exp_avg", "exp_avg_sq")]
        count = dist.get_world_size()
        for tensor in [*self.model.parameters(), *moments]:
            dist.all_reduce(tensor)
            tensor /= count
        here = torch.tensor([self.tokens - self._shared_tokens], dtype=torch.float64)
        dist.all_reduce(here)
        self.tokens = self._shared_tokens = self._shared_tokens + int(here)

    def _step(self, stage: str, done: float, rate: float) -> tuple[float, float]:
        options = self.options
        if not self.batches:
            if stage == "base" and not options.resume:
                # Short lists first, and almost nothing else; large worlds and the shop once reading works.
                mix = Mix(
                    drills=max(options.drills, min(0.9, 1.0 - 5 * done)),
                    most=min(14, 4 + self.step // 25),
                    sight=options.sight if done > 0.25 else 0.0,
                    rooms=options.rooms if done > 0.25 else 0.0,
                    tours=options.tours if done > 0.25 else 0.0,
                    memory=options.memory if done > 0.25 else 0.0,
                    orders=options.orders if done > 0.25 else 0.0,
                    ordered=options.ordered if done > 0.25 else 0.0,
                    observation=options.observation,
                    full=options.full if done > 0.25 else 0.0,
                    shop=options.shop if done > 0.4 else 0.0,
                )
            else:
                vague = {kind: min(1.0, share * options.noise) for kind, share in BEGINNER.items()}
                weak = vague if stage == "weak" else None
                heed = options.heed if weak else 1.0
                mix = Mix(
                    drills=options.drills, sight=options.sight, rooms=options.rooms, tours=options.tours, memory=options.memory,
                    orders=options.orders, ordered=options.ordered, observation=options.observation, full=options.full,
                    shop=options.shop, weak=weak, heed=heed, shop_noise=options.shop_noise if weak else 0.0,
                )  # fmt: skip
            self.batches = draw_batches(self.rng, self.encoder, options.batch, 12, mix)
        rows = self.batches.pop()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss, weight = loss_of(self.model, rows, self.device)
        (loss / weight).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        self.tokens += sum(len(row.ids) for row in rows)
        return float(loss.detach()), float(weight)

    def check(self) -> None:
        """Log the stepwise diagnosis on a few held-out households."""
        start = time.perf_counter()
        rates = diagnose(self.model, self.tokenizer, TEST_HOUSEHOLDS, episodes=40)
        self.log(check=rates, step=self.step, seconds=time.perf_counter() - start)

    def save(self, stage: str) -> None:
        """Write a checkpoint from which `--resume` goes on, and the model as a Hugging Face folder."""
        folder = self.out / stage
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        state = self.optimizer.state_dict()["state"]
        tensors = {
            f"{index}.{name}": value for index, entry in state.items() for name, value in entry.items()
        }
        partial = self.out / "optimizer.partial"
        save_file(tensors, partial)
        os.replace(partial, self.out / "optimizer.safetensors")
        facts = {"stage": stage, "step": self.step, "tokens": self.tokens, "seconds": self.seconds}
        (self.out / "state.json").write_text(json.dumps(facts), encoding="utf-8")

    def resume(self, folder: str) -> None:
        """Go on from a checkpoint; the data go on from a new seed, as each batch is new anyway.

        From a model folder without one, such as the shipped `krill-tiny`, AdamW and the counts begin anew.
        """
        source = Path(folder)
        weights = load_file(_model_folder(folder) / "model.safetensors")
        self.model.load_state_dict(weights, strict=False)
        self.model.tie_weights()
        if not (source / "state.json").exists():
            return
        facts = json.loads((source / "state.json").read_text(encoding="utf-8"))
        self.step, self.tokens, self.seconds = facts["step"], facts["tokens"], facts["seconds"]
        self.rng = Random(f"{self.options.seed}/{self.step}/{self.rank}")
        saved = self.optimizer.state_dict()
        for name, value in load_file(source / "optimizer.safetensors").items():
            index, _, key = name.partition(".")
            saved["state"].setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict(saved)


def _model_folder(checkpoint: str) -> Path:
    """The model a checkpoint folder holds: that of its last stage; or the folder itself, a model's."""
    if not Path(checkpoint, "state.json").exists():
        return Path(checkpoint)
    state = json.loads((Path(checkpoint) / "state.json").read_text(encoding="utf-8"))
    return Path(checkpoint) / state["stage"]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, help="folder for checkpoints, log and models")
    parser.add_argument("--stage", choices=("base", "weak"), default="base")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=2048, help="tokens a step")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--drills", type=float, default=0.2, help="share of rows that are drills, at the end")
    parser.add_argument(
        "--sight",
        type=float,
        default=0.15,
        help="share of the drills that ask what is seen, not what a skill says",
    )
    parser.add_argument(
        "--rooms", type=float, default=0.2, help="share of the drills that ask where in a room one would go"
    )
    parser.add_argument(
        "--tours", type=float, default=0.25, help="share of the drills that ask where one has not been yet"
    )
    parser.add_argument(
        "--memory", type=float, default=0.15, help="share of the drills that ask where a thing was seen"
    )
    parser.add_argument(
        "--orders",
        type=float,
        default=0.15,
        help="share of the drills that ask in what order a thing is done",
    )
    parser.add_argument(
        "--ordered",
        type=float,
        default=0.3,
        help="share of the episodes in small worlds whose household has an order of its own",
    )
    parser.add_argument("--observation", type=float, default=0.1, help="loss weight of what the world says")
    parser.add_argument("--shop", type=float, default=0.1, help="share of the other rows that are purchases")
    parser.add_argument(
        "--full",
        type=float,
        default=0.45,
        help="share of the episodes that are of worlds as large as the dataset's",
    )
    parser.add_argument("--processes", type=int, default=1, help="train in so many processes (gloo)")
    parser.add_argument("--noise", type=float, default=1.0, help="stage weak: times the usual vagueness")
    parser.add_argument(
        "--shop-noise",
        type=float,
        default=0.2,
        help="stage weak: how often a beginner in a shop does any possible thing",
    )
    parser.add_argument(
        "--heed",
        type=float,
        default=HEED,
        help="stage weak: share of episodes that follow the prompt's skills",
    )
    parser.add_argument(
        "--resume", metavar="DIR", help="go on from the checkpoint, or the model, in this folder"
    )
    parser.add_argument("--diagnose", metavar="MODEL", help="only: stepwise diagnosis of a model folder")
    parser.add_argument(
        "--measure", metavar="MODEL", help="only: success of a model folder, before and after SFT"
    )
    parser.add_argument(
        "--gates", metavar="MODEL", help="only: success of a model folder in the card's gates"
    )
    parser.add_argument("--episodes", type=int, default=128, help="with --diagnose, --measure and --gates")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    if options.measure:
        measure(options.measure, TEST_HOUSEHOLDS, options.episodes, options.seed)
        return
    if options.gates:
        gates(options.gates, TEST_HOUSEHOLDS, options.episodes)
        return
    if options.diagnose:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(options.diagnose)
        tokenizer = AutoTokenizer.from_pretrained(options.diagnose)
        print(json.dumps(diagnose(model, tokenizer, TEST_HOUSEHOLDS, options.episodes), indent=1))
        return
    if options.processes > 1:
        if torch.cuda.is_available():
            raise SystemExit("--processes is for CPUs: they would share one GPU")
        Path(options.out).mkdir(parents=True, exist_ok=True)
        spawn(_train, (options,), nprocs=options.processes)
    else:
        _train(0, options)


def _train(rank: int, options: argparse.Namespace) -> None:
    """One process of a training."""
    torch.set_num_threads(options.threads)
    run = Run(options, rank)
    if options.resume:
        run.resume(options.resume)
    if options.processes > 1:
        meeting = Path(options.out, "meeting").resolve()
        dist.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=rank, world_size=options.processes
        )
        dist.barrier()
    run.log(parameters=sum(p.numel() for p in run.model.parameters()), vocabulary=len(run.tokenizer))
    run.train(options.stage, options.minutes * 60, options.lr)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
