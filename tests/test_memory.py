"""The estimate of memory, against published sizes, real models and a real run."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from krill_tui.errors import DataError
from krill_tui.models.worker_protocol import LoadRequest, NoteReply
from krill_tui.training import worker as worker_module
from krill_tui.training.batches import make_batch
from krill_tui.training.loading import load_base
from krill_tui.training.memory import (
    GIB,
    Load,
    activation_bytes,
    count_parameters,
    describe,
    estimate,
    read_shape,
    shape_of,
)
from krill_tui.training.model import ModelSettings, PolicyModel
from krill_tui.training.tokens import MaskedTokens
from krill_tui.training.trainer import Trainer
from krill_tui.training.worker import Worker
from tests.hub_models import FAMILIES, build_family, family_config

QWEN: dict[str, tuple[int, int, int, int, int, bool, int]] = {
    # layers, hidden, heads, kv heads, mlp, tied, published parameters (Hugging Face's count of the safetensors)
    "0.5B": (24, 896, 14, 2, 4864, True, 494_032_768),
    "1.5B": (28, 1536, 12, 2, 8960, True, 1_543_714_304),
    "3B": (36, 2048, 16, 2, 11008, True, 3_085_938_688),
    "7B": (28, 3584, 28, 4, 18944, False, 7_615_616_512),
    "32B": (64, 5120, 40, 8, 27648, False, 32_763_876_352),
}


@pytest.mark.parametrize("name", QWEN)
def test_parameters_of_qwen_are_the_published_ones(name: str) -> None:
    layers, hidden, heads, kv_heads, mlp, tied, published = QWEN[name]
    shape = shape_of(
        {
            "model_type": "qwen2",
            "num_hidden_layers": layers,
            "hidden_size": hidden,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "intermediate_size": mlp,
            "tie_word_embeddings": tied,
            "vocab_size": 151_936 if tied else 152_064,
        }
    )
    assert count_parameters(shape) == published


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_of_each_family_are_those_of_the_real_model(family: str) -> None:
    config = family_config(family, eos_token_id=1)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    expected = sum(p.numel() for p in model.parameters())
    assert count_parameters(shape_of({**config.to_dict(), "model_type": family})) == pytest.approx(
        expected, rel=0.01
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parts_are_what_torch_holds(tmp_path: Path, dtype: Any) -> None:
    """Weights, adapters and optimizer to the byte; what a training pass keeps within a third."""
    folder = build_family(tmp_path, "qwen2", hidden_size=128, intermediate_size=384, num_hidden_layers=4)
    policy = PolicyModel(
        *load_base(str(folder), dtype, "cpu"), ModelSettings(lora_rank=8, dtype=dtype), name=str(folder)
    )
    policy.fused = False
    shape = read_shape(folder)
    needed = estimate(shape, Load(dtype, 8, gradient_checkpointing=True))
    assert needed.weights == sum(p.nbytes for p in policy.base.parameters())
    assert needed.adapters == sum(p.nbytes for n, p in policy.peft.named_parameters() if "lora_" in n)
    held: dict[int, int] = {}
    alive: list[torch.Tensor] = []
    own = {p.untyped_storage().data_ptr() for p in policy.peft.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            alive.append(tensor)
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = MaskedTokens(tuple(range(300)), (0,) * 210 + (1,) * 90)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logprobs = policy.token_scores(make_batch([tokens]))[0]
    logprobs.sum().backward()
    activations = 300 * activation_bytes(shape, policy.base.dtype.itemsize, False, False)
    kept_logits = 90 * 1200 * 4 * 2
    assert (activations + kept_logits) / sum(held.values()) == pytest.approx(1.0, abs=0.33)
    trainer = Trainer(policy)
    trainer.update(0.0, 1.0)
    states = [v for state in trainer.optimizer.state.values() for k, v in state.items() if k != "step"]
    gradients = sum(p.nbytes for p in policy.policy_parameters.values())
    assert needed.optimizer == gradients + sum(value.nbytes for value in states)


def test_what_saves_memory_saves_it_in_the_estimate() -> None:
    shape = shape_of(family_config("qwen2", hidden_size=4096, num_hidden_layers=32).to_dict())
    plain = estimate(shape, Load())
    assert estimate(shape, Load(gradient_checkpointing=True)).activations < plain.activations / 5
    assert estimate(shape, Load(dtype="bfloat16")).weights == plain.weights / 2
    assert estimate(shape, Load(episodes=32)).kv_cache == plain.kv_cache / 2
    assert estimate(shape, Load(episodes=0)).sampling_copy == 0
    assert "found 8.0 GiB" in describe(plain, Load(), 8 * GIB)


def test_sharded_weights_are_divided_but_for_what_a_pass_gathers() -> None:
    shape = shape_of(
        family_config("llama", hidden_size=4096, intermediate_size=11008, num_hidden_layers=32).to_dict()
    )
    alone, shared = (estimate(shape, Load(episodes=0, shards=shards)) for shards in (1, 4))
    assert shared.weights == -(-alone.weights // 4)
    outside = count_parameters(dataclasses.replace(shape, layers=0)) * 4
    layer = (alone.weights - outside) / 32
    assert shared.gathered == pytest.approx(outside + 3 * layer, rel=1e-3)
    assert shared.total < alone.total and alone.gathered == 0
    assert "gathered for a pass" in describe(shared, Load(shards=4), None)


def test_a_config_without_dimensions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no usable dimension"):
        shape_of({"model_type": "mamba", "vocab_size": 10})
    with pytest.raises(DataError, match="cannot be read"):
        read_shape(tmp_path)


def test_the_worker_says_what_it_needs_and_warns_where_that_is_too_much(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Any] = []
    Worker(said.append).handle(LoadRequest(model=str(tiny_model_dir), episodes=4))
    [note] = [reply for reply in said if isinstance(reply, NoteReply)]
    assert note.level == "info" and note.message.startswith("memory: about")
    monkeypatch.setattr(worker_module, "free_memory", lambda device: 1000)
    Worker(said.append).handle(LoadRequest(model=str(tiny_model_dir), episodes=4))
    assert said[-1].level == "warning" and "too little; policy.dtype bfloat16" in said[-1].message


_RUN = """
import json, sys
from torch.profiler import ProfilerActivity, profile
from krill_tui.models.worker_protocol import ChatMessage, LoadRequest, SftExample, SftStepRequest
from krill_tui.training.worker import Worker

def step(count):
    examples = []
    for n in range(count):
        ask, say = f"{n} room " * 60, "look " * (40 + n)
        messages = (ChatMessage(role="user", content=ask), ChatMessage(role="assistant", content=say))
        examples.append(SftExample(messages=messages))
    return worker.handle(SftStepRequest(examples=tuple(examples), learning_rate=1e-3)).values

worker = Worker(lambda reply: None)
checkpointing = sys.argv[2] == "True"
worker.handle(LoadRequest(model=sys.argv[1], token_budget=4096, gradient_checkpointing=checkpointing))
step(1)
with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
    values = step(20)
profiler.export_chrome_trace(sys.argv[1] + "/trace.json")
trace = json.load(open(sys.argv[1] + "/trace.json"))["traceEvents"]
changes = [e["args"] for e in sorted(trace, key=lambda e: e.get("ts", 0)) if e["name"] == "[memory]"]
live = [change["Total Allocated"] for change in changes]
print(max(live) - (live[0] - changes[0]["Bytes"]), values["policy_tokens"] / values["num_tokens"], values["num_tokens"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [True, False])
def test_the_peak_of_a_real_step_is_near_the_estimate(tmp_path: Path, checkpointing: bool) -> None:
    """Bytes of tensors alive at once. What an allocator holds back on top depends on the system."""
    folder = build_family(tmp_path, "llama", hidden_size=128, intermediate_size=512, num_hidden_layers=4)
    printed = subprocess.run(
        [sys.executable, "-c", _RUN, str(folder), str(checkpointing)],
        capture_output=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ).stdout
    measured, share, tokens = map(float, printed.split())
    assert tokens > 4096
    load = Load(gradient_checkpointing=checkpointing, micro_batch_tokens=4096, policy_share=share)
    needed = estimate(read_shape(folder), load)
    assert 0.75 < measured / (needed.activations + needed.logits) < 1.33
