"""Weights sharded over two processes by the shipped config, with gloo on CPUs: the same updates as one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from krill_tui import paths
from krill_tui.errors import ModelError
from krill_tui.models.local import SHARDED, Launch
from krill_tui.models.worker_protocol import (
    ExportRequest,
    GrpoEpisode,
    GrpoStepRequest,
    LoadRequest,
    MetricsReply,
    SampledReply,
    SampleRequest,
    SaveRequest,
    SftStepRequest,
    WorkerRequest,
)
from krill_tui.training.ranks import Ranks, Sharding
from krill_tui.training.worker import Worker
from tests import fsdp_process
from tests.hub_models import build_family
from tests.tiny_policy import EXAMPLES, answer, as_tokens, item, opening


def _episodes(worker: Worker, count: int = 5) -> tuple[GrpoEpisode, ...]:
    """Sampled ones of different lengths, an odd number of them."""
    turns = []
    for turn in range(2):
        items = tuple(
            item(f"e{n}", opening("a room " * (1 + 4 * n)) if turn == 0 else answer("drawer " * n), seed=n)
            for n in range(count)
        )
        reply = worker.handle(SampleRequest(items=items))
        assert isinstance(reply, SampledReply)
        turns.append(reply.outputs)
    return tuple(
        GrpoEpisode(tokens=as_tokens(outputs), advantage=(-1.0) ** n * (1 + n))
        for n, outputs in enumerate(map(list, zip(*turns, strict=True)))
    )


class _Recorder:
    """One process that does everything; what it was asked is what two processes are then asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.worker = Worker(lambda reply: None)

    def ask(self, request: WorkerRequest) -> Any:
        text = request.model_dump_json()
        self.lines.append(text.replace(str(self.folder / "one"), str(self.folder / "two")))
        reply = self.worker.handle(request)
        if isinstance(request, LoadRequest):
            # The same computation as with sharded weights, so that the last bits are, too.
            self.worker._loaded.policy.fused = False
        return reply

    def save(self, name: str) -> None:
        self.ask(SaveRequest(directory=str(self.folder / "one" / name)))

    def fault(self, module: str, *, process: int, calls: int) -> None:
        told = {"kind": "fault", "module": module, "process": process, "calls": calls}
        self.lines.append(json.dumps(told))


def _run_sharded(folder: Path, lines: list[str]) -> list[dict[str, Any]]:
    """What two processes find, launched with the shipped config on the CPU."""
    (folder / "requests.jsonl").write_text("\n".join(lines))
    launch = Launch(processes=2, config_file=SHARDED, cpu=True)
    command = launch.command()[:-2]
    command += [fsdp_process.__file__, str(folder / "requests.jsonl"), str(folder / "found")]
    # What is imported here is imported there.
    environment = (
        os.environ | launch.environment() | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    )
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"found-{rank}.json").read_text()) for rank in range(2)]


def _largest_difference(one: Path, other: Path) -> float:
    a, b = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    assert a.keys() == b.keys()
    # An adapter that was trained: fresh ones are all 0 there.
    assert all(float(tensor.abs().max()) > 1e-4 for name, tensor in a.items() if "lora_B" in name)
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_sharded_weights_are_halves_and_update_as_whole_ones(tiny_model_dir: Path, tmp_path: Path) -> None:
    """With unequal shares, a process without work, and memory that runs out in one process only."""
    record = _Recorder(tmp_path)
    metrics: list[MetricsReply] = []
    loads = {
        "tied": LoadRequest(
            model=str(tiny_model_dir), max_context=400, token_budget=600, gradient_checkpointing=True
        ),
        # Its attention is none that can be packed, which is found out in a pass that fails.
        "capped": LoadRequest(model=str(build_family(tmp_path / "gemma", "gemma2")), token_budget=1200),
        "untied": LoadRequest(model=str(build_family(tmp_path / "llama", "llama")), token_budget=1200),
    }
    # Process, and how often the last layer may be called before memory runs out there: in the backward pass of what
    # was checkpointed, in the policy's pass behind the reference's, in the reference's.
    faults = {"tied": (1, 2), "capped": (1, 1), "untied": (0, 0)}
    for name, load in loads.items():
        record.ask(load)
        metrics.append(record.ask(SftStepRequest(examples=EXAMPLES, learning_rate=5e-4)))
        record.save(f"{name}-sft")
        sampled = _episodes(record.worker)
        process, calls = faults[name]
        record.fault("model.layers.1.mlp", process=process, calls=calls)
        metrics.append(record.ask(GrpoStepRequest(episodes=sampled, learning_rate=1e-4)))
        record.save(f"{name}-rl")
    # A single demonstration leaves one process without work; what was saved goes on as it would have.
    resumed = loads["untied"].model_copy(update={"checkpoint": str(tmp_path / "one" / "untied-rl")})
    record.ask(resumed)
    metrics.append(record.ask(SftStepRequest(examples=EXAMPLES[:1], learning_rate=1e-4)))
    metrics.append(record.ask(SftStepRequest(examples=EXAMPLES[:1], learning_rate=1e-4, update=False)))
    record.save("resumed")
    record.ask(ExportRequest(directory=str(tmp_path / "one" / "exported")))

    first, second = _run_sharded(tmp_path, record.lines)
    for name in [*(f"{name}-{phase}" for name in loads for phase in ("sft", "rl")), "resumed"]:
        one, two = (tmp_path / side / name for side in ("one", "two"))
        assert _largest_difference(one / "policy", two / "policy") < 1e-6, name
        manifests = [json.loads((side / "manifest.json").read_text()) for side in (one, two)]
        listed = [manifest.pop("files").keys() for manifest in manifests if manifest.pop("sha256")]
        assert manifests[0] == manifests[1] and listed[0] == listed[1]
        configs = [json.loads((side / "policy" / "adapter_config.json").read_text()) for side in (one, two)]
        assert sorted(configs[0]["target_modules"]) == sorted(configs[1]["target_modules"])
    assert _largest_difference(tmp_path / "one" / "exported", tmp_path / "two" / "exported") < 1e-6
    found = [reply["values"] for reply in first["replies"] if reply["kind"] == "metrics"]
    for mine, theirs in zip(metrics, found, strict=True):
        for key in ("loss", "kl", "entropy", "grad_norm", "policy_tokens"):
            assert theirs.get(key) == pytest.approx(mine.values.get(key), abs=1e-5)
    assert [values["micro_batch_tokens"] for values in found[1:6:2]] == [300, 600, 600]
    assert any("out of memory: micro-batches of 300 tokens" in note for note in first["notes"])
    loaded = [
        (mine, theirs)
        for mine, theirs in zip(first["replies"], second["replies"], strict=True)
        if mine["kind"] == "loaded"
    ]
    assert len(loaded) == 4
    for mine, theirs in loaded:
        assert mine["held"] + theirs["held"] == mine["parameters"]
        assert mine["held"] == pytest.approx(mine["parameters"] / 2, rel=0.01)


@pytest.fixture
def sharding_ranks(monkeypatch: pytest.MonkeyPatch) -> Ranks:
    """As in a process that the shipped config has started."""
    for name, value in {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    }.items():
        monkeypatch.setenv(name, value)
    # accelerate sets some of them itself; so they are put back.
    for name in ("FSDP_CPU_RAM_EFFICIENT_LOADING", "FSDP_SYNC_MODULE_STATES", "FSDP_OFFLOAD_PARAMS"):
        monkeypatch.setenv(name, "false")
    ranks = Ranks()
    monkeypatch.setattr(ranks, "_accelerator", SimpleNamespace(distributed_type=DistributedType.MULTI_CPU))
    return ranks


def test_the_config_says_how_to_shard(sharding_ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", "false")
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "LlamaDecoderLayer")
    assert sharding_ranks.sharding == Sharding(reshard_after_forward=False, layers=("LlamaDecoderLayer",))
    assert Ranks().sharding is None


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("FSDP_OFFLOAD_PARAMS", "true", "fsdp_offload_params"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", r"policy\.gradient_checkpointing"),
    ],
)
def test_what_the_worker_does_not_do_is_refused(
    sharding_ranks: Ranks, monkeypatch: pytest.MonkeyPatch, setting: str, value: str, said: str
) -> None:
    monkeypatch.setenv(setting, value)
    with pytest.raises(ModelError, match=said):
        Worker(lambda reply: None, sharding_ranks).handle(LoadRequest(model="none"))


@pytest.mark.parametrize("kind", [DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM])
def test_other_ways_to_shard_are_refused(
    sharding_ranks: Ranks, monkeypatch: pytest.MonkeyPatch, kind: DistributedType
) -> None:
    monkeypatch.setattr(sharding_ranks, "_accelerator", SimpleNamespace(distributed_type=kind))
    with pytest.raises(ModelError, match=f"does not shard weights with {kind.value}"):
        Worker(lambda reply: None, sharding_ranks).handle(LoadRequest(model="none"))


def test_sampling_has_to_be_elsewhere(sharding_ranks: Ranks) -> None:
    with pytest.raises(ModelError, match=r"policy\.sampler vllm"):
        Worker(lambda reply: None, sharding_ranks).handle(LoadRequest(model="none", episodes=4))


def test_the_shipped_config_is_what_accelerate_reads_and_its_name_stands_for_it() -> None:
    config: Any = load_config_from_file(str(paths.fsdp_config()))
    assert config.distributed_type == DistributedType.FSDP
    assert config.fsdp_config["fsdp_version"] == 2
    command = Launch(processes=4, config_file=SHARDED).command()
    assert command[command.index("--config_file") + 1] == str(paths.fsdp_config())
    assert command[command.index("--num_processes") + 1] == "4"
