"""The learner: scores a batch, accumulates the gradient of a loss, takes the optimizer's step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from burnish.data.packing import split_batch
from burnish.errors import ConfigError, DataError, MachineError
from burnish.losses.loss import Loss
from burnish.losses.policy_gradient import mismatch_metrics
from burnish.memory.measure import explained, is_out_of_memory
from burnish.models.attention import SegmentAttention
from burnish.models.divergence import Divergence, scored_divergence
from burnish.models.logprobs import log_collisions, scored_logprobs
from burnish.models.policy import Policy
from burnish.records import LossOutput, Metric, Scored, Segment, TokenBatch
from burnish.training.optimizer import MasterOptimizer

T = TypeVar("T")


class Learner:
    """Trains a policy. `temperature` divides the logits, so that it scores the distribution that was sampled.

    A batch that names one of the `teachers` is scored with the `divergence` from it too. Out of memory in a forward or
    backward pass, it goes on in smaller micro-batches if it `may_halve` them: one of several processes, which pass in
    step, may not, nor one whose optimizer steps in the backward pass, which needs a whole batch at once.
    """

    def __init__(
        self,
        policy: Policy,
        optimizer: MasterOptimizer,
        *,
        micro_batch_tokens: int,
        temperature: float = 1.0,
        teachers: Sequence[Policy] = (),
        divergence: Divergence | None = None,
        may_halve: bool = True,
    ) -> None:
        self.policy = policy
        self.teachers = teachers
        self.divergence = divergence
        self.optimizer = optimizer
        self.micro_batch_tokens = micro_batch_tokens
        self.temperature = temperature
        self.may_halve = may_halve and not optimizer.steps_in_backward
        self._accumulated_loss = torch.zeros(())
        self._accumulated: list[tuple[TokenBatch, Loss]] = []
        self._num_halvings = 0
        self._pending: Tensor | None = None

    def forward_backward(self, batch: TokenBatch, loss: Loss) -> list[dict[str, Metric]]:
        """Add the gradient of loss / global count to what is accumulated. Metrics of each micro-batch.

        Where the memory does not suffice, what is accumulated is dropped and made anew in micro-batches of half the
        size, which stays: the sum is the same. An optimizer that steps in the backward pass needs the rate for it: then
        the pass waits for `optim_step`.

        Raises:
            MachineError: the memory does not suffice for the smallest micro-batch.
            ConfigError: an optimizer that steps in the backward pass would need a second pass before its step.
        """
        self._accumulated.append((batch, loss))
        metrics = _unless_out_of_memory(lambda: self._accumulate(batch, loss))
        while metrics is None:
            self.optimizer.forget_gradients()
            self._accumulated_loss, self._pending = torch.zeros(()), None
            self._halve(batch)
            for each in self._accumulated:
                metrics = _unless_out_of_memory(partial(self._accumulate, *each))
                if metrics is None:
                    break
        return metrics

    def _halve(self, batch: TokenBatch) -> None:
        # what cannot be split is a micro-batch of its own, so below the shortest nothing more is won
        if not self.may_halve or self.micro_batch_tokens < min(map(_shortest_part, batch.segments)):
            raise MachineError(
                f"out of memory in a micro-batch of {self.micro_batch_tokens} tokens; `burnish memory` says what "
                "would make the recipe fit"
            )
        self.micro_batch_tokens //= 2
        self._num_halvings += 1

    def _accumulate(self, batch: TokenBatch, loss: Loss) -> list[dict[str, Metric]]:
        normalizer = getattr(batch.counts, loss.normalizer)
        metrics = []
        for part in split_batch(batch, self.micro_batch_tokens, keep_groups=loss.needs_whole_groups):
            if self._pending is not None:
                raise ConfigError(
                    "train.save_memory: step_in_backward needs one micro-batch a step: raise train.micro_batch_tokens "
                    f"to the {len(batch.token_ids_T)} tokens of this batch, or leave it out"
                )
            micro = part.to(self.policy.device)
            scored = self._score(micro)
            output = loss(scored, micro)
            _check(output)
            share = output.total / normalizer
            if self.optimizer.steps_in_backward:
                self._pending = share
            else:
                share.backward()
            self._accumulated_loss = self._accumulated_loss + share.detach()
            found = {}
            if self.policy.has_language_head:
                found["entropy"] = Metric(scored.entropy_S.detach().sum(), "mean", len(scored.entropy_S))
            if micro.sampler_logprobs_S is not None:
                # The sampler's weights are those before the first of several optimizer steps.
                same_weights_S = scored.logprobs_S if micro.old_logprobs_S is None else micro.old_logprobs_S
                found |= mismatch_metrics(same_weights_S, micro.sampler_logprobs_S)
            metrics.append({**found, **output.metrics})
        return metrics

    def forget(self) -> None:
        """Drop what is accumulated."""
        self.optimizer.forget_gradients()
        self._accumulated_loss, self._pending = torch.zeros(()), None
        self._accumulated.clear()
        self._num_halvings = 0

    def optim_step(self, learning_rate: float) -> dict[str, Metric]:
        """Apply the accumulated gradient. Metrics of this optimizer step, its loss among them.

        Raises:
            MachineError: the memory does not suffice. The weights may be changed in part.
        """
        pending, self._pending = self._pending, None
        with explained("the optimizer takes its step"):
            if pending is None:
                norm = self.optimizer.step(learning_rate)
            else:
                norm = self.optimizer.step_in_backward(pending, learning_rate)
        loss, self._accumulated_loss = self._accumulated_loss, torch.zeros(())
        self._accumulated.clear()
        halvings = {"out_of_memory": Metric(self._num_halvings, "max")} if self._num_halvings else {}
        return halvings | {
            "loss": Metric(loss, "mean"),
            "grad_norm": Metric(norm, "mean"),
            "learning_rate": Metric(learning_rate, "mean"),
        }

    @torch.no_grad()
    def score(self, batch: TokenBatch, *, with_collisions: bool = False) -> Scored:
        """What the current weights say of every scored token, without gradient. Out of memory, it halves the
        micro-batches as `forward_backward` does.

        Raises:
            MachineError: the memory does not suffice for the smallest micro-batch.
        """

        def scored() -> list[Scored]:
            micros = split_batch(batch, self.micro_batch_tokens)
            return [self._score(micro.to(self.policy.device), with_collisions=with_collisions) for micro in micros]

        parts = _unless_out_of_memory(scored)
        while parts is None:
            self._halve(batch)
            parts = _unless_out_of_memory(scored)
        return Scored(
            logprobs_S=torch.cat([part.logprobs_S for part in parts]).cpu(),
            entropy_S=torch.cat([part.entropy_S for part in parts]).cpu(),
            values_S=_joined([part.values_S for part in parts]),
            log_collision_S=_joined([part.log_collision_S for part in parts]),
            divergence_S=_joined([part.divergence_S for part in parts]),
        )

    def _score(self, batch: TokenBatch, *, with_collisions: bool = False) -> Scored:
        hidden_SH = predictor_states(self.policy, batch)
        scored = score(self.policy, batch, hidden_SH, self.temperature)
        if with_collisions:
            collisions_S = log_collisions(hidden_SH, self.policy.head, self.temperature)
            scored = replace(scored, log_collision_S=collisions_S)
        if batch.teacher is not None and self.divergence is not None:
            teacher = self.teachers[batch.teacher]
            with torch.no_grad():
                teacher_SH = predictor_states(teacher, batch)
            sides = (hidden_SH, self.policy.head), (teacher_SH, teacher.head)
            scored = replace(scored, divergence_S=scored_divergence(self.divergence, *sides, self.temperature))
        return scored


def _unless_out_of_memory(compute: Callable[[], T]) -> T | None:
    try:
        return compute()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None


def _shortest_part(segment: Segment) -> int:
    return segment.prompt_length + min(segment.branch_lengths, default=0)


def score(policy: Policy, batch: TokenBatch, hidden_SH: Tensor, temperature: float) -> Scored:
    """What a policy's heads say of a batch's scored tokens, from the hidden states of their predictors."""
    values_S = None if policy.value_head is None else policy.value_head(hidden_SH.float())[:, 0]
    if not policy.has_language_head:
        zeros_S = torch.zeros(len(hidden_SH), device=hidden_SH.device)
        return Scored(logprobs_S=zeros_S, entropy_S=zeros_S, values_S=values_S)
    logprobs_S, entropy_S = scored_logprobs(hidden_SH, policy.head, batch.target_ids_S, temperature)
    return Scored(logprobs_S=logprobs_S, entropy_S=entropy_S, values_S=values_S)


def predictor_states(policy: Policy, batch: TokenBatch) -> Tensor:
    """Hidden states [S, H] of the predictors."""
    hidden_TH = policy.hidden_states(batch.token_ids_T, batch.position_ids_T, SegmentAttention(batch.segments))
    return hidden_TH[batch.predictor_S]


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present).cpu() if present else None


def _check(output: LossOutput) -> None:
    """What a user's loss can get wrong and no later message would explain."""
    total = output.total
    if not isinstance(total, Tensor) or total.dim() != 0:
        what = f"shape {tuple(total.shape)}" if isinstance(total, Tensor) else type(total).__name__
        raise DataError(f"a loss must return one summed number as a tensor, got {what}: sum it over the batch")
    if not total.requires_grad:
        raise DataError("the loss does not depend on the model: compute it from scored.logprobs_S without .detach()")
