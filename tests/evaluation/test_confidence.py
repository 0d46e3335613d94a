import math

import numpy as np
import pytest

from burnish.evaluation.confidence import calibration_figure, calibration_of
from burnish.evaluation.sample_figures import SampleGrid
from burnish.evaluation.table import ScoreTable


def grid(lines: list[list[dict]], clusters: tuple[str, ...] | None = None) -> SampleGrid:
    ids = tuple(f"i{row}" for row in range(len(lines)))
    scores = np.array([[line["score"] for line in row] for row in lines], dtype=np.float64)
    table = ScoreTable(label="m", ids=ids, scores_IK=scores, clusters=clusters, slices={}, settings={}, origin={})
    samples = [
        {"id": name, "sample": number, **line}
        for name, row in zip(ids, lines, strict=True)
        for number, line in enumerate(row)
    ]
    return SampleGrid.of(table, samples)


def votes(answers: str, right: str = "a") -> list[dict]:
    return [{"parsed": None if each == "-" else each, "score": float(each == right)} for each in answers]


def test_the_share_of_the_vote() -> None:
    found = calibration_of(grid([votes("aab-"), votes("bbbb"), votes("abab"), votes("----")]), [], None)
    assert found is not None
    what, error = found
    assert what == "share of the vote" and error.n == 3  # who gave no answer was not sure of one
    # sure 0.5 (a, right: of 4 answers 2), 1 (b, wrong), 0.5 (a, the first of two, right)
    assert [(each.n, each.confidence, each.right) for each in error.bins] == [(2, 0.5, 1.0), (1, 1.0, 0.0)]
    assert error.error == pytest.approx((2 * 0.5 + 1 * 1.0) / 3)


def test_the_likelihood_of_the_choice() -> None:
    def line(*logprobs: float) -> list[dict]:
        return [{"score": 0.0, "compared": [{"logprob": each, "tokens": 2, "bytes": 4} for each in logprobs]}]

    items = [{"id": "i0", "right": 0}, {"id": "i1", "right": 1}]
    lines = grid([line(math.log(0.6), math.log(0.2)), line(math.log(0.2), math.log(0.05))])
    found = calibration_of(lines, items, "none")
    assert found is not None and found[0] == "likelihood of the choice"
    # 0.6 of 0.8, and right; 0.2 of 0.25, and wrong
    assert [(each.confidence, each.right) for each in found[1].bins] == [
        (pytest.approx(0.75), 1.0),
        (pytest.approx(0.8), 0.0),
    ]
    halved = calibration_of(lines, items, "tokens")
    assert halved is not None  # a token has the root of it: sqrt 3 to 1, and 2 to 1
    assert [each.confidence for each in halved[1].bins] == [
        pytest.approx(3**0.5 / (1 + 3**0.5)),
        pytest.approx(2 / 3),
    ]


def test_the_value_of_a_pair_is_a_chance_by_bradley_and_terry() -> None:
    lines = [[{"score": 1.0, "compared": [{"value": 2.0}, {"value": 1.0}]}]]
    found = calibration_of(grid(lines), [{"id": "i0", "right": 0}], "none")
    assert found is not None
    assert found[1].bins[0].confidence == pytest.approx(1 / (1 + math.exp(-1)))


def test_where_nothing_says_how_sure_it_was() -> None:
    assert calibration_of(grid([votes("a"), votes("b")]), [], None) is None  # one answer each
    assert calibration_of(grid([votes("--"), votes("--")]), [], None) is None
    graded = [[{"parsed": "a", "score": 0.3}, {"parsed": "a", "score": 0.3}]]
    assert calibration_of(grid(graded), [], None) is None


def test_items_that_share_something_are_drawn_together() -> None:
    rng = np.random.default_rng(0)
    letters = ["".join(rng.choice(list("ab"), p=[0.8, 0.2], size=4)) for _ in range(60)]
    rows = [votes(each) for each in letters for _ in range(2)]  # every item twice: half as much is known
    alone = calibration_of(grid(rows), [], None)
    together = calibration_of(grid(rows, tuple(str(row // 2) for row in range(120))), [], None)
    assert alone is not None and together is not None
    assert together[1].error == alone[1].error and together[1].high > alone[1].high


def test_as_a_figure() -> None:
    found = calibration_of(grid([votes("aab-"), votes("bbbb"), votes("abab")]), [], None)
    assert found is not None
    figure = calibration_figure(*found)
    assert (figure.measure, figure.of, figure.n) == ("calibration error", "share of the vote", 3)
    assert figure.low <= figure.value <= figure.high
    assert figure.method.startswith("2 bins of equal mass; by chance alone 0.") and ", p 0." in figure.method
