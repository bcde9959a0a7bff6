"""Every setting of a run, with the paper's defaults (SkillRL, arXiv 2602.08234; DESIGN section 6).

All fields are optional; unknown ones are refused. Which may change while a run goes on is marked on each (`FixedFrom`). Field docstrings are what `krill doctor` and the settings
screen show.
"""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _scaling(value: object) -> object:
    """True and false are what the setting was before there was a choice, and what TRL still takes."""
    return {True: "group", False: "none"}[value] if isinstance(value, bool) else value


def _date(value: str) -> str:
    """A day as YYYY-MM-DD, or nothing."""
    return datetime.date.fromisoformat(value).isoformat() if value else value


PathSetting = Annotated[str, AfterValidator(os.path.expanduser)]
"""A file or folder; `~` at its start is the home folder."""


MOST_EPISODES = 100_000
"""Of one phase. What is far beyond any run is refused, not tried."""


Since = Literal["world", "collect", "sft", "rl"]


@dataclass(frozen=True, slots=True)
class FixedFrom:
    """Marks a field that makes a run what it is: once the run has begun `since`, it goes on with the same value only.

    `world`: what is played, from the first episode on, evaluations included. `collect`: who plays, and how, from the
    first episode that is learned from. `sft`, `rl`: what those phases do, and which games they get, once one of them
    has begun. Fields without a mark may change; a change is noted in the journal.
    """

    since: Since


WORLD, COLLECT, SFT, RL = (FixedFrom(since) for since in ("world", "collect", "sft", "rl"))


class Settings(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, strict=True
    )


class EnvConfig(Settings):
    name: Annotated[Literal["alfworld", "webshop"], WORLD] = "alfworld"
    """The world that is played."""
    backend: Annotated[Literal["builtin", "games", "textworld", "http"], WORLD] = "builtin"
    """`builtin`: procedural worlds; `games`: genuine ALFWorld game files; `textworld`: the same files on the
    genuine engine (extra `alfworld`), some hundred times slower; `http`: a live server."""
    data_dir: PathSetting = ""
    """Folder that holds `json_2.1.1`; empty: $ALFWORLD_DATA."""
    all_games: Annotated[bool, WORLD] = False
    """Also play the ALFWorld game files that the genuine environment skips: movable receptacles, sliced objects, games
    not marked as solvable. Rates are then not those of the official splits."""
    webshop_data: PathSetting = ""
    """Folder that holds WebShop's `items_shuffle.json` and `items_ins_v2.json`; empty: a procedural shop."""
    genuine: Annotated[bool, WORLD] = False
    """WebShop: the original's behaviour also where ours differs on purpose (goals split by number, goals that cannot
    be met are kept, steps after the end)."""
    observation_mode: Annotated[Literal["text", "text_rich"], WORLD] = "text"
    """How WebShop shows a page; `text_rich` marks its buttons."""
    train_split: Annotated[str, COLLECT] = "train"
    """Genuine games that are learned from."""
    url: str = ""
    """Live server; empty: http://localhost:3000 (ALFWorld) or :3001 (WebShop)."""
    protocol: Annotated[Literal["krill", "agentgym", "site"], WORLD] = "krill"
    """Of the live server: Krill's own, AgentGym's, or the pages of the unmodified WebShop site."""
    timeout: float | None = Field(default=None, gt=0, le=86400)
    """Seconds an answer of the live server may take; empty: 60, and 300 for AgentGym's households, which are slow to
    begin a game."""
    max_calls: int | None = Field(default=None, ge=1, le=4096)
    """Calls to the live server at once, over all episodes; empty: one for each episode, and a single one for
    AgentGym's households, whose server answers one after the other."""
    game_ranges: Annotated[dict[str, tuple[int, int]], WORLD] = {}
    """Live servers that number their games (agentgym, site): each split's first and last number, e.g.
    `{"test": [0, 499], "train": [1500, 12086]}`; empty: the protocol's own."""
    human_goals: Annotated[bool, WORLD] = False
    """WebShop's genuine product files: ask for what people asked for, as the paper's test does, instead of one goal
    for each combination of options."""
    world_size: Annotated[Literal["small", "full"], WORLD] = "full"
    """Size of procedural households; `full` is like the dataset."""
    max_steps: Annotated[int, COLLECT] = Field(default=50, ge=1, le=1000)
    """Steps after which an episode ends; WebShop: 15."""
    concurrency: int = Field(default=64, ge=1, le=4096)
    """Episodes played at once."""


class PolicyConfig(Settings):
    kind: Annotated[Literal["local", "openai", "expert", "random"], COLLECT] = "openai"
    """Who plays: a local model that can be trained, an endpoint, or a program."""
    model: Annotated[PathSetting, COLLECT] = ""
    """Local model: folder or Hugging Face name; empty: the embedded krill-tiny."""
    adapter: Annotated[PathSetting, COLLECT] = ""
    """Checkpoint folder, or LoRA adapter of PEFT's, that a run starts from (rank, alpha and layers are its own); empty:
    a fresh adapter."""
    temperature: Annotated[float, COLLECT] = Field(default=1.0, ge=0.0, le=5.0)
    """Of sampling in collection and RL; evaluation has its own."""
    eval_temperature: Annotated[float, COLLECT] = Field(default=0.0, ge=0.0, le=5.0)
    """Of sampling in validation and evaluation; 0 is greedy."""
    constrained: Annotated[bool, COLLECT] = False
    """Choose among admissible actions only; training then uses the same constrained distribution."""
    prompt_style: Annotated[Literal["full", "compact"], COLLECT] = "full"
    """`compact` is the one krill-tiny was trained on."""
    chat_date: Annotated[str, AfterValidator(_date), COLLECT] = ""
    """What a chat template that writes the date is told (YYYY-MM-DD); empty: the day the run began."""
    list_admissible: Annotated[bool, COLLECT] = True
    """Show the admissible actions in the prompt."""
    lora_rank: Annotated[int, COLLECT] = Field(default=16, ge=1, le=1024)
    lora_alpha: Annotated[int, COLLECT] = Field(default=32, ge=1, le=4096)
    dtype: Annotated[Literal["float32", "bfloat16"], COLLECT] = "float32"
    """Of the base model; adapters are always trained in float32."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: much less memory, about a third more time."""
    micro_batch_tokens: int = Field(default=8192, ge=256, le=2**24)
    """Padded tokens in one training pass; updates do not depend on it, memory does. Halved when memory runs out."""
    device: str = "auto"
    """`cpu`, `cuda`, `mps`; `auto` is CUDA where there is one, else Apple's GPU, else the CPU."""
    sampler: Literal["worker", "vllm"] = "worker"
    """Who samples: the model worker, or a vLLM server that gets every new adapter."""
    sampler_url: str = "http://localhost:8000"
    """The vLLM server; it must see the run's folder."""
    sampler_api_key: str = Field(default="", repr=False)
    """What the vLLM server was started with as `--api-key`; empty: $VLLM_API_KEY, else $OPENAI_API_KEY."""
    processes: int = Field(default=1, ge=1, le=1024)
    """Processes that share sampling and training (`accelerate launch`); one for each GPU."""
    accelerate_config: PathSetting = ""
    """`fsdp`: shard the weights over the processes, for a model that does not fit on one GPU (sampler vllm only). Or a
    file made by `accelerate config`, which may name several machines. Empty: this machine, the model in each process."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads of the model worker; 0: it chooses."""


class CollectConfig(Settings):
    episodes: Annotated[int, SFT] = Field(default=64, ge=1, le=MOST_EPISODES)
    """Episodes of phase 1."""


class TeacherConfig(Settings):
    kind: Annotated[Literal["openai", "builtin"], RL] = "openai"
    """`builtin` is a program that mines trajectories; it is not an LLM."""
    concurrency: int = Field(default=8, ge=1, le=1024)
    """Calls in flight."""
    timeout: float = Field(default=120.0, gt=0, le=86400)
    """Seconds a call may take, from connecting to the last byte."""
    max_retries: int = Field(default=6, ge=0, le=100)
    """Retries of a transient fault."""
    max_tokens: int | None = Field(default=None, ge=1, le=2**24)
    """Tokens of one answer, a thought's included; empty: the endpoint's own limit."""
    trajectory_tokens: int = Field(default=6000, ge=100, le=2**24)
    """Budget of one episode in a distillation prompt; the middle of a longer one is left out, and that is said."""
    evolve_tokens: Annotated[int, RL] = Field(default=24000, ge=100, le=2**24)
    """Budget of all failures in an evolution prompt: as many whole episodes as fit, worst category first."""


class SftConfig(Settings):
    enabled: bool = True
    """False: `train` goes without the cold start, from the base to RL."""
    learning_rate: Annotated[float, SFT] = Field(default=1e-4, gt=0, le=10)
    batch_size: Annotated[int, SFT] = Field(default=16, ge=1, le=2**16)
    """Demonstrations in one optimizer step."""
    epochs: Annotated[int, SFT] = Field(default=3, ge=1, le=10_000)
    num_examples: Annotated[int, SFT] = Field(default=7500, ge=1, le=MOST_EPISODES)
    """Demonstrations: episodes that were played and won."""
    checkpoint_interval: int = Field(default=50, ge=1, le=1_000_000)
    """Optimizer steps between checkpoints."""


class RlConfig(Settings):
    learning_rate: Annotated[float, RL] = Field(default=1e-6, gt=0, le=10)
    batch_size: Annotated[int, RL] = Field(default=64, ge=1, le=2**16)
    """Episodes of one step: batch_size / group_size groups."""
    group_size: Annotated[int, RL] = Field(default=8, ge=2, le=2**16)
    """Episodes of one task whose returns are compared (G of Eq. 9)."""
    kl_coeff: Annotated[float, RL] = Field(default=0.01, ge=0, le=1e6)
    """beta of Eq. 9."""
    clip_epsilon: Annotated[float, RL] = Field(default=0.2, gt=0, lt=1)
    epsilon_high: Annotated[float | None, RL] = Field(default=None, gt=0, le=1e6)
    """Upper clip; empty: clip_epsilon."""
    invalid_action_penalty: Annotated[float, RL] = Field(default=0.1, ge=0, le=1e6)
    """Subtracted from the return for each invalid action."""
    max_prompt_length: Annotated[int, COLLECT] = Field(default=6000, ge=1, le=2**24)
    max_response_length: Annotated[int, COLLECT] = Field(default=1024, ge=1, le=2**24)
    training_epochs: int = Field(default=150, ge=1, le=1_000_000)
    """GRPO steps."""
    loss_type: Annotated[Literal["grpo", "dr_grpo", "dapo", "gspo"], RL] = "grpo"
    importance_sampling_cap: Annotated[float, RL] = Field(default=2.0, gt=0, le=1e6)
    """With a vLLM sampler: tokens are weighed by pi_old / sampler, up to this."""
    scale_rewards: Annotated[Literal["group", "batch", "none"], BeforeValidator(_scaling), RL] = "group"
    """Divide advantages by the standard deviation of the group's returns, of the whole batch's, or not; true and
    false mean `group` and `none`."""
    num_iterations: Annotated[int, RL] = Field(default=1, ge=1, le=100)
    """Optimizer steps on the episodes of one batch (mu in the GRPO paper)."""
    mask_truncated_completions: Annotated[bool, RL] = False
    """Leave episodes that a step or context limit cut out of the loss; their returns still count in their group."""
    use_bias_correction_kl: Annotated[bool, RL] = False
    """Multiply the KL term by the importance ratio (TRL's default; the paper does not)."""
    checkpoint_interval: int = Field(default=5, ge=1, le=1_000_000)


class SkillRetrievalConfig(Settings):
    mode: Annotated[Literal["embedding", "template", "none", "trajectories", "irrelevant"], COLLECT] = (
        "embedding"
    )
    """`template`: all skills of the category; `embedding`: TopK over the threshold (the paper's S_ret); `none`: no
    skills in any prompt. Controls of `krill ablate`: `trajectories`: won episodes of phase 1 in place of skills;
    `irrelevant`: skills about other things than the task names."""
    top_k: Annotated[int, COLLECT] = Field(default=6, ge=0, le=100_000)
    similarity_threshold: Annotated[float, COLLECT] = Field(default=0.4, ge=-1, le=1)
    general_top_k: Annotated[int, COLLECT] = Field(default=12, ge=0, le=100_000)
    """General skills in a prompt, best first."""
    token_budget: Annotated[int, COLLECT] = Field(default=2000, ge=0, le=2**24)
    """Tokens all skills of a prompt may take."""
    embedder: Annotated[Literal["openai", "builtin"], COLLECT] = "openai"


class EvolutionConfig(Settings):
    enabled: Annotated[bool, RL] = True
    """False: validations go on, the bank stays as it was distilled."""
    validation_interval: Annotated[int, RL] = Field(default=5, ge=1, le=1_000_000)
    """RL steps between validations (V)."""
    max_new_skills: Annotated[int, RL] = Field(default=3, ge=0, le=100_000)
    """Per evolution cycle."""
    evolution_threshold: Annotated[float, RL] = Field(default=0.4, ge=0, le=1)
    """Categories below this success rate are read by the teacher."""
    max_analysis_deep: Annotated[int, RL] = Field(default=10, ge=0, le=100_000)
    """Failures shown when a category is far below the threshold."""
    max_analysis_shallow: Annotated[int, RL] = Field(default=5, ge=0, le=100_000)
    """Failures shown when it is near."""
    episodes: Annotated[int, RL] = Field(default=48, ge=1, le=MOST_EPISODES)
    """Episodes of one validation on the evolve split."""


class EvaluationConfig(Settings):
    episodes: int = Field(default=140, ge=1, le=MOST_EPISODES)
    """Games of an evaluation; before/after numbers come from it."""
    seeds: int = Field(default=1, ge=1, le=100)
    """Times each game is played, each with its own sampling seed."""
    split: str = ""
    """Empty: `test` of procedural worlds, `valid_seen` of genuine games."""

    @model_validator(mode="after")
    def _playable(self) -> Self:
        if self.episodes * self.seeds > 2 * MOST_EPISODES:
            raise ValueError(f"episodes times seeds should be at most {2 * MOST_EPISODES}")
        return self


class FaultsConfig(Settings):
    """What happens when the world or a model's endpoint breaks. An episode that broke is no result: it is counted
    beside the rate, and played again when the run goes on."""

    max_error_rate: float = Field(default=0.1, ge=0, le=1)
    """Share of a phase's episodes that may break by themselves; above it the phase fails, with the counts and why."""
    first_wait: float = Field(default=1.0, gt=0, le=3600)
    """Seconds before the first new try when nobody answers any more; each further one waits twice as long."""
    longest_wait: float = Field(default=60.0, gt=0, le=3600)
    """Seconds between two tries at most."""
    patience: float = Field(default=600.0, ge=0, le=7 * 86400)
    """Seconds without any answer, after which the phase fails; 0 fails at once. Nothing finished is lost."""
    first_patience: float = Field(default=60.0, ge=0, le=7 * 86400)
    """The same in a run where nobody has answered yet, as with a wrong address."""


class ModelConfig(Settings):
    policy_api_base: str = "http://localhost:8000/v1"
    policy_model_id: Annotated[str, COLLECT] = "Qwen/Qwen2.5-7B-Instruct"
    policy_api_key: str = Field(default="", repr=False)
    teacher_api_base: str = "https://api.openai.com/v1"
    teacher_model_id: Annotated[str, RL] = "o3"
    teacher_api_key: str = Field(default="", repr=False)
    embedding_api_base: str = "https://api.openai.com/v1"
    embedding_model_id: Annotated[str, COLLECT] = "text-embedding-3-small"
    embedding_api_key: str = Field(default="", repr=False)
    timeout: float | None = Field(default=None, gt=0, le=86400)
    """Seconds a call of the policy or the embeddings may take; empty: teacher.timeout."""
    max_retries: int | None = Field(default=None, ge=0, le=100)
    """Their retries of a transient fault; empty: teacher.max_retries."""
    first_wait: float = Field(default=0.5, gt=0, le=3600)
    """Seconds before the first retry of a call to any of these endpoints; each further one waits twice as long."""
    longest_wait: float = Field(default=120.0, gt=0, le=86400)
    """Seconds that any of these endpoints may ask to wait before the next try; asked for more, the call fails."""


class KrillConfig(Settings):
    """One run is a function of this, the code and nothing else."""

    preset: Literal["paper", "tiny"] = "paper"
    """Where the defaults came from."""
    seed: Annotated[int, WORLD] = Field(default=0, ge=0, le=2**63 - 1)
    env: EnvConfig = EnvConfig()
    policy: PolicyConfig = PolicyConfig()
    collect: CollectConfig = CollectConfig()
    teacher: TeacherConfig = TeacherConfig()
    sft: SftConfig = SftConfig()
    rl: RlConfig = RlConfig()
    skill_retrieval: SkillRetrievalConfig = SkillRetrievalConfig()
    evolution: EvolutionConfig = EvolutionConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    faults: FaultsConfig = FaultsConfig()
    model: ModelConfig = ModelConfig()
    withheld: tuple[str, ...] = ()
    """Written by Krill: addresses that were given with a password or a key, which a run does not store."""
