"""Any causal LM of Hugging Face: sampled, fine-tuned and reinforced without what krill-tiny can take for granted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from krill_tui.config.load import is_krill_tiny, load_config
from krill_tui.errors import ModelError
from krill_tui.models.base import Message
from krill_tui.models.worker_protocol import GrpoEpisode, SampleOutput
from krill_tui.training.batches import make_batch
from krill_tui.training.grpo import GrpoSettings, grpo_step
from krill_tui.training.loading import choose_device, load_base
from krill_tui.training.model import ModelSettings, PolicyModel
from krill_tui.training.sampler import Sampler
from krill_tui.training.sft import sft_step, tokenize_demonstration
from krill_tui.training.tokens import MaskedTokens
from krill_tui.training.trainer import Trainer
from krill_tui.trajectory import EpisodeTokens
from tests.hub_models import build_family
from tests.tiny_policy import ACTIONS, answer, as_tokens, item, opening

DEMONSTRATION: list[Message] = [
    {"role": "system", "content": "You are in a room."},
    {"role": "user", "content": "You see a cabinet 1."},
    {"role": "assistant", "content": "<think>now look</think><action>look</action>"},
    {"role": "user", "content": "You see nothing."},
    {"role": "assistant", "content": "<think>go</think><action>go to cabinet 1</action>"},
]


def _policy(folder: Path, **settings: Any) -> PolicyModel:
    chosen = ModelSettings(lora_rank=4, lora_alpha=8, **settings)
    base, chat = load_base(str(folder), chosen.dtype, "cpu")
    return PolicyModel(base, chat, chosen, name=str(folder))


def _play(sampler: Sampler, count: int = 4) -> list[tuple[EpisodeTokens, list[SampleOutput]]]:
    """Two turns of some episodes, the even ones bound to admissible actions."""
    turns = [
        sampler.sample(
            [
                item(f"e{n}", opening("x " * n) if turn == 0 else answer("y"), seed=n, constrained=n % 2 == 0)
                for n in range(count)
            ]
        )
        for turn in range(2)
    ]
    return [(as_tokens(outputs), outputs) for outputs in map(list, zip(*turns, strict=True))]


def _gap(policy: PolicyModel, tokens: EpisodeTokens) -> float:
    with torch.no_grad():
        batch = make_batch([MaskedTokens(tokens.ids, tokens.mask, tokens.allowed)])
        return (policy.token_scores(batch)[0][0] - torch.tensor(tokens.logprobs)).abs().max().item()


@pytest.mark.parametrize("family", ["qwen2", "llama", "gpt_neox", "gemma2"])
def test_models_of_many_families_are_sampled_and_trained(family: str, tmp_path: Path) -> None:
    policy = _policy(build_family(tmp_path, family))
    trainer = Trainer(policy)
    demonstrations = [tokenize_demonstration(trainer, DEMONSTRATION)]
    losses = [sft_step(trainer, demonstrations, learning_rate=3e-3)["loss"] for _ in range(6)]
    assert losses[-1] < losses[0]
    trainer.start_phase()
    played = _play(Sampler(policy))
    for n, (tokens, outputs) in enumerate(played):
        assert _gap(policy, tokens) < 1e-3
        if n % 2 == 0:
            assert all(
                output.text.split("<action>")[-1].split("</action>")[0] in ACTIONS for output in outputs
            )
    episodes = [GrpoEpisode(tokens=tokens, advantage=(-1.0) ** n) for n, (tokens, _) in enumerate(played)]
    metrics = grpo_step(trainer, episodes, GrpoSettings(learning_rate=1e-3))
    assert metrics["kl"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["grad_norm"] > 0


@pytest.fixture
def qwen(tmp_path: Path) -> Callable[..., PolicyModel]:
    folder = build_family(tmp_path / "qwen", "qwen2")
    return lambda **settings: _policy(folder, **settings)


def test_gradient_checkpointing_changes_memory_and_nothing_else(qwen: Callable[..., PolicyModel]) -> None:
    gradients = []
    for checkpointing in (False, True):
        policy = qwen(gradient_checkpointing=checkpointing)
        policy.fused = False
        saved = 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal saved
            saved += tensor.numel()
            return tensor

        tokens = policy.chat.conversation(DEMONSTRATION)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logprobs = policy.token_scores(make_batch([tokens]))[0]
        kept = saved
        logprobs.sum().backward()
        gradients.append((kept, {n: p.grad for n, p in policy.policy_parameters.items()}))
    (plain, expected), (checkpointed, given) = gradients
    assert checkpointed < 0.6 * plain
    for name, gradient in given.items():
        assert gradient is not None
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-7)


def test_bfloat16_trains_adapters_in_float32(qwen: Callable[..., PolicyModel]) -> None:
    policy = qwen(dtype="bfloat16")
    assert {p.dtype for p in policy.base.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in policy.policy_parameters.values()} == {torch.float32}
    trainer = Trainer(policy)
    assert max(_gap(policy, tokens) for tokens, _ in _play(Sampler(policy), 2)) < 0.1
    assert (
        sft_step(trainer, [tokenize_demonstration(trainer, DEMONSTRATION)], learning_rate=1e-3)["grad_norm"]
        > 0
    )


def test_a_sampler_short_of_memory_takes_fewer_rows_and_says_so(
    qwen: Callable[..., PolicyModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = qwen()
    said: list[str] = []
    expected = _play(Sampler(policy), 5)
    sampler = Sampler(policy, said.append)
    forward, most = sampler._forward_rows, 2

    def cramped(rows: slice, width: int) -> torch.Tensor:
        if rows.stop - rows.start > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(rows, width)

    monkeypatch.setattr(sampler, "_forward_rows", cramped)
    assert [[o.ids for o in outputs] for _, outputs in _play(sampler, 5)] == [
        [o.ids for o in outputs] for _, outputs in expected
    ]
    assert len(said) == 1 and "2 episodes in one pass" in said[0]
    most = 0
    with pytest.raises(ModelError, match="a single episode"):
        sampler.sample([item("new", opening())])


def test_models_that_are_not_there_are_one_line(tmp_path: Path) -> None:
    for name, reason in (
        (str(tmp_path / "nothing"), "no model folder"),
        ("./nothing", "no model folder"),
        ("krill-tests/no-such-model", "no model of that name could be fetched"),
    ):
        with pytest.raises(ModelError, match=reason) as caught:
            load_base(name, "float32", "cpu")
        assert "\n" not in str(caught.value)


def test_a_device_that_is_not_there_is_one_line() -> None:
    assert choose_device("cpu") == "cpu"
    with pytest.raises(ModelError, match="no device 'gpu'"):
        choose_device("gpu")
    for kind, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())):
        if not there:
            with pytest.raises(ModelError, match=f"no {kind} device"):
                choose_device(kind)


def test_a_model_that_makes_logits_in_its_own_way_is_refused(tmp_path: Path) -> None:
    folder = build_family(tmp_path, "cohere", logit_scale=0.5)
    load_base(str(folder), "float32", "cpu")
    import transformers

    with pytest.MonkeyPatch.context() as patch:
        forward = transformers.CohereForCausalLM.forward

        def twisted(self: Any, *arguments: Any, **named: Any) -> Any:
            output: Any = forward(self, *arguments, **named)
            output.logits = output.logits.flip(-1)
            return output

        patch.setattr(transformers.CohereForCausalLM, "forward", twisted)
        with pytest.raises(ModelError, match="in a way the trainer does not know"):
            load_base(str(folder), "float32", "cpu")


def test_attention_that_slides_bounds_the_context(tmp_path: Path) -> None:
    policy = _policy(build_family(tmp_path, "mistral", sliding_window=300), max_context=900)
    assert policy.context == 300


def test_other_models_get_the_full_prompt_and_small_steps(tmp_path: Path, tiny_model_dir: Path) -> None:
    chat = build_family(tmp_path, "qwen2")
    assert not is_krill_tiny(str(chat))
    assert is_krill_tiny(str(tiny_model_dir)) and is_krill_tiny("")
    model = load_config(overrides={"policy": {"kind": "local", "model": str(chat)}})
    assert (model.policy.prompt_style, model.policy.list_admissible) == ("full", True)
    assert model.rl.learning_rate < 1e-4 and model.rl.max_prompt_length == 6000
    asked = load_config(
        overrides={"policy": {"kind": "local", "model": "some/model", "prompt_style": "compact"}}
    )
    assert asked.policy.prompt_style == "compact"
    tiny = load_config(overrides={"policy": {"model": str(tiny_model_dir)}})
    assert tiny.policy.prompt_style == "compact" and tiny.rl.learning_rate == load_config().rl.learning_rate
