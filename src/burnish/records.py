"""The records that flow through burnish. Nothing here computes; torch is imported for annotations only.

Shapes, as suffixes of names everywhere in the package:

    T  tokens of a packed batch          S  scored tokens (those a loss looks at)
    B  sequences (one per completion)    G  groups (completions of one prompt), or members of one group
    R  rows being decoded                V  vocabulary                 H  hidden size
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A question with its reference answer. `id` is a hash of the messages: equal questions have equal ids."""

    id: str
    messages: tuple[Message, ...]
    answer: str
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A task rendered to the text, and the token ids, the model is asked with."""

    task: Task
    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """How tokens are drawn. Applied in this order: temperature, top_k, top_p, min_p.

    `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 switch the filter off. A completion ends
    with a token of `stop_token_ids`, with the token that completes one of the `stop` strings, or at `max_tokens`.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One prompt, sampled once per seed. The tokens depend on the seed alone, not on what else is in the batch."""

    token_ids: tuple[int, ...]
    sampling: SamplingSettings
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What a generator returns for one seed.

    `token_ids` hold every sampled token, the stopping one included, and are what is trained on. `text` is for
    people and rewards: without special tokens and cut before a stop string. `sampling_logprobs` are under the
    distribution that was drawn from (0 for greedy), `model_logprobs` under the model at temperature 1 (NaN where an
    engine does not tell).

    `versions` says which weights sampled it, as runs of (weight version, number of tokens), where they may change
    between two tokens; it is empty where they cannot.
    """

    token_ids: tuple[int, ...]
    text: str
    sampling_logprobs: tuple[float, ...]
    model_logprobs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]
    versions: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What the model said in one turn, the reward of the turn, and what the environment answered."""

    text: str
    reward: float
    answer: tuple[Message, ...] = ()


Ended = Literal["done", "length", "turns", "context"]
"""Why a conversation ended: the environment said so, a turn was cut off, the turns or the context were used up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A scored completion. `components` name the parts of a reward that returned several.

    Where an environment answered, `completion` holds the whole conversation after the prompt, `observed` the spans
    [start, end) of its tokens that the environment wrote (those are never scored), and `turns` what was said. The
    reward is the sum of the turns'.
    """

    completion: Completion
    reward: float
    components: Mapping[str, float] = field(default_factory=dict)
    observed: tuple[tuple[int, int], ...] = ()
    turns: tuple[Turn, ...] = ()
    ended: Ended = "done"

    @property
    def num_sampled(self) -> int:
        """Tokens that the model said."""
        return len(self.completion.token_ids) - sum(end - start for start, end in self.observed)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutGroup:
    """The rollouts of one prompt, sampled by weights of `weight_version`, or by newer ones where a completion has
    `versions`. `id` numbers the groups of a step.
    """

    id: int
    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    weight_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """What follows a prompt in a packed batch.

    `scored` are the positions in `token_ids` that a loss looks at, in order; None for all of them. `label` is +1 for
    what is preferred or wanted, -1 for what is not, 0 where that has no meaning. `score` is a grade, where the data
    has one, and `weight` multiplies the branch's loss.
    """

    token_ids: tuple[int, ...]
    scored: tuple[int, ...] | None = None
    label: float = 0.0
    score: float = 0.0
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A prompt with its branches: one to imitate, a preferred and a rejected one, or the completions of a group."""

    id: str
    prompt_ids: tuple[int, ...]
    branches: tuple[Branch, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and all branches."""
        return len(self.prompt_ids) + sum(len(branch.token_ids) for branch in self.branches)


@dataclass(frozen=True, slots=True)
class Segment:
    """One prompt followed by its branches, contiguous in T. A branch attends to the prompt and to itself."""

    prompt_length: int
    branch_lengths: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and all branches."""
        return self.prompt_length + sum(self.branch_lengths)


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalCounts:
    """Sizes of the *whole* optimizer step. Every micro-batch carries them, so a split changes no denominator."""

    scored_tokens: int
    sequences: int
    groups: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """Packed sequences without padding. Scored tokens stand in the order of their sequences.

    `predictor_S` is the position in T whose hidden state predicts the scored token `target_ids_S`; the last prompt
    token predicts the first token of every branch. `group_B` numbers the examples. A field that an algorithm does not
    need is None. `old_logprobs_S` are the learner's own before the first of several optimizer steps; None says that
    the current ones are the old ones. `teacher` numbers the model whose distributions are to be learnt.
    """

    token_ids_T: Tensor
    position_ids_T: Tensor
    segments: tuple[Segment, ...]
    predictor_S: Tensor
    target_ids_S: Tensor
    sequence_S: Tensor
    group_B: Tensor
    labels_B: Tensor
    scores_B: Tensor
    weights_S: Tensor
    counts: GlobalCounts
    sampler_logprobs_S: Tensor | None = None
    advantages_S: Tensor | None = None
    version_S: Tensor | None = None
    old_logprobs_S: Tensor | None = None
    reference_logprobs_S: Tensor | None = None
    old_values_S: Tensor | None = None
    returns_S: Tensor | None = None
    teacher: int | None = None

    def to(self, device: torch.device) -> TokenBatch:
        """The batch with its tensors on a device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: value.to(device) for name, value in values.items() if hasattr(value, "to")})


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What the model being trained says of the scored tokens of a batch; all carry the gradient.

    `logprobs_S` are the log-probabilities of the targets and `entropy_S` the entropies of their distributions.
    `values_S` are the outputs of a value head at the predictors, where the model has one; a model with nothing but a
    value head (a reward model, a critic) has zeros for the other two. `log_collision_S`, the log of the sum of squared
    probabilities, is there when it was asked for, and carries no gradient. `divergence_S` is that of the model's
    distributions from the teacher's, for a batch that names one.
    """

    logprobs_S: Tensor
    entropy_S: Tensor
    values_S: Tensor | None = None
    log_collision_S: Tensor | None = None
    divergence_S: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Metric:
    """A value with its reduction: `mean` divides the summed `value` by the summed `count` once, at the end.

    `value` may be a tensor on the device; it is read once a step.
    """

    value: Tensor | float
    reduction: Literal["mean", "sum", "max"]
    count: Tensor | float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput:
    """A loss summed over the scored tokens it was given, not divided by anything, and its metrics."""

    total: Tensor
    metrics: Mapping[str, Metric]
