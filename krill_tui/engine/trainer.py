"""The trainable policy of a run: its worker, its newest checkpoint, and where its phases stand."""

from __future__ import annotations

import asyncio
import datetime
import os
import shutil
from pathlib import Path

from krill_tui.config.endpoints import kept_back
from krill_tui.config.schema import KrillConfig, PolicyConfig, RlConfig
from krill_tui.engine.build import policy_model
from krill_tui.engine.context import RunContext
from krill_tui.errors import DataError, UsageError
from krill_tui.events import schema as ev
from krill_tui.io.checksums import damage
from krill_tui.models.local import SHARDED, Launch, LocalPolicy, WorkerClient
from krill_tui.models.vllm import VllmPolicy, VllmServer
from krill_tui.models.worker_protocol import GrpoEpisode, MetricsReply, SftExample

ADAPTER_CONFIG = "adapter_config.json"
"""What makes a folder an adapter of PEFT's."""
KEEP_CHECKPOINTS = 3
"""Of each phase; older ones are removed once a newer one is complete."""

LIVE_WINDOW = 0.02
"""Seconds a batch waits for slow worlds."""
IN_PROCESS_WINDOW = 0.5
"""The same for worlds in process. Unless the machine stalls for longer, a batch is all live episodes: the same sums
in the same order, and with them the same run for the same seed."""


class Trainer:
    """Loads the right weights at each point of a run and saves them.

    Which checkpoint is current is written in `progress.json` after the checkpoint is complete, so a kill in
    between leaves the one before.
    """

    def __init__(self, ctx: RunContext) -> None:
        self._ctx = ctx
        self._progress = ctx.store.load_progress()
        self._loaded: str | None = None
        """Checkpoint in the worker: its name, `base`, or None when nothing is loaded."""
        self._micro_batch_tokens = ctx.config.policy.micro_batch_tokens
        """Less than configured once memory ran out, also for a worker that is started again."""
        self.policy: LocalPolicy | VllmPolicy | None = None
        self.context = 0
        """Tokens the loaded model holds."""

    @property
    def sft_step(self) -> int:
        """Optimizer steps of SFT that a checkpoint holds."""
        return int(self._progress.get("sft_step", 0))

    @property
    def sft_total(self) -> int:
        """Steps that SFT ends with; what `sft_step` says where a run does not know."""
        return int(self._progress.get("sft_total", self.sft_step))

    @property
    def rl_step(self) -> int:
        """GRPO steps that a checkpoint holds."""
        return int(self._progress.get("rl_step", 0))

    @property
    def checkpoint(self) -> str | None:
        """Name of the current checkpoint, e.g. `sft-32`."""
        return self._progress.get("checkpoint")

    def weights_of(self, stage: ev.Stage) -> str | None:
        """Name of the checkpoint that a stage measures; None: the weights the run started from.

        `base` is what the run started from, `sft` what ended its cold start, `rl` the newest of its RL, whatever came
        after; `eval` is the newest of all.

        Raises:
            UsageError: the run has no such weights.
        """
        match stage:
            case "base":
                return None
            case "eval":
                return None if self._measures_others() else self.checkpoint
        if f"{stage}_step" not in self._progress:
            raise UsageError(f"this run has no weights of {stage.upper()} to measure")
        if stage == "sft" and self.sft_step < self.sft_total:
            raise UsageError(
                f"the cold start was broken off at step {self.sft_step} of {self.sft_total}",
                hint="krill sft --run goes on with it",
            )
        return f"{stage}-{self._progress[f'{stage}_step']}"

    def _measures_others(self) -> bool:
        """Whether this session measures a model or a checkpoint that is not the run's own (`eval --checkpoint`)."""
        asked, stored = self._ctx.config.policy, self._ctx.store.load_config()
        own = stored.policy if stored else asked
        return (asked.model, asked.adapter) != (own.model, own.adapter)

    async def load_for(self, stage: ev.Stage) -> tuple[LocalPolicy | VllmPolicy, str]:
        """The policy with the weights of a stage, and their short name (`base`, `sft-32`).

        Raises:
            UsageError: they are not there (any more): no other weights are taken for them.
        """
        checkpoint = self.weights_of(stage)
        policy = await self._load(checkpoint)
        return policy, checkpoint or "base"

    def named(self, weights: str) -> str:
        """The model and what lies on it, e.g. `krill-tiny + sft-32`; `weights` as `load_for` gave it."""
        config = self._ctx.config.policy
        model = Path(config.model).name or "krill-tiny"
        if weights == "base":
            return f"{model} + {_short(config.adapter)}" if config.adapter else model
        return f"{model} + {weights}"

    def still_holds(self, said: ev.Evaluated) -> bool:
        """Whether an evaluation is of the weights that its stage has now (more RL makes others)."""
        if self._ctx.config.policy.kind != "local" or not said.weights:
            return True
        try:
            return said.weights == self.named(self.weights_of(said.stage) or "base")
        except UsageError:
            return False

    async def load_for_sft(self) -> LocalPolicy | VllmPolicy:
        """The weights SFT goes on from."""
        return await self._load(f"sft-{self.sft_step}" if self.sft_step else None)

    def check_sft(self) -> None:
        """Before a step of SFT.

        Raises:
            UsageError: RL has begun in this run: what it made would no longer be what SFT ended with.
        """
        if "rl_step" in self._progress:
            raise UsageError(
                f"RL has begun in this run (rl-{self.rl_step}): fine-tuning it further would change what that came from",
                hint="use a new run: --run NEW",
            )

    async def load_for_rl(self) -> LocalPolicy | VllmPolicy:
        """The weights GRPO goes on from; at its start the SFT adapter becomes the frozen reference.

        Raises:
            UsageError: the run was fine-tuned after its RL: going on would mix the two.
        """
        begun = "rl_step" in self._progress
        if begun and not (self.checkpoint or "").startswith("rl-"):
            raise UsageError(
                f"the newest weights of this run are {self.checkpoint}, made after rl-{self.rl_step}",
                hint=f"start a new run from them: krill rl --run NEW --checkpoint"
                f" {self._ctx.store.path / 'checkpoints' / str(self.checkpoint)}",
            )
        if self.checkpoint is None and not self._ctx.config.policy.adapter:
            self._ctx.note("no cold start in this run: RL starts from the base model", "warning")
        if not begun and self.sft_step < self.sft_total:
            self._ctx.note(
                f"the cold start was broken off at step {self.sft_step} of {self.sft_total}: RL starts from there",
                "warning",
            )
        policy = await self._load(self.checkpoint)
        # A checkpoint of RL holds the reference already, and is not replaced: a kill in between would lose it.
        if not begun:
            await self._worker().freeze_reference()
            await self.save("rl", self.rl_step)
        return policy

    async def sft(self, examples: list[SftExample], learning_rate: float, step: int) -> dict[str, float]:
        """One optimizer step; returns its metrics."""
        self._loaded = f"sft+{step}"
        reply = await self._worker().sft_step(examples, learning_rate=learning_rate)
        return self._taken(reply)

    async def count_tokens(self, examples: list[SftExample]) -> tuple[tuple[int, int], ...]:
        """Of each example: all tokens, and those of the replies; nothing is cut."""
        return await self._worker().count_tokens(examples)

    async def grpo(
        self, episodes: list[GrpoEpisode], config: RlConfig, temperature: float
    ) -> dict[str, float]:
        """One step of Eq. 9, `num_iterations` updates; returns its metrics."""
        # Before the call: of several updates the first may be done when the second fails.
        self._loaded = "rl+"
        reply = await self._worker().grpo_step(
            episodes,
            learning_rate=config.learning_rate,
            clip_epsilon=config.clip_epsilon,
            epsilon_high=config.epsilon_high,
            kl_coeff=config.kl_coeff,
            loss_type=config.loss_type,
            temperature=temperature,
            importance_sampling_cap=config.importance_sampling_cap
            if isinstance(self.policy, VllmPolicy)
            else None,
            use_bias_correction_kl=config.use_bias_correction_kl,
            num_iterations=config.num_iterations,
        )
        return self._taken(reply)

    async def save(self, phase: ev.Phase, step: int, *, total: int = 0) -> None:
        """Write a checkpoint and make it the current one; `total`: of the phase's steps, where its end is known."""
        name = f"{phase}-{step}"
        path = self._ctx.store.checkpoint_dir(phase, step)
        await self._worker().save(str(path))
        self._progress |= {"checkpoint": name, f"{phase}_step": step}
        if total:
            self._progress[f"{phase}_total"] = total
        # What the weights were made of is on the disk before anything names them: a power cut keeps the order.
        await asyncio.to_thread(self._ctx.sync)
        self._ctx.store.save_progress(self._progress)
        self._loaded = name
        self._ctx.emit(ev.CheckpointSaved(phase=phase, step=step, path=f"checkpoints/{name}", total=total))
        self._prune(phase, step)

    def stale(self) -> None:
        """A step may have been cut short: load the checkpoint again before going on."""
        self._loaded = None

    def forget(self) -> None:
        """The worker died: whatever was loaded is gone."""
        self._loaded = None
        self.policy = None
        self._ctx.worker = None

    async def close(self) -> None:
        if self.policy:
            await self.policy.close()
        if self._ctx.worker:
            await self._ctx.worker.close()
        self.forget()

    async def _load(self, checkpoint: str | None) -> LocalPolicy | VllmPolicy:
        wanted = checkpoint or "base"
        if self.policy and self._loaded == wanted:
            return self.policy
        ctx, config = self._ctx, self._ctx.config.policy
        folder = str(ctx.store.path / "checkpoints" / checkpoint) if checkpoint else config.adapter or None
        if folder and not any((Path(folder) / name).exists() for name in ("manifest.json", ADAPTER_CONFIG)):
            raise UsageError(
                f"{folder}: holds no checkpoint and no LoRA adapter",
                hint=f"no other weights are taken in its place; krill doctor {ctx.store.name} says which are whole"
                if checkpoint
                else f"a checkpoint folder of a run, or one with {ADAPTER_CONFIG} and safetensors",
            )
        if checkpoint:
            await self._check_whole(checkpoint)
        model = policy_model(ctx.config)
        external = config.sampler == "vllm"
        launch = check_local(ctx.config)
        ctx.note(f"loading {Path(model).name}{f' with {Path(folder).name}' if folder else ''}")
        if ctx.worker is None:
            ctx.worker = await WorkerClient.start(
                log=ctx.store.worker_log,
                launch=launch,
                noted=ctx.note_once,
            )
        worker = self._worker()
        # One date in all of a run, so that a template that writes it makes the same sequences every day.
        before = ctx.state.worker.date if ctx.state.worker else ""
        date = config.chat_date or before or datetime.date.today().isoformat()
        loaded = await worker.load(
            model=model,
            checkpoint=folder,
            lora_rank=config.lora_rank,
            lora_alpha=config.lora_alpha,
            dtype=config.dtype,
            device=config.device,
            threads=config.threads,
            seed=ctx.config.seed,
            max_context=ctx.config.rl.max_prompt_length + ctx.config.rl.max_response_length,
            token_budget=self._micro_batch_tokens,
            gradient_checkpointing=config.gradient_checkpointing,
            episodes=0 if external else ctx.config.env.concurrency,
            date=date,
        )
        for change in loaded.changes:
            ctx.note_once(change)
        ctx.emit(
            ev.WorkerStarted(
                model=Path(model).name,
                parameters=loaded.parameters,
                trainable=loaded.trainable,
                device=loaded.device,
                version=loaded.version,
                date=date,
                changes=loaded.changes,
            )
        )
        self._loaded = wanted
        self.context = loaded.context
        if self.policy:
            await self.policy.close()
        if external:
            if config.temperature not in (0.0, 1.0):
                ctx.note_once("the vLLM server has to run with --logprobs-mode processed_logprobs")
            self.policy = VllmPolicy(
                worker,
                VllmServer(
                    config.sampler_url,
                    config.sampler_api_key,
                    say=ctx.note,
                    hint=kept_back(ctx.config, "sampler", os.environ),
                ),
                loaded,
                ctx.store.path / "adapters",
                name=f"vllm:{Path(model).name}",
            )
            return self.policy
        window = LIVE_WINDOW if ctx.config.env.backend == "http" else IN_PROCESS_WINDOW
        self.policy = LocalPolicy(worker, name=f"local:{Path(model).name}", window=window)
        return self.policy

    async def _check_whole(self, checkpoint: str) -> None:
        """Before weights of this run are used.

        Raises:
            DataError: they are not as they were written.
        """
        store = self._ctx.store
        problems = await asyncio.to_thread(damage, store.path / "checkpoints" / checkpoint)
        if problems:
            raise DataError(problems[0], hint=f"krill doctor {store.name} says which checkpoints are whole")

    def _taken(self, reply: MetricsReply) -> dict[str, float]:
        if isinstance(self.policy, VllmPolicy):
            self.policy.weights_changed()
        self._micro_batch_tokens = int(reply.values["micro_batch_tokens"])
        return reply.values

    def _worker(self) -> WorkerClient:
        assert self._ctx.worker is not None, "a load_… method comes first"
        return self._ctx.worker

    def _prune(self, phase: str, step: int) -> None:
        """Keep the last few checkpoints of the phase; each holds the frozen reference as well."""
        folder = self._ctx.store.path / "checkpoints"
        steps = sorted(
            int(p.name.removeprefix(f"{phase}-")) for p in folder.glob(f"{phase}-[0-9]*") if p.is_dir()
        )
        for old in [s for s in steps if s < step][: -(KEEP_CHECKPOINTS - 1)]:
            shutil.rmtree(folder / f"{phase}-{old}", ignore_errors=True)


def _short(folder: str) -> str:
    """The last two parts of an adapter's path that say something: `RUN/sft-32`."""
    parts = [part for part in Path(folder).parts if part != "checkpoints"]
    return "/".join(parts[-2:])


def check_local(config: KrillConfig) -> Launch:
    """How the worker is started for the local policy of a config.

    Raises:
        UsageError: it cannot work, whatever is played before.
    """
    policy = config.policy
    policy_model(config)
    if policy.sampler == "vllm" and policy.constrained:
        raise UsageError(
            "a vLLM server cannot bind replies to the admissible actions",
            hint="set policy.constrained to false",
        )
    if policy.adapter and not Path(policy.adapter).is_dir():
        raise UsageError(f"{policy.adapter}: there is no such checkpoint")
    return _launch(policy)


def _launch(policy: PolicyConfig) -> Launch:
    """How the worker is started.

    Raises:
        UsageError: its config is not there, or shards weights that the worker would have to sample.
    """
    file = policy.accelerate_config
    if file == SHARDED and policy.sampler != "vllm":
        raise UsageError(
            "sharded weights are not sampled by the model worker",
            hint="set policy.sampler to vllm, or policy.accelerate_config to nothing",
        )
    if file and file != SHARDED and not Path(file).is_file():
        raise UsageError(f"policy.accelerate_config {file}: there is no such file", hint=f"or {SHARDED}")
    return Launch(policy.processes, file, cpu=policy.device == "cpu")
