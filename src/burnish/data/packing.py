"""Groups of rollouts to one TokenBatch, and a TokenBatch to micro-batches that sum to the same step."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from burnish.records import GlobalCounts, RolloutGroup, Segment, TokenBatch


def pack_groups(groups: Sequence[RolloutGroup], advantages_by_group: Sequence[Sequence[float]]) -> TokenBatch:
    """Pack without padding: each prompt once, its completions as branches. Every completion token is scored."""
    token_ids: list[int] = []
    position_ids: list[int] = []
    predictor: list[int] = []
    targets: list[int] = []
    sampler_logprobs: list[float] = []
    lengths: list[int] = []
    segments: list[Segment] = []
    for group in groups:
        prompt_ids = group.prompt.token_ids
        last_prompt_position = len(token_ids) + len(prompt_ids) - 1
        token_ids.extend(prompt_ids)
        position_ids.extend(range(len(prompt_ids)))
        for rollout in group.rollouts:
            completion = rollout.completion
            start, length = len(token_ids), len(completion.token_ids)
            token_ids.extend(completion.token_ids)
            position_ids.extend(range(len(prompt_ids), len(prompt_ids) + length))
            predictor.extend([last_prompt_position, *range(start, start + length - 1)])
            targets.extend(completion.token_ids)
            sampler_logprobs.extend(completion.sampling_logprobs)
            lengths.append(length)
        segments.append(Segment(len(prompt_ids), tuple(len(r.completion.token_ids) for r in group.rollouts)))
    repeats = torch.tensor(lengths)
    sizes = torch.tensor([len(group.rollouts) for group in groups])
    versions_B = torch.tensor([group.weight_version for group in groups]).repeat_interleave(sizes)
    advantages_B = torch.tensor(np.concatenate(advantages_by_group), dtype=torch.float32)
    return TokenBatch(
        token_ids_T=torch.tensor(token_ids),
        position_ids_T=torch.tensor(position_ids),
        segments=tuple(segments),
        predictor_S=torch.tensor(predictor),
        target_ids_S=torch.tensor(targets),
        sequence_S=torch.arange(len(lengths)).repeat_interleave(repeats),
        group_B=torch.arange(len(groups)).repeat_interleave(sizes),
        sampler_logprobs_S=torch.tensor(sampler_logprobs, dtype=torch.float32),
        advantages_S=advantages_B.repeat_interleave(repeats),
        weights_S=torch.ones(len(targets)),
        version_S=versions_B.repeat_interleave(repeats),
        counts=count_groups(groups),
    )


def count_groups(groups: Sequence[RolloutGroup]) -> GlobalCounts:
    """The denominators of a step made of these groups."""
    lengths = [len(rollout.completion.token_ids) for group in groups for rollout in group.rollouts]
    return GlobalCounts(scored_tokens=sum(lengths), sequences=len(lengths), groups=len(groups))


def split_batch(batch: TokenBatch, max_tokens: int) -> Iterator[TokenBatch]:
    """Micro-batches of at most `max_tokens` tokens T, in order, with the counts of the whole.

    A group is split between branches where it must be (its prompt then stands in both parts); a single sequence that
    is longer than `max_tokens` is a micro-batch of its own.
    """
    lengths_B = torch.bincount(batch.sequence_S, minlength=len(batch.group_B)).tolist()
    scored_start_B = np.concatenate([[0], np.cumsum(lengths_B)]).tolist()
    pending: list[_Part] = []
    pending_tokens = 0
    token_start, first_sequence = 0, 0
    for segment in batch.segments:
        branch_start = token_start + segment.prompt_length
        part: _Part | None = None
        for offset, branch_length in enumerate(segment.branch_lengths):
            needed = branch_length + (segment.prompt_length if part is None else 0)
            if pending and pending_tokens + needed > max_tokens:
                yield _join(batch, pending, scored_start_B)
                pending, pending_tokens, part = [], 0, None
                needed = branch_length + segment.prompt_length
            if part is None:
                part = _Part(token_start, segment.prompt_length)
                pending.append(part)
            part.branches.append((branch_start, branch_length, first_sequence + offset))
            pending_tokens += needed
            branch_start += branch_length
        token_start += segment.num_tokens
        first_sequence += len(segment.branch_lengths)
    if pending:
        yield _join(batch, pending, scored_start_B)


class _Part:
    """A prompt and some of its branches, as (start in T, length, sequence)."""

    def __init__(self, prompt_start: int, prompt_length: int) -> None:
        self.prompt_start = prompt_start
        self.prompt_length = prompt_length
        self.branches: list[tuple[int, int, int]] = []


def _join(batch: TokenBatch, parts: Sequence[_Part], scored_start_B: Sequence[int]) -> TokenBatch:
    tokens: list[Tensor] = []
    scored: list[Tensor] = []
    sequences: list[int] = []
    for part in parts:
        tokens.append(torch.arange(part.prompt_start, part.prompt_start + part.prompt_length))
        for start, length, sequence in part.branches:
            tokens.append(torch.arange(start, start + length))
            scored.append(torch.arange(scored_start_B[sequence], scored_start_B[sequence + 1]))
            sequences.append(sequence)
    from_T, from_S, from_B = torch.cat(tokens), torch.cat(scored), torch.tensor(sequences)
    # A predictor moves with its token: look up where each old position went. A prompt that stands in several
    # micro-batches stands in each of them once, so the look-up is unambiguous.
    new_position_T = torch.full((len(batch.token_ids_T),), -1)
    new_position_T[from_T] = torch.arange(len(from_T))
    new_sequence_B = torch.full((len(batch.group_B),), -1)
    new_sequence_B[from_B] = torch.arange(len(from_B))
    _, group_B = torch.unique_consecutive(batch.group_B[from_B], return_inverse=True)
    return TokenBatch(
        token_ids_T=batch.token_ids_T[from_T],
        position_ids_T=batch.position_ids_T[from_T],
        segments=tuple(Segment(p.prompt_length, tuple(length for _, length, _ in p.branches)) for p in parts),
        predictor_S=new_position_T[batch.predictor_S[from_S]],
        target_ids_S=batch.target_ids_S[from_S],
        sequence_S=new_sequence_B[batch.sequence_S[from_S]],
        group_B=group_B,
        sampler_logprobs_S=batch.sampler_logprobs_S[from_S],
        advantages_S=batch.advantages_S[from_S],
        weights_S=batch.weights_S[from_S],
        version_S=batch.version_S[from_S],
        counts=batch.counts,
        old_logprobs_S=None if batch.old_logprobs_S is None else batch.old_logprobs_S[from_S],
        reference_logprobs_S=None if batch.reference_logprobs_S is None else batch.reference_logprobs_S[from_S],
    )
