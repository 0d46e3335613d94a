"""Examples to one TokenBatch, and a TokenBatch to micro-batches that sum to the same step."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from burnish.records import Branch, Completion, Example, GlobalCounts, Rollout, RolloutGroup, Segment, TokenBatch


def pack(examples: Sequence[Example]) -> TokenBatch:
    """Pack without padding: each prompt once, its branches after it."""
    token_ids: list[int] = []
    position_ids: list[int] = []
    predictor: list[int] = []
    targets: list[int] = []
    for example in examples:
        last_prompt_position = len(token_ids) + len(example.prompt_ids) - 1
        token_ids.extend(example.prompt_ids)
        position_ids.extend(range(len(example.prompt_ids)))
        for branch in example.branches:
            start, length = len(token_ids), len(branch.token_ids)
            token_ids.extend(branch.token_ids)
            position_ids.extend(range(len(example.prompt_ids), len(example.prompt_ids) + length))
            predictors = [last_prompt_position, *range(start, start + length - 1)]
            scored = scored_positions(branch)
            predictor.extend(predictors[index] for index in scored)
            targets.extend(branch.token_ids[index] for index in scored)
    branches = [branch for example in examples for branch in example.branches]
    lengths_B = torch.tensor([len(scored_positions(branch)) for branch in branches])
    sizes_G = torch.tensor([len(example.branches) for example in examples])
    weights_B = torch.tensor([branch.weight for branch in branches])
    return TokenBatch(
        token_ids_T=torch.tensor(token_ids),
        position_ids_T=torch.tensor(position_ids),
        segments=tuple(
            Segment(len(example.prompt_ids), tuple(len(branch.token_ids) for branch in example.branches))
            for example in examples
        ),
        predictor_S=torch.tensor(predictor),
        target_ids_S=torch.tensor(targets),
        sequence_S=torch.arange(len(branches)).repeat_interleave(lengths_B),
        group_B=torch.arange(len(examples)).repeat_interleave(sizes_G),
        labels_B=torch.tensor([branch.label for branch in branches]),
        scores_B=torch.tensor([branch.score for branch in branches]),
        weights_S=weights_B.repeat_interleave(lengths_B),
        counts=count_examples(examples),
    )


def scored_positions(branch: Branch) -> Sequence[int]:
    """Positions in a branch that a loss looks at."""
    return range(len(branch.token_ids)) if branch.scored is None else branch.scored


def count_examples(examples: Sequence[Example]) -> GlobalCounts:
    """The denominators of a step made of these examples."""
    lengths = [len(scored_positions(branch)) for example in examples for branch in example.branches]
    return GlobalCounts(scored_tokens=sum(lengths), sequences=len(lengths), groups=len(examples))


def ends_only(batch: TokenBatch) -> TokenBatch:
    """The batch with one scored entry a sequence, whose predictor is the sequence's *last* token: a reward model reads
    its value there. Nothing is predicted, so the targets are zeros.
    """
    ends, start = [], 0
    for segment in batch.segments:
        start += segment.prompt_length
        for length in segment.branch_lengths:
            start += length
            ends.append(start - 1)
    lengths_B = torch.bincount(batch.sequence_S, minlength=len(ends))
    last_B = lengths_B.cumsum(0) - 1
    return replace(
        batch,
        predictor_S=torch.tensor(ends),
        target_ids_S=torch.zeros(len(ends), dtype=torch.long),
        sequence_S=torch.arange(len(ends)),
        weights_S=batch.weights_S[last_B],
        counts=replace(batch.counts, scored_tokens=batch.counts.sequences),
    )


def example_of(group: RolloutGroup) -> Example:
    """A group as a prompt with a branch for each rollout; every token that the sampler drew is scored."""
    branches = tuple(
        Branch(token_ids=rollout.completion.token_ids, scored=sampled_positions(rollout), score=rollout.reward)
        for rollout in group.rollouts
    )
    return Example(id=group.prompt.task.id, prompt_ids=group.prompt.token_ids, branches=branches)


def observed_positions(rollout: Rollout) -> list[int]:
    """Positions of the tokens that the environment wrote."""
    return [position for start, end in rollout.observed for position in range(start, end)]


def sampled_positions(rollout: Rollout) -> tuple[int, ...] | None:
    """Positions of the tokens that the sampler drew; None for all of them."""
    if not rollout.observed:
        return None
    observed = set(observed_positions(rollout))
    return tuple(index for index in range(len(rollout.completion.token_ids)) if index not in observed)


def token_versions(completion: Completion, weight_version: int) -> NDArray[np.int64]:
    """The weight version that sampled each token of a completion of a group of `weight_version`."""
    runs = completion.versions or ((weight_version, len(completion.token_ids)),)
    return np.repeat(*np.array(runs, dtype=np.int64).T)


def pack_groups(groups: Sequence[RolloutGroup], advantages_by_group: Sequence[Sequence[float]]) -> TokenBatch:
    """Pack rollouts with the sampler's log-probabilities and versions, and one advantage for each completion."""
    examples = [example_of(group) for group in groups]
    batch = pack(examples)
    logprobs: list[float] = []
    versions: list[NDArray[np.int64]] = []
    for group, example in zip(groups, examples, strict=True):
        for rollout, branch in zip(group.rollouts, example.branches, strict=True):
            scored = scored_positions(branch)
            logprobs.extend(rollout.completion.sampling_logprobs[index] for index in scored)
            versions.append(token_versions(rollout.completion, group.weight_version)[list(scored)])
    advantages_B = torch.tensor(np.concatenate(advantages_by_group), dtype=torch.float32)
    return replace(
        batch,
        sampler_logprobs_S=torch.tensor(logprobs, dtype=torch.float32),
        advantages_S=advantages_B[batch.sequence_S],
        version_S=torch.from_numpy(np.concatenate(versions)),
    )


def split_batch(batch: TokenBatch, max_tokens: int, *, keep_groups: bool = False) -> Iterator[TokenBatch]:
    """Micro-batches of at most `max_tokens` tokens T, in order, with the counts of the whole.

    A group is split between branches where it must be (its prompt then stands in both parts), unless `keep_groups`.
    What cannot be split further and is longer than `max_tokens` is a micro-batch of its own.
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
            if part is None and keep_groups:
                needed = segment.num_tokens
            may_cut = part is None or not keep_groups
            if pending and may_cut and pending_tokens + needed > max_tokens:
                yield _join(batch, pending, scored_start_B)
                pending, pending_tokens, part = [], 0, None
            if part is None:
                part = _Part(token_start, segment.prompt_length)
                pending.append(part)
                pending_tokens += segment.prompt_length
            part.branches.append((branch_start, branch_length, first_sequence + offset))
            pending_tokens += branch_length
            branch_start += branch_length
        token_start += segment.num_tokens
        first_sequence += len(segment.branch_lengths)
    if pending:
        yield _join(batch, pending, scored_start_B)


def take_groups(batch: TokenBatch, indices: Sequence[int]) -> TokenBatch:
    """Some groups of a batch, in the given order, with the counts of the whole."""
    lengths_B = torch.bincount(batch.sequence_S, minlength=len(batch.group_B)).tolist()
    scored_start_B = np.concatenate([[0], np.cumsum(lengths_B)]).tolist()
    parts, token_start, sequence = [], 0, 0
    for segment in batch.segments:
        part = _Part(token_start, segment.prompt_length)
        branch_start = token_start + segment.prompt_length
        for length in segment.branch_lengths:
            part.branches.append((branch_start, length, sequence))
            branch_start, sequence = branch_start + length, sequence + 1
        parts.append(part)
        token_start = branch_start
    return _join(batch, [parts[index] for index in indices], scored_start_B)


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
    index = {"T": torch.cat(tokens), "S": torch.cat(scored), "B": torch.tensor(sequences)}
    taken: dict[str, Any] = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Tensor):  # the name's suffix is the shape
            taken[field.name] = value[index[field.name.rpartition("_")[2]]]
    # A predictor moves with its token: look up where each old position went. A prompt that stands in several
    # micro-batches stands in each of them once, so the look-up is unambiguous.
    new_position_T = torch.full((len(batch.token_ids_T),), -1)
    new_position_T[index["T"]] = torch.arange(len(index["T"]))
    new_sequence_B = torch.full((len(batch.group_B),), -1)
    new_sequence_B[index["B"]] = torch.arange(len(index["B"]))
    taken["predictor_S"] = new_position_T[taken["predictor_S"]]
    taken["sequence_S"] = new_sequence_B[taken["sequence_S"]]
    _, taken["group_B"] = torch.unique_consecutive(taken["group_B"], return_inverse=True)
    segments = tuple(Segment(p.prompt_length, tuple(length for _, length, _ in p.branches)) for p in parts)
    return replace(batch, segments=segments, **taken)
