from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.data.packing import count_examples, example_of, pack_groups, split_batch
from burnish.records import GlobalCounts, Segment

shapes = st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=5), min_size=1, max_size=5)


def test_layout_by_hand(make_groups) -> None:
    groups = make_groups([[2, 1], [3]], prompt_lengths=[3, 2])
    batch = pack_groups(groups, [[0.5, -0.5], [1.0]])
    first, second = groups
    ids = [
        *first.prompt.token_ids,
        *first.rollouts[0].completion.token_ids,
        *first.rollouts[1].completion.token_ids,
        *second.prompt.token_ids,
        *second.rollouts[0].completion.token_ids,
    ]
    assert batch.token_ids_T.tolist() == ids
    assert batch.position_ids_T.tolist() == [0, 1, 2, 3, 4, 3, 0, 1, 2, 3, 4]
    assert batch.segments == (Segment(3, (2, 1)), Segment(2, (3,)))
    # the prompt's last token (position 2) predicts the first token of both branches
    assert batch.predictor_S.tolist() == [2, 3, 2, 7, 8, 9]
    assert batch.target_ids_S.tolist() == [ids[3], ids[4], ids[5], ids[8], ids[9], ids[10]]
    assert batch.sequence_S.tolist() == [0, 0, 1, 2, 2, 2]
    assert batch.group_B.tolist() == [0, 0, 1]
    assert batch.advantages_S.tolist() == [0.5, 0.5, -0.5, 1.0, 1.0, 1.0]
    assert batch.version_S.tolist() == [3] * 6
    assert batch.counts == GlobalCounts(scored_tokens=6, sequences=3, groups=2)


def test_each_scored_token_has_the_version_that_sampled_it(make_groups) -> None:
    (group,) = make_groups([[5, 2]])  # of version 3
    changed, plain = group.rollouts
    said = replace(changed.completion, versions=((3, 2), (5, 3)))
    changed = replace(
        changed, completion=said, observed=((1, 3),)
    )  # of the second run one token is the model's no more
    batch = pack_groups([replace(group, rollouts=(changed, plain))], [[0.0, 0.0]])
    assert batch.version_S.tolist() == [3, 5, 5, 3, 3]


@settings(deadline=None)
@given(shapes, st.integers(1, 60))
def test_split_keeps_every_scored_token_once_and_in_order(make_groups, lengths, max_tokens: int) -> None:
    groups = make_groups(lengths)
    batch = pack_groups(groups, [[float(i) for i in range(len(group.rollouts))] for group in groups])
    micros = list(split_batch(batch, max_tokens))
    for name in ("target_ids_S", "sampler_logprobs_S", "advantages_S", "weights_S", "version_S"):
        assert torch.equal(torch.cat([getattr(micro, name) for micro in micros]), getattr(batch, name))
    for micro in micros:
        assert micro.counts == batch.counts == count_examples([example_of(group) for group in groups])
        assert len(micro.token_ids_T) == sum(segment.num_tokens for segment in micro.segments)
        one_sequence = len(micro.group_B) == 1
        assert len(micro.token_ids_T) <= max_tokens or one_sequence
        assert micro.sequence_S.max() == len(micro.group_B) - 1


@settings(deadline=None)
@given(shapes, st.integers(1, 60))
def test_split_keeps_what_each_sequence_sees(make_groups, lengths, max_tokens: int) -> None:
    """Prompt, completion, positions and predictors of every sequence, read back out of the micro-batches."""
    groups = make_groups(lengths)
    batch = pack_groups(groups, [[0.0] * len(group.rollouts) for group in groups])
    found = []
    for micro in split_batch(batch, max_tokens):
        start, scored = 0, 0
        for segment in micro.segments:
            prompt = list(range(start, start + segment.prompt_length))
            branch_start = start + segment.prompt_length
            for length in segment.branch_lengths:
                branch = list(range(branch_start, branch_start + length))
                assert micro.position_ids_T[prompt + branch].tolist() == list(range(len(prompt) + length))
                predictors = micro.predictor_S[scored : scored + length].tolist()
                assert predictors == [prompt[-1], *branch[:-1]]
                assert micro.target_ids_S[scored : scored + length].tolist() == micro.token_ids_T[branch].tolist()
                found.append((micro.token_ids_T[prompt].tolist(), micro.token_ids_T[branch].tolist()))
                branch_start, scored = branch_start + length, scored + length
            start = branch_start
    expected = [
        (list(group.prompt.token_ids), list(rollout.completion.token_ids))
        for group in groups
        for rollout in group.rollouts
    ]
    assert found == expected
