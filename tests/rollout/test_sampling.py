import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from burnish.records import SamplingSettings
from burnish.rollout.generators.sampling import draw

LOGITS = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()


def draw_many(n: int, logits_V: torch.Tensor = LOGITS, **settings):
    """Draw with n evenly spread uniforms: the share of each token is its probability, to 1 / n."""
    sampling = SamplingSettings(max_tokens=1, **settings)
    return draw(logits_V.repeat(n, 1), [sampling] * n, (np.arange(n) + 0.5) / n)


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
    shares = np.bincount(drawn.ids_R.numpy(), minlength=4) / n
    assert shares == pytest.approx(expected, abs=2 / n)
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


def test_each_row_has_its_own_settings() -> None:
    settings = [
        SamplingSettings(max_tokens=1, temperature=t, top_k=k) for t, k in ((0.0, 0), (1.0, 1), (1.0, 0), (2.0, 2))
    ]
    together = draw(LOGITS.repeat(4, 1), settings, np.array([0.99] * 4))
    for row, one in enumerate(settings):
        alone = draw(LOGITS[None], [one], np.array([0.99]))
        assert together.ids_R[row] == alone.ids_R[0]
        assert together.sampling_logprobs_R[row] == alone.sampling_logprobs_R[0]
    assert together.ids_R.tolist() == [0, 0, 3, 1]


def test_large_vocabulary_follows_the_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_V = torch.randn(1000, generator=generator)  # not a multiple of the block
    n = 20_000
    uniforms = np.random.default_rng(0).random(n)
    drawn = draw(logits_V.repeat(n, 1), [SamplingSettings(max_tokens=1)] * n, uniforms)
    counts = np.bincount(drawn.ids_R.numpy(), minlength=1000)
    expected = logits_V.double().softmax(0).numpy() * n
    assert chisquare(counts, expected).pvalue > 0.001


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_give_possible_tokens(uniform: float) -> None:
    logits_V = torch.full((300,), float("-inf"))
    logits_V[[5, 130, 290]] = 0.0
    drawn = draw(logits_V[None], [SamplingSettings(max_tokens=1)], np.array([uniform]))
    assert drawn.ids_R.tolist() == ([5] if uniform == 0 else [290])
