"""The settings of an evaluation. Each field's description is its only documentation."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from burnish.config.schema import ModelConfig, Section, TaskConfig
from burnish.errors import ConfigError

_GENERATES_ONLY = ("reward", "environment", "right_at", "parser", "perturb")


class EvalTaskConfig(TaskConfig):
    """What the model is asked, and how an answer is judged."""

    kind: Literal["generate", "choices", "pairs"] = "generate"
    """generate: answers are sampled and scored by the reward or the environment. choices: a row's `choices` are
    compared by their likelihood after the prompt, and `answer` names the right one (its text, its number from 0, or its
    letter). pairs: a row's `chosen` must be likelier, or for a reward model higher, than its `rejected`.
    """
    split: Literal["all", "held_out"] = "all"
    """all: every question of the source. held_out: those that a run with the same task holds out."""
    num_items: int | None = Field(None, ge=1)
    """How many items are asked, from the first on; null is all."""
    id_field: str | None = None
    """Field of a row that names the item; null makes the name from the question."""
    cluster_field: str | None = None
    """Field of a row that says what items share (a passage, a template); they then count as dependent."""
    slice_fields: tuple[str, ...] = ()
    """Fields of a row by whose values the figures are split; a dot goes into a mapping, as in metadata.difficulty."""
    right_at: float | None = None
    """Reward from which an answer counts as right, with score 1 and otherwise 0; null takes the reward as the score."""
    parser: str | None = None
    """package.module:name of a function from an answer's text to the answer in it, or None, which is stored too."""
    normalise: Literal["none", "tokens", "bytes"] = "none"
    """What the log-probability of a choice, or of an answer in a pair, is divided by: nothing, its tokens or bytes."""
    perturb: str | None = None
    """How the last message of every question is changed: typos, upper_case, lower_case, white_space, or
    package.module:name of a function (text, seed) -> text. The items keep their names.
    """

    @model_validator(mode="after")
    def _refuse_what_has_no_effect(self) -> "EvalTaskConfig":
        if self.split == "all" and (self.held_out_source is not None or self.changes("num_held_out")):
            raise ConfigError("task.held_out_source and task.num_held_out would be ignored: they need split: held_out")
        if self.kind != "generate" and (given := [key for key in _GENERATES_ONLY if self.changes(key)]):
            raise ConfigError(f"task.{given[0]} would be ignored: it belongs to task.kind=generate")
        if self.kind == "generate" and self.changes("normalise"):
            raise ConfigError("task.normalise would be ignored: it belongs to task.kind=choices or pairs")
        if self.kind == "pairs" and self.split == "held_out":
            raise ConfigError("task.split=held_out is for questions: give the held-out pairs as a file of their own")
        if self.environment is not None and self.perturb is not None:
            raise ConfigError("task.perturb would be ignored: task.environment begins the conversation itself")
        if self.source.startswith("reasoning-gym:") and self.id_field is not None:
            raise ConfigError("task.id_field would be ignored: it belongs to rows, not to reasoning-gym")
        return self


class EvalSamplingConfig(Section):
    """How answers are drawn."""

    samples_per_item: int = Field(1, ge=1)
    """Answers to each question."""
    temperature: float = Field(0.0, ge=0)
    """0 is greedy: the likeliest token each time."""
    top_k: int = Field(0, ge=0)
    """Draw among so many of the likeliest tokens; 0 is among all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draw among the likeliest tokens that have this probability together."""
    min_p: float = Field(0.0, ge=0, lt=1)
    """Draw among tokens of at least this share of the likeliest one's probability."""
    max_tokens: int = Field(256, ge=1)
    """Longest answer, in tokens."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Strings that end an answer."""
    max_turns: int = Field(8, ge=1)
    """Turns of the model in a conversation with an environment."""
    max_rows: int = Field(64, ge=1)
    """Answers decoded at once. They are stored in batches of this size, of whole questions."""

    @model_validator(mode="after")
    def _refuse_what_has_no_effect(self) -> "EvalSamplingConfig":
        filters = [key for key in ("top_k", "top_p", "min_p") if self.changes(key)]
        if self.temperature == 0 and filters:
            raise ConfigError(
                f"sampling.{filters[0]} would be ignored: sampling.temperature=0 takes the likeliest token"
            )
        if self.temperature == 0 and self.samples_per_item > 1:
            raise ConfigError(
                f"sampling.samples_per_item={self.samples_per_item} at sampling.temperature=0 would give the same "
                "answer so many times: raise the temperature"
            )
        return self


class EvalConfig(Section):
    """One model on one task."""

    name: str | None = Field(None, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Beginning of the store's name; null takes the names of model and task."""
    seed: int = Field(0, ge=0)
    """Root of every random draw."""
    evals_folder: Path = Path("evals")
    """Where stores are made."""
    model: ModelConfig
    task: EvalTaskConfig
    sampling: EvalSamplingConfig = EvalSamplingConfig()

    @model_validator(mode="after")
    def _refuse_what_would_be_ignored(self) -> "EvalConfig":
        if self.model.lora is not None:
            raise ConfigError("model.lora would be ignored: an evaluation trains nothing")
        given = [key for key in type(self.sampling).model_fields if self.sampling.changes(key) and key != "max_rows"]
        if self.task.kind != "generate" and given:
            raise ConfigError(f"sampling.{given[0]} would be ignored: task.kind={self.task.kind} samples nothing")
        if self.task.environment is None and self.sampling.changes("max_turns"):
            raise ConfigError("sampling.max_turns would be ignored: only a task.environment has several turns")
        return self
