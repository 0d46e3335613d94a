"""What the algorithms that learn from a dataset share: examples, their reference, batches in an endless order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from burnish.algorithms.hooks import Hooks
from burnish.algorithms.memory_plan import LargestStep
from burnish.config.schema import DataConfig, RunConfig
from burnish.data.chat import Chat
from burnish.data.example_file import Lazy
from burnish.data.examples import ExampleSplit, ToExample, load_examples
from burnish.data.order import EndlessOrder
from burnish.data.packing import pack, scored_positions
from burnish.distributed.roles import Roles
from burnish.losses.loss import Loss
from burnish.models.fetch import cache_folder
from burnish.models.load import ModelFacts, inspect_model
from burnish.monitoring.console import Waiting
from burnish.records import Branch, Example, Metric, TokenBatch
from burnish.reproducibility.record import model_record
from burnish.training.checkpoint import TrainState
from burnish.training.optimizer import learning_rate_at
from burnish.training.reference import ReferenceLogprobs, cached_reference, in_chunks


class LearningConfig(RunConfig):
    """The sections of an algorithm that learns from a dataset."""

    data: DataConfig


@dataclass(slots=True, kw_only=True)
class Learning:
    """What a run reads. `compute_reference` fills `visited`, the examples that the run trains on, in the order of the
    dataset, and `reference`: theirs, then that of the held-out ones.
    """

    config: LearningConfig
    model: ModelFacts
    examples: ExampleSplit
    visited: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    reference: ReferenceLogprobs | None = None

    def record(self) -> dict[str, Any]:
        """Fingerprints."""
        return self.examples.record()

    def summary(self) -> str:
        """What `--dry-run` says."""
        example = self.examples.train[0]
        prompt = str(self.model.tokenizer.decode(list(example.prompt_ids)))
        branches = "\n".join(f"{_name(branch)}{self._marked(branch)}" for branch in example.branches)
        steps, size = self.config.train.num_steps, self.config.data.batch_size
        epochs = steps * size / len(self.examples.train)
        return (
            f"{self.examples.summary()}, {steps} steps of {size} ({epochs:.2g} epochs), model {self.model.source}\n"
            f"the first example, what is learnt in brackets:\n{prompt}{branches}"
        )

    def largest_step(self) -> LargestStep:
        """The longest examples at once."""
        longest = np.argsort(-self.examples.num_tokens, kind="stable")[: self.config.data.batch_size]
        return LargestStep([self.examples.train[index] for index in longest])

    def compute_reference(
        self, roles: Roles, say: Callable[[str], None], *, also: Callable[[int], Example] | None = None
    ) -> None:
        """Score what the run will visit with the weights it starts from, unless that was kept from before.

        The places of `reference` are those of the visited examples, of the held-out ones, and of what `also` makes of
        the visited indices.
        """
        examples, num_used = self.examples.train, self.config.train.num_steps * self.config.data.batch_size
        order = EndlessOrder(range(len(examples)), seed=self.config.seed)
        self.visited = np.sort(order.next_indices(min(num_used, len(examples))))
        chunks = [*in_chunks(Lazy(examples.__getitem__, self.visited)), self.examples.held_out]
        if also is not None:
            chunks += in_chunks(Lazy(also, self.visited))
        origin = {
            "model": model_record(self.model.source, base=self.model.base, commit=self.model.commit),
            "compute_dtype": self.config.model.compute_dtype,
            "micro_batch_tokens": self.config.train.micro_batch_tokens,
            "layout": [self.config.cluster.learners, self.config.cluster.tensor_parallel],
        }
        folder = cache_folder() / "reference"
        self.reference = cached_reference(folder, chunks, origin, lambda batch: roles.score(batch).logprobs_S, say)

    @property
    def kept_reference(self) -> ReferenceLogprobs:
        """What `compute_reference` found."""
        if self.reference is None:
            raise ValueError("compute_reference was not called")
        return self.reference

    def batch(self, indices: Sequence[int]) -> TokenBatch:
        """Training examples, with the reference's log-probabilities where there is a reference."""
        batch = pack([self.examples.train[index] for index in indices])
        if self.reference is None:
            return batch
        return replace(batch, reference_logprobs_S=self.reference.of(self.places(indices)))

    def places(self, indices: Sequence[int]) -> NDArray[np.int64]:
        """Where the reference of training examples stands."""
        places = np.searchsorted(self.visited, indices)
        if not np.array_equal(self.visited.take(places, mode="clip"), indices):
            raise ValueError(f"not all of {list(indices)} were to be visited")
        return places

    def held_out_batch(self) -> TokenBatch:
        """Every held-out example, with the reference's log-probabilities where there is a reference."""
        batch = pack(self.examples.held_out)
        if self.reference is None:
            return batch
        places = len(self.visited) + np.arange(len(self.examples.held_out))
        return replace(batch, reference_logprobs_S=self.reference.of(places))

    def _marked(self, branch: Branch) -> str:
        """The branch as text, with the scored tokens in brackets."""
        scored = set(scored_positions(branch))
        text, was_scored = "", False
        for index, token in enumerate(branch.token_ids):
            if (index in scored) != was_scored:
                was_scored = not was_scored
                text += "[" if was_scored else "]"
            text += str(self.model.tokenizer.decode([token]))
        return text + ("]" if was_scored else "")


def check_examples(config: LearningConfig, to_example: ToExample) -> tuple[ModelFacts, ExampleSplit]:
    """Find the model, read and render the examples.

    Raises:
        UserError: one of them cannot be used.
    """
    model = inspect_model(config.model.path)
    chat = Chat(tokenizer=model.tokenizer, stop_token_ids=model.stop_token_ids)
    with Waiting(f"reading {config.data.source}") as wait:
        examples = load_examples(
            config.data,
            chat,
            to_example,
            context_length=model.context_length,
            folder=cache_folder() / "examples",
            say=wait.say,
            told=wait.told,
        )
    return model, examples


def batches(config: LearningConfig, inputs: Learning, hooks: Hooks, state: TrainState) -> Iterator[list[int]]:
    """The indices of each step's examples, from where `state` stands to the end of the run, or until it should stop."""
    order = EndlessOrder(range(len(inputs.examples.train)), seed=config.seed, position=state.data_position)
    hooks.before_steps()
    while state.step < config.train.num_steps and not hooks.should_stop:
        indices = order.next(config.data.batch_size)
        state.data_position = order.position  # before the step, which saves it
        yield indices


def learn(config: RunConfig, roles: Roles, state: TrainState, batch: TokenBatch, loss: Loss) -> list[dict[str, Metric]]:
    """One optimizer step on one batch."""
    parts = roles.forward_backward(batch, loss)
    parts.append(roles.optim_step(learning_rate_at(config.optimizer, state.step, config.train.num_steps)))
    state.step += 1
    state.weight_version += 1
    roles.publish_weights(state.weight_version)
    return parts


def seen(batch: TokenBatch) -> dict[str, Any]:
    """What a step of a dataset looks like."""
    return {"tokens": len(batch.token_ids_T), "scored_tokens": batch.counts.scored_tokens}


def _name(branch: Branch) -> str:
    return {1.0: "preferred: ", -1.0: "rejected: "}.get(branch.label, "")
