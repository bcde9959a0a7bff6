"""TRL's own trainers, made cheaply and called piece by piece: the oracle of losses and advantages."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

Completion = tuple[Sequence[int], Sequence[int]]
"""Ids, and 1 where the policy said them."""

MAX_COMPLETION = 16


class TrlGrpo:
    """A real `GRPOTrainer` over a tiny model, one batch of `groups` x `group_size` completions a step."""

    def __init__(self, model: Path, output: Path, *, groups: int, group_size: int) -> None:
        from datasets import Dataset
        from trl.trainer.grpo_config import GRPOConfig
        from trl.trainer.grpo_trainer import GRPOTrainer

        self._batch: tuple[list[list[int]], list[Completion]] = ([], [])
        self._rewards: list[float | None] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.trainer: Any = GRPOTrainer(
                model=AutoModelForCausalLM.from_pretrained(model),
                reward_funcs=lambda **_: self._rewards,
                args=GRPOConfig(
                    output_dir=str(output),
                    per_device_train_batch_size=groups * group_size,
                    num_generations=group_size,
                    max_completion_length=MAX_COMPLETION,
                    report_to="none",
                    use_cpu=True,
                    bf16=False,
                ),
                train_dataset=Dataset.from_dict({"prompt": ["."] * groups}),
                processing_class=AutoTokenizer.from_pretrained(model),
            )
        self.trainer.rollout_func = self._roll_out
        self.trainer.current_gradient_accumulation_steps = 1
        self.trainer.model.train()

    def score(
        self,
        prompts: list[list[int]],
        completions: list[Completion],
        rewards: list[float],
        scale_rewards: str,
    ) -> dict[str, Any]:
        """What TRL makes of these completions: padded ids, masks, `advantages` `[B]`, the number of tokens."""
        self._batch, self._rewards = (prompts, completions), [*rewards]
        self.trainer.scale_rewards = scale_rewards
        self.trainer.beta = 0.0  # the log-probabilities of a reference are given, not computed
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.trainer._generate_and_score_completions([{"prompt": "."}] * len(prompts))

    def loss(
        self,
        inputs: dict[str, Any],
        logprobs: Tensor,
        *,
        loss_type: str,
        beta: float,
        clip_epsilon: float,
        epsilon_high: float | None,
        use_bias_correction_kl: bool = False,
    ) -> Tensor:
        """TRL's loss of `inputs` for `logprobs` `[B, completion]`, with gradient; gspo in its words."""
        trainer = self.trainer
        trainer.importance_sampling_level = "sequence" if loss_type == "gspo" else "token"
        trainer.loss_type = "grpo" if loss_type == "gspo" else loss_type
        trainer.beta = beta
        trainer.epsilon_low = clip_epsilon
        trainer.epsilon_high = clip_epsilon if epsilon_high is None else epsilon_high
        trainer.args.use_bias_correction_kl = use_bias_correction_kl
        trainer._get_per_token_logps_and_entropies = lambda *_, **__: (
            logprobs,
            logprobs.detach() * 0,
            None,
        )
        return trainer._compute_loss(trainer.model, inputs)

    def metric(self, name: str) -> float:
        """The newest value TRL noted."""
        return self.trainer._metrics["train"][name][-1]

    def _roll_out(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        ids, completions = self._batch
        return {
            "prompt_ids": ids,
            "completion_ids": [list(c) for c, _ in completions],
            "env_mask": [list(mask) for _, mask in completions],
            "logprobs": None,
        }
