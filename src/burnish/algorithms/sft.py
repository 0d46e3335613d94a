"""Supervised fine-tuning: make the assistant's turns of example conversations likelier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field

from burnish.algorithms.hooks import Hooks
from burnish.algorithms.learning import Learning, LearningConfig, batches, check_examples, learn, seen
from burnish.config.schema import NAME_PATTERN, Section
from burnish.data.chat import Chat
from burnish.data.examples import answer_messages, prompt_id, prompt_messages
from burnish.data.rows import Row, read_messages, with_system_prompt
from burnish.distributed.roles import RoleNeeds, Roles
from burnish.errors import DataError
from burnish.evaluation.held_out import Item
from burnish.losses.imitation import NegativeLogLikelihood
from burnish.losses.loss import Loss, load_loss
from burnish.losses.preference import sequence_sums
from burnish.records import Example
from burnish.training.checkpoint import TrainState

MEASURE = "log-likelihood per token"
COLUMNS = ("loss", "held_out", "entropy", "grad_norm", "tokens_per_second")


class SFTLossConfig(Section):
    """The objective."""

    turns: Literal["all", "last"] = "all"
    """all: learn every turn of the assistant. last: only the last one of a conversation."""
    aggregation: Literal["token", "sequence"] = "token"
    """token: all tokens of the step weigh the same. sequence: all conversations do."""
    own: str | None = None
    """package.module:name of a loss to use instead."""


class SFTConfig(LearningConfig):
    """Everything a supervised run depends on."""

    algorithm: Literal["sft"] = "sft"
    """The algorithm."""
    name: str = Field("sft", max_length=64, pattern=NAME_PATTERN)
    """Beginning of the run folder's name."""
    loss: SFTLossConfig = SFTLossConfig()


@dataclass(slots=True, kw_only=True)
class SFTInputs(Learning):
    """What a run reads."""

    loss: Loss

    def start(self, roles: Roles, say: Callable[[str], None]) -> None:
        """See Inputs: nothing is needed of the starting weights."""

    def evaluate(self, roles: Roles) -> list[Item]:
        """The mean log-likelihood of each held-out conversation's scored tokens."""
        batch = self.held_out_batch()
        sums_B = sequence_sums(roles.score(batch).logprobs_S, batch)
        means = (sums_B / torch.bincount(batch.sequence_S)).tolist()
        return [{"id": example.id, "score": mean} for example, mean in zip(self.examples.held_out, means, strict=True)]


def prepare(config: SFTConfig) -> SFTInputs:
    """Check what the run reads. Raises a UserError."""
    loss: Loss = NegativeLogLikelihood(aggregation=config.loss.aggregation)
    if config.loss.own is not None:
        loss = load_loss(config.loss.own, "loss.own")
    reader = ConversationReader(system_prompt=config.data.system_prompt, only_last=config.loss.turns == "last")
    model, examples = check_examples(config, reader.example)
    return SFTInputs(config=config, model=model, examples=examples, loss=loss)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationReader:
    """Reads `messages`, or `prompt` and `completion`; both may bring `tools`."""

    system_prompt: str | None
    only_last: bool

    def example(self, chat: Chat, row: Row, place: str) -> Example:
        """A branch with the turns to learn.

        Raises:
            DataError: the row is something else.
        """
        only_last = self.only_last
        if row.get("messages") is not None:
            messages = with_system_prompt(read_messages(row["messages"], place), self.system_prompt, place)
            asked = messages[: next((i for i, message in enumerate(messages) if message["role"] == "assistant"), None)]
        elif row.get("completion") is not None:
            asked = prompt_messages(row, self.system_prompt, place)
            messages = [*asked, *answer_messages(row["completion"], "completion", place)]
            only_last = True
        else:
            raise DataError(f"{place}: needs 'messages', or 'prompt' and 'completion'; data.transform can make them")
        prompt_ids, branch = chat.conversation(messages, only_last=only_last, tools=row.get("tools"))
        return Example(id=prompt_id(asked), prompt_ids=tuple(prompt_ids), branches=(branch,))


def needs(config: SFTConfig) -> RoleNeeds:
    """What the run asks of the roles: a language model to train."""
    return RoleNeeds()


def train(config: SFTConfig, inputs: SFTInputs, roles: Roles, hooks: Hooks, state: TrainState) -> None:
    """The loop. `state` says where to begin and is kept up to date; `hooks` log, evaluate, save and may stop."""
    for indices in batches(config, inputs, hooks, state):
        batch = inputs.batch(indices)
        parts = learn(config, roles, state, batch, inputs.loss)
        hooks.after_step(state, parts, observed=seen(batch))
