"""The sections that recipes of several algorithms share. Each field's description is its only documentation."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from burnish.errors import ConfigError

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

_NUMBERS = (int, float, int | None, float | None)


class Strict(BaseModel):
    """No unknown key, no later change, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Section(Strict):
    """A part of the configuration; no True where a number is meant."""

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_truth_as_number(cls, value: Any, info: Any) -> Any:
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation in _NUMBERS:
            raise ValueError(f"needs a number, not {value}")
        return value

    def changes(self, key: str) -> bool:
        """Whether a setting differs from its default. Where it has no effect, only then would it be missed."""
        return bool(getattr(self, key) != type(self).model_fields[key].default)


class LoRAConfig(Section):
    """Low-rank adapters instead of full fine-tuning."""

    rank: int = Field(16, ge=1)
    """Rank of the adapters."""
    alpha: int = Field(32, ge=1)
    """Scale: the adapter's output is multiplied by alpha / rank."""
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Names of the linear layers that get an adapter."""
    dora: bool = False
    """Learn the length of each weight's row beside its direction (DoRA, Liu et al. 2024)."""
    base_bits: Literal[16, 8, 4] = 16
    """Bits of a weight under the adapters: 16 is model.compute_dtype as it is; 8 and 4 are whole numbers and scales."""

    @field_validator("base_bits", mode="before")
    @classmethod
    def _read_number(cls, value: Any) -> Any:
        return int(value) if isinstance(value, str) and value.isdigit() else value  # a flag is text


class ModelConfig(Section):
    """The model to improve."""

    path: str = Field(min_length=1)
    """A Hugging Face folder, a hub id, or a name that `burnish model get` knows."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the forward and backward pass; auto is bfloat16 where the device has instructions for it, else float32.
    Master weights, optimizer and reductions are always float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model is; auto is the GPU where torch finds one."""
    num_threads: int = Field(2, ge=1)
    """CPU threads. A run is repeated bit by bit only with the same number, so it is a setting, not a guess."""
    lora: LoRAConfig | None = None
    """Train adapters of this shape; null trains every weight."""


class TaskConfig(Section):
    """What the model is asked, and how an answer is judged."""

    source: str = Field(min_length=1)
    """A JSONL file with a prompt (or messages) and an answer per row, reasoning-gym:<dataset>, or package.module:name
    of a function that returns such rows."""
    transform: str | None = None
    """package.module:name of a function from a row (a dict) to rows of that shape: one, a list, or None."""
    options: dict[str, Any] = {}
    """Arguments of the reasoning-gym dataset; size (2000) is how many are drawn before repeated ones are removed."""
    prompt_field: str = "prompt"
    """Field of a JSONL row that holds the question."""
    answer_field: str = "answer"
    """Field of a JSONL row that holds the reference answer."""
    system_prompt: str | None = None
    """A system message put before every question."""
    reward: str | dict[str, float] = "burnish.rewards.answers:last_number"
    """package.module:name of a function (completion, task) -> number(s), several with weights, or model:<folder>."""
    environment: str | None = None
    """package.module:name of a class that answers the model over several turns and scores it; null asks once."""
    reward_timeout_seconds: float = Field(10.0, gt=0)
    """A reward, or a turn of the environment, that takes longer fails for that completion."""
    held_out_source: str | None = None
    """A source for the held-out questions; null takes them from `source`, split by question."""
    num_held_out: int = Field(100, ge=1)
    """How many questions are held out and evaluated."""

    @model_validator(mode="after")
    def _refuse_what_would_be_ignored(self) -> "TaskConfig":
        if self.environment is not None and self.changes("reward"):
            raise ConfigError("task.reward would be ignored: task.environment scores by itself")
        generated = any((source or "").startswith("reasoning-gym:") for source in (self.source, self.held_out_source))
        if not generated and self.options:
            raise ConfigError(
                f"task.options would be ignored: it belongs to reasoning-gym sources, not to {self.source}"
            )
        for key in ("transform", "prompt_field", "answer_field"):
            only_generated = self.source.startswith("reasoning-gym:") and self.held_out_source is None
            if only_generated and self.changes(key):
                raise ConfigError(f"task.{key} would be ignored: it belongs to JSONL sources, not to {self.source}")
        return self


class RolloutConfig(Section):
    """What is sampled in one step."""

    num_prompts: int = Field(8, ge=1)
    """Prompts per step."""
    group_size: int = Field(8, ge=2)
    """Completions per prompt."""
    max_tokens: int = Field(256, ge=1)
    """Longest completion, in tokens."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature. The learner divides its logits by it too: both look at the same policy."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Strings that end a completion."""
    lag: int = Field(0, ge=0)
    """Steps that sampling runs ahead of learning: a step learns from samples of weights that are so many steps old."""
    update_weights: Literal["between", "during"] = "between"
    """When generators take over newer weights: between two steps' samples, which repeats bit by bit, or with
    cluster.kind=ray and a lag also during them, between two tokens: fresher samples, which no run repeats."""
    max_rows: int = Field(128, ge=1)
    """Completions decoded at once; the rest wait for a free row."""
    curriculum: Literal["uniform", "middle"] = "uniform"
    """uniform: each prompt once an epoch. middle: more often those that the model sometimes gets right."""
    max_turns: int = Field(8, ge=1)
    """Turns of the model in a conversation with an environment."""
    max_refills: int = Field(0, ge=0)
    """Times a step may ask further prompts in the place of those whose completions all have the same reward."""
    overlong_buffer: int = Field(0, ge=0)
    """Completions that end within so many tokens of max_tokens lose up to 1 of their reward; 0 is no penalty."""

    @model_validator(mode="after")
    def _refuse_what_cannot_be(self) -> "RolloutConfig":
        if self.max_rows < self.group_size:
            raise ConfigError(
                f"rollout.max_rows={self.max_rows} is less than rollout.group_size={self.group_size}: "
                "a group is decoded together"
            )
        if self.update_weights == "during" and not self.lag:
            raise ConfigError(
                "rollout.update_weights=during would be ignored with rollout.lag=0: nothing is learnt while a step is "
                "sampled; set rollout.lag to 1 or more, or leave it out"
            )
        if self.overlong_buffer >= self.max_tokens:
            raise ConfigError(
                f"rollout.overlong_buffer={self.overlong_buffer} must be less than rollout.max_tokens={self.max_tokens}"
            )
        return self


_Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Section):
    """The optimizer and its schedule."""

    kind: Literal["adamw", "adamw_8bit", "adafactor", "muon"] = "adamw"
    """adamw: two moments a weight (Loshchilov and Hutter 2019). adamw_8bit: the same in 8 bits (Dettmers et al. 2022),
    with burnish[quantized]. adafactor: one moment a row and a column (Shazeer and Stern 2018); its rate is relative to
    the size of the weights. muon: the layers' matrices move by an orthogonalised moment (Jordan et al. 2024), and all
    else by adamw.
    """
    learning_rate: float = Field(1e-6, gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(0, ge=0)
    """Optimizer steps over which the rate rises linearly from 0."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """How the rate falls after the warm-up: towards 0, which it would reach one step after the last."""
    betas: tuple[_Beta, _Beta] = (0.9, 0.95)
    """Decay of AdamW's first and second moment."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay, on matrices only."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """The gradient is scaled down to this norm; null leaves it as it is."""

    @model_validator(mode="after")
    def _refuse_what_would_be_ignored(self) -> "OptimizerConfig":
        if self.kind == "adafactor" and self.changes("betas"):
            raise ConfigError("optimizer.betas would be ignored: they are AdamW's, and optimizer.kind=adafactor")
        return self


class DataConfig(Section):
    """Rows of examples to imitate or to compare."""

    source: str = Field(min_length=1)
    """A JSONL file, or a JSON file that holds a list of rows."""
    transform: str | None = None
    """package.module:name of a function from a row (a dict) to rows in a known format: one, a list, or None."""
    system_prompt: str | None = None
    """A system message put before every conversation."""
    max_tokens: int | None = Field(None, ge=1)
    """Longer examples are left out, and counted; null allows the model's context."""
    batch_size: int = Field(8, ge=1)
    """Examples per step."""
    held_out_source: str | None = None
    """A file for the held-out examples; null takes them from `source`, split by prompt."""
    num_held_out: int = Field(100, ge=1)
    """How many examples are held out and evaluated."""


class TrainConfig(Section):
    """How long, and how the step is cut."""

    num_steps: int = Field(100, ge=1)
    """Steps: each takes one batch, or samples, scores and learns."""
    micro_batch_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = 2048
    """Tokens in one forward and backward pass: memory against speed, no effect on the result. auto: as many as fit."""
    recompute: Annotated[int, Field(ge=0)] | Literal["auto"] = 0
    """Every k-th layer forgets its activations and computes them again: 1 is all, 0 none, auto as few as must."""
    save_before_deadline: float | None = Field(None, gt=0)
    """Seconds within which the run has saved and stopped, for a job whose time is limited; null is no limit. It stops
    when another step, what is sampled ahead, an evaluation and a save might not end in time, by the longest so far; a
    first save is taken to write 100 MB a second."""
    save_memory: tuple[Literal["return_memory", "step_in_backward", "offload_optimizer", "offload_reference"], ...] = ()
    """return_memory: on a CPU, what is freed goes back to the system at once, for two fifths more time a step.
    step_in_backward: each weight is updated as soon as its gradient is known, and the gradient freed; it needs one
    micro-batch a step, and optimizer.max_grad_norm null. offload_optimizer: float32 weights, moments and summed
    gradients live on the CPU. offload_reference: the weights that the run started from live on the CPU.
    """


class RolloutTrainConfig(TrainConfig):
    """How long, and how the step is cut."""

    minibatches_per_step: int = Field(1, ge=1)
    """Optimizer steps per rollout, each on its own share of the groups."""


class EvaluationConfig(Section):
    """The held-out figure, before, during and after training."""

    every_steps: int = Field(20, ge=1)
    """Steps between evaluations; step 0 and the last are always evaluated."""


class TaskEvaluationConfig(EvaluationConfig):
    """Greedy accuracy on the held-out questions, before, during and after training."""

    right_at: float = 1.0
    """Reward from which an answer counts as right."""


class CheckpointConfig(Section):
    """What is kept on disk."""

    every_steps: int = Field(20, ge=1)
    """Steps between checkpoints; the last step always has one."""
    keep_last: int = Field(1, ge=1)
    """Checkpoints kept."""
    max_rollout_megabytes: float = Field(200.0, gt=0)
    """Stored rollouts beyond this size are removed, oldest first."""


class ClusterConfig(Section):
    """Where it runs. It changes the time that a run takes, not what it learns."""

    kind: Literal["local", "ray"] = "local"
    """local: one process. ray: learners and generators are actors of a Ray cluster."""
    address: str | None = None
    """Address of a running Ray cluster, auto for the one of this machine; null starts Ray here, for this run alone."""
    learners: int = Field(1, ge=1)
    """Processes that share the weights, the optimizer and the batch."""
    tensor_parallel: int = Field(1, ge=1)
    """Learners, of one node, that share one matrix product; the others share the batch."""
    replicas: int = Field(1, ge=1)
    """Copies of the spread weights: 1 spreads them over all learners. Where every node has the learners of one copy,
    weights are gathered within a node, and only gradients are summed between nodes."""
    generators: int = Field(1, ge=1)
    """Processes that sample."""
    engine: Literal["native", "vllm"] = "native"
    """What the generators sample with: burnish's generator, or vLLM, which needs an environment of its own."""
    vllm_python: str | None = None
    """The interpreter of vLLM's environment, on every node; null is the one that burnish runs with."""
    timeout_seconds: float = Field(1800.0, gt=0)
    """Longest wait for an answer of a learner or generator."""
    start_seconds: float = Field(300.0, gt=0)
    """Longest wait until all of them are there and have loaded their weights."""
    max_restarts: int = Field(3, ge=0)
    """How often what was lost is started anew, in a run, before the run fails."""

    @model_validator(mode="after")
    def _refuse_what_would_be_ignored(self) -> "ClusterConfig":
        if self.kind == "local" and (given := [key for key in type(self).model_fields if self.changes(key)]):
            raise ConfigError(f"cluster.{given[0]} would be ignored: it belongs to cluster.kind=ray")
        if self.engine != "vllm" and self.changes("vllm_python"):
            raise ConfigError("cluster.vllm_python would be ignored: it belongs to cluster.engine=vllm")
        if self.learners % self.tensor_parallel:
            raise ConfigError(
                f"cluster.tensor_parallel={self.tensor_parallel} does not divide cluster.learners={self.learners}"
            )
        num_shares = self.learners // self.tensor_parallel
        if num_shares % self.replicas:
            raise ConfigError(
                f"cluster.replicas={self.replicas} does not divide the {num_shares} learners that share the batch "
                "(cluster.learners / cluster.tensor_parallel)"
            )
        return self


Action = Literal["note", "notify", "checkpoint", "pause", "stop", "roll_back"]
_BY_THE_CLOCK = ("slow", "waiting")


class GuardsConfig(Section):
    """What is done when a run is not well; docs/guides/monitoring.md says what is looked at.

    note: an event and a line. notify: that, and a message to the webhook. checkpoint: that, and a save. pause: that,
    and wait until a file `go-on` is put into the run's folder. stop: save, and end as Ctrl-C does. roll_back: back to
    the last checkpoint before it began, with a lower learning rate.
    """

    info: Action = "note"
    """What is done for conditions of this severity."""
    warning: Action = "notify"
    """What is done for conditions of this severity."""
    critical: Action = "checkpoint"
    """What is done for conditions of this severity. A gradient that is no number ends the run, unless it rolls back."""
    actions: dict[str, Action] = {}
    """{"kl_blow_up": "roll_back", ...}: what is done for conditions by name."""
    off: tuple[str, ...] = ()
    """Conditions that are not looked at."""
    warmup_steps: int = Field(10, ge=2)
    """Steps that are the baseline; a condition that needs one is looked at after them."""
    rollback_factor: float = Field(0.5, gt=0, lt=1)
    """A rolled-back run goes on with its learning rate times this, and again times this if it is rolled back again."""
    max_rollbacks: int = Field(2, ge=1)
    """After so many the run stops instead."""
    pause_seconds: float = Field(3600.0, gt=0)
    """Longest pause; then the run stops."""
    webhook_file: Path | None = None
    """A file that holds a URL alone: messages are posted there as JSON. Null posts none."""

    def action_for(self, name: str, severity: Literal["info", "warning", "critical"]) -> Action:
        """What is done for a condition."""
        by_severity = {"info": self.info, "warning": self.warning, "critical": self.critical}
        return self.actions.get(name, by_severity[severity])

    @model_validator(mode="after")
    def _refuse_what_is_not_repeatable(self) -> "GuardsConfig":
        if self.actions.get("silent", "note") not in ("note", "notify"):
            raise ConfigError("guards.actions: while silent no step ends, so nothing but note and notify can be done")
        for name in _BY_THE_CLOCK:
            if name not in self.off and self.action_for(name, "warning") == "roll_back":
                raise ConfigError(
                    f"guards.actions: {name} goes by the clock, and a run must be the same on any: no roll_back"
                )
        return self


class MetricsConfig(Section):
    """What the run tells Prometheus."""

    port: int | None = Field(None, ge=1, le=65535)
    """Port of /metrics; null is off."""
    host: str = "127.0.0.1"
    """Address to listen on: whoever reaches it may read."""
    linger_seconds: float = Field(20.0, ge=0)
    """A finished run waits until its last numbers have been read, at most so long: more than Prometheus' interval."""


class RunConfig(Section):
    """What every run depends on; an algorithm's file adds its own sections."""

    name: str = Field(max_length=64, pattern=NAME_PATTERN)
    """Beginning of the run folder's name."""
    seed: int = Field(0, ge=0)
    """Root of every random draw."""
    runs_folder: Path = Path("runs")
    """Where run folders are made."""
    model: ModelConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    cluster: ClusterConfig = ClusterConfig()
    guards: GuardsConfig = GuardsConfig()
    metrics: MetricsConfig = MetricsConfig()

    @model_validator(mode="after")
    def _refuse_to_clip_what_is_gone(self) -> "RunConfig":
        if "step_in_backward" in self.train.save_memory and self.optimizer.max_grad_norm is not None:
            raise ConfigError(
                f"optimizer.max_grad_norm={self.optimizer.max_grad_norm} needs the whole gradient, which "
                "train.save_memory: step_in_backward never has: set it to null"
            )
        return self
