import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from burnish.records import SamplingSettings
from burnish.reproducibility.seeds import uniforms
from burnish.rollout.generators.sampling import Noise, draw

LOGITS = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()


def seeded(n: int, first: int = 0) -> Noise:
    seeds_R = np.arange(first, first + n, dtype=np.uint64)
    return lambda count: uniforms(seeds_R, np.zeros(n, dtype=np.uint64), count)


def draw_many(n: int, logits_V: torch.Tensor = LOGITS, **settings):
    return draw(logits_V.repeat(n, 1), [SamplingSettings(max_tokens=1, **settings)] * n, seeded(n))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        ({"temperature": 0.5}, [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        # 0.4 + 0.3 reaches 0.65; the smallest set that does
        ({"top_p": 0.65}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.01}, [1, 0, 0, 0]),
        # 0.3 >= 0.7 * 0.4 > 0.2
        ({"min_p": 0.7}, [4 / 7, 3 / 7, 0, 0]),
        # top_k leaves 4/9, 3/9, 2/9; of these 7/9 reaches 0.7
        ({"top_k": 3, "top_p": 0.7}, [4 / 7, 3 / 7, 0, 0]),
        # the temperature comes first: 16/30 reaches 0.5 alone
        ({"temperature": 0.5, "top_p": 0.5}, [1, 0, 0, 0]),
    ],
)
def test_shares_and_logprobs(settings: dict[str, float], expected: list[float]) -> None:
    n = 9000
    drawn = draw_many(n, **settings)
    counts = np.bincount(drawn.ids_R.numpy(), minlength=4)
    possible = np.array(expected) > 0
    assert counts[~possible].sum() == 0
    if possible.sum() > 1:
        assert chisquare(counts[possible], np.array(expected)[possible] * n).pvalue > 0.001
    for token, share in enumerate(expected):
        if share:
            row = int((drawn.ids_R == token).nonzero()[0])
            assert drawn.sampling_logprobs_R[row].item() == pytest.approx(math.log(share), abs=1e-6)
            assert drawn.model_logprobs_R[row].item() == pytest.approx(LOGITS[token].item(), abs=1e-6)


def test_greedy_takes_the_most_likely_and_draws_nothing() -> None:
    drawn = draw_many(5, temperature=0.0)
    assert drawn.ids_R.tolist() == [0] * 5
    assert drawn.sampling_logprobs_R.tolist() == [0.0] * 5
    assert drawn.model_logprobs_R.tolist() == pytest.approx([math.log(0.4)] * 5)


def test_each_row_has_its_own_settings_and_noise() -> None:
    settings = [
        SamplingSettings(max_tokens=1, temperature=t, top_k=k) for t, k in ((0.0, 0), (1.0, 1), (1.0, 0), (2.0, 2))
    ]
    together = draw(LOGITS.repeat(4, 1), settings, seeded(4))
    for row, one in enumerate(settings):
        alone = draw(LOGITS[None], [one], seeded(1, first=row))
        assert together.ids_R[row] == alone.ids_R[0]
        assert together.sampling_logprobs_R[row] == alone.sampling_logprobs_R[0]


def test_large_vocabulary_follows_the_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_V = 2 * torch.randn(1000, generator=generator)  # not a multiple of the block
    n = 30_000
    counts = np.bincount(draw_many(n, logits_V).ids_R.numpy(), minlength=1000)
    expected = logits_V.double().softmax(0).numpy() * n
    often = expected >= 5
    observed = [*counts[often], counts[~often].sum()]
    assert chisquare(observed, [*expected[often], expected[~often].sum()]).pvalue > 0.001


def test_rounding_of_the_logits_hardly_ever_changes_a_token() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_V = 3 * torch.randn(49_152, generator=generator)
    n = 300
    rounded = logits_V.repeat(n, 1) + 1e-5 * torch.randn(n, 49_152, generator=generator)
    other = draw(rounded, [SamplingSettings(max_tokens=1)] * n, seeded(n))
    assert (draw_many(n, logits_V).ids_R != other.ids_R).sum() <= 1


def test_impossible_tokens_are_never_drawn() -> None:
    logits_V = torch.full((300,), float("-inf"))
    logits_V[[5, 130, 290]] = 0.0
    assert set(draw_many(200, logits_V).ids_R.tolist()) == {5, 130, 290}
