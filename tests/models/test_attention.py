import pytest
import torch
from torch import Tensor

from burnish.models.attention import ScoreRule, SegmentAttention
from burnish.records import Segment


def naive(query: Tensor, key: Tensor, value: Tensor, rule: ScoreRule) -> Tensor:
    scores = query @ key.transpose(-1, -2) * rule.scaling
    if rule.softcap is not None:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    distance = torch.arange(scores.shape[-1])[:, None] - torch.arange(scores.shape[-1])
    hidden = (distance < 0) | (distance >= (rule.window or 1000))
    return scores.masked_fill(hidden, float("-inf")).softmax(-1) @ value


RULES = [ScoreRule(0.3), ScoreRule(0.3, window=4), ScoreRule(0.3, softcap=0.2), ScoreRule(0.3, window=2, softcap=0.2)]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize(
    "segments",
    [
        (Segment(3, (2, 4)), Segment(2, ()), Segment(1, (3,))),
        (Segment(5, (4, 4, 4)), Segment(2, (1, 1))),
        (Segment(1, (7, 1, 3, 1)),),
        (Segment(9, (1, 8)), Segment(40, (33, 2, 30))),
    ],
    ids=str,
)
def test_a_branch_sees_its_prompt_and_itself(segments: tuple[Segment, ...], rule: ScoreRule) -> None:
    generator = torch.Generator().manual_seed(0)
    total = sum(segment.num_tokens for segment in segments)
    query = torch.randn(1, 4, total, 8, generator=generator)
    key, value = torch.randn(2, 1, 2, total, 8, generator=generator)
    seen: list[int] = []
    plan = SegmentAttention(segments, on_key_value=lambda layer, k, v: seen.append(layer))
    output = plan.attend(5, query, key, value, rule)
    assert output.shape == (1, total, 4, 8)
    assert seen == [5]

    start = 0
    for segment in segments:
        prompt = list(range(start, start + segment.prompt_length))
        branches, at = [], start + segment.prompt_length
        for length in segment.branch_lengths:
            branches.append(list(range(at, at + length)))
            at += length
        for branch in branches or [[]]:
            visible = prompt + branch
            keys, values = (tensor[:, :, visible].repeat_interleave(2, 1) for tensor in (key, value))
            expected = naive(query[:, :, visible], keys, values, rule)
            assert torch.allclose(output[:, visible], expected.transpose(1, 2), atol=1e-6)
        start = at
