"""Supervised fine-tuning: make the assistant's turns of example conversations likelier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field

from burnish.algorithms.hooks import Hooks
from burnish.config.schema import NAME_PATTERN, DataConfig, RunConfig, Section
from burnish.data.chat import Chat
from burnish.data.examples import (
    ExampleSplit,
    answer_messages,
    load_examples,
    prompt_id,
    prompt_messages,
)
from burnish.data.order import EndlessOrder
from burnish.data.packing import pack
from burnish.data.rows import Row, read_messages, with_system_prompt
from burnish.distributed.roles import RoleNeeds, Roles
from burnish.errors import DataError
from burnish.evaluation.held_out import Item
from burnish.losses.imitation import NegativeLogLikelihood
from burnish.losses.loss import Loss, load_loss
from burnish.models.load import ModelFacts, inspect_model
from burnish.records import Example
from burnish.training.checkpoint import TrainState
from burnish.training.optimizer import learning_rate_at

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


class SFTConfig(RunConfig):
    """Everything a supervised run depends on."""

    algorithm: Literal["sft"] = "sft"
    """The algorithm."""
    name: str = Field("sft", max_length=64, pattern=NAME_PATTERN)
    """Beginning of the run folder's name."""
    data: DataConfig
    loss: SFTLossConfig = SFTLossConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class SFTInputs:
    """What a run reads."""

    model: ModelFacts
    examples: ExampleSplit
    loss: Loss

    def record(self) -> dict[str, Any]:
        """Fingerprints."""
        return self.examples.record()

    def summary(self) -> str:
        """What `--dry-run` says."""
        example = self.examples.train[0]
        counts = f"{self.examples.summary()}, model {self.model.source}"
        return f"{counts}\nthe first one, what is learnt in brackets:\n{self._marked(example)}"

    def evaluate(self, roles: Roles) -> list[Item]:
        """The mean log-likelihood of each held-out conversation's scored tokens."""
        batch = pack(self.examples.held_out)
        logprobs_S = roles.score(batch).logprobs_S
        sums_B = torch.zeros(len(batch.group_B)).index_add(0, batch.sequence_S, logprobs_S)
        means = (sums_B / torch.bincount(batch.sequence_S)).tolist()
        return [{"id": example.id, "score": mean} for example, mean in zip(self.examples.held_out, means, strict=True)]

    def _marked(self, example: Example) -> str:
        """The example as text, with the scored tokens in brackets."""
        text = str(self.model.tokenizer.decode(list(example.prompt_ids)))
        (branch,) = example.branches
        scored = set(branch.scored if branch.scored is not None else range(len(branch.token_ids)))
        was_scored = False
        for index, token in enumerate(branch.token_ids):
            if (index in scored) != was_scored:
                was_scored = not was_scored
                text += "[" if was_scored else "]"
            text += str(self.model.tokenizer.decode([token]))
        return text + ("]" if was_scored else "")


def prepare(config: SFTConfig) -> SFTInputs:
    """Check what the run reads. Raises a UserError."""
    loss: Loss = NegativeLogLikelihood(aggregation=config.loss.aggregation)
    if config.loss.own is not None:
        loss = load_loss(config.loss.own, "loss.own")
    model = inspect_model(config.model.path)
    chat = Chat(tokenizer=model.tokenizer, stop_token_ids=model.stop_token_ids)

    def example_of_row(chat: Chat, row: Row, place: str) -> Example:
        return to_example(chat, row, place, config)

    examples = load_examples(config.data, chat, example_of_row, context_length=model.context_length)
    return SFTInputs(model=model, examples=examples, loss=loss)


def to_example(chat: Chat, row: Row, place: str, config: SFTConfig) -> Example:
    """A row with `messages`, or with `prompt` and `completion`; both may bring `tools`."""
    if row.get("messages") is not None:
        messages = with_system_prompt(read_messages(row["messages"], place), config.data.system_prompt, place)
        asked = messages[: next((i for i, message in enumerate(messages) if message["role"] == "assistant"), None)]
        only_last = config.loss.turns == "last"
    elif row.get("completion") is not None:
        asked = prompt_messages(row, config.data.system_prompt, place)
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
    order = EndlessOrder(inputs.examples.train, seed=config.seed, position=state.data_position)
    hooks.before_steps()
    while state.step < config.train.num_steps and not hooks.should_stop:
        batch = pack(order.next(config.data.batch_size))
        parts = roles.forward_backward(batch, inputs.loss)
        parts.append(roles.optim_step(learning_rate_at(config.optimizer, state.step, config.train.num_steps)))
        state.step += 1
        state.weight_version += 1
        state.data_position = order.position
        roles.publish_weights(state.weight_version)
        hooks.after_step(state, parts, observed={"tokens": len(batch.token_ids_T)})
