"""Figures of several answers, against every subset counted out."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.evaluation.figures import Figure
from burnish.evaluation.sample_figures import SampleGrid, sample_figures, usual_ks
from burnish.evaluation.table import ScoreTable


def grid(scores: Sequence[Sequence[float | None]], answers: Sequence[str] | None = None, **more: Any) -> SampleGrid:
    """`answers` are letters, one a sample; - has none. `more`: by field of the samples, its values by item."""
    ids = tuple(f"i{row}" for row in range(len(scores)))
    table = ScoreTable(
        label="m",
        ids=ids,
        scores_IK=np.array(scores, dtype=np.float64),
        clusters=None,
        slices={},
        settings={},
        origin={},
    )
    lines = []
    for row, name in enumerate(ids):
        for number, score in enumerate(scores[row]):
            letter = "-" if answers is None else answers[row][number]
            line = {"id": name, "sample": number, "score": score, "parsed": None if letter == "-" else letter}
            lines.append(line | {key: values[row][number] for key, values in more.items()})
    return SampleGrid.of(table, lines[::-1])  # whatever the order of the lines


def by_name(found: Sequence[Figure]) -> dict[str, Figure]:
    return {figure.measure: figure for figure in found}


def over_subsets(scores: Sequence[float], k: int, of: Callable[[tuple[int, ...]], float]) -> float:
    """The mean of something over all subsets of k samples."""
    return float(np.mean([of(subset) for subset in combinations(range(len(scores)), k)]))


LETTERS = "abc-"
RIGHT = {"a": 1.0, "b": 0.0, "c": 0.0, "-": 0.0}


@given(
    answers=st.lists(st.text(alphabet=LETTERS, min_size=5, max_size=5), min_size=1, max_size=4).filter(
        lambda rows: any(letter != "-" for row in rows for letter in row)
    ),
    k=st.integers(1, 5),
)
def test_every_subset_counted_out(answers: list[str], k: int) -> None:
    scores = [[RIGHT[letter] for letter in row] for row in answers]
    found = by_name(sample_figures(grid(scores, answers), [k]))

    def vote(row: str, subset: tuple[int, ...]) -> float:
        counts = Counter(row[place] for place in subset if row[place] != "-")
        best = [letter for letter, count in counts.items() if count == max(counts.values())]
        return ("a" in best) / len(best) if best else 0.0

    rows = list(zip(answers, scores, strict=True))
    for name, expected in {
        f"pass@{k}": [over_subsets(s, k, lambda subset, s=s: max(s[i] for i in subset)) for _, s in rows],
        f"pass^{k}": [over_subsets(s, k, lambda subset, s=s: min(s[i] for i in subset)) for _, s in rows],
        f"maj@{k}": [over_subsets(s, k, lambda subset, a=a: vote(a, subset)) for a, s in rows],
    }.items():
        assert found[name].value == pytest.approx(np.mean(expected)), name
        assert found[name].n == len(answers)


def test_fewer_answers_than_k_are_nan_and_never_one() -> None:
    for figure in sample_figures(grid([[1.0, 1.0], [1.0, 1.0]], ["aa", "aa"]), [3]):
        assert math.isnan(figure.value) and math.isnan(figure.low) and figure.n == 0
        assert figure.method == "needs 3 answers to an item, there are 2"
    assert by_name(sample_figures(grid([[1.0, 1.0]] * 2), [2]))["pass@2"].value == 1.0


def test_the_interval_is_that_of_the_items() -> None:
    scores = [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0]]
    found = by_name(sample_figures(grid(scores), [2]))["pass@2"]
    means = np.array([2 / 3, 0.0, 1.0])
    half = 4.302653 * means.std(ddof=1) / math.sqrt(3)  # t of two degrees of freedom
    assert (found.method, found.n) == ("t on item means", 3)
    assert found.high == min(1.0, means.mean() + half) and found.low == pytest.approx(max(0.0, means.mean() - half))
    pair = SampleGrid(
        table=ScoreTable(
            label="m",
            ids=("i0", "i1", "i2"),
            scores_IK=np.array(scores),
            clusters=("p", "p", "q"),
            slices={},
            settings={},
            origin={},
        ),
        samples_IK=grid(scores).samples_IK,
    )
    assert by_name(sample_figures(pair, [2]))["pass@2"].method == "cluster-robust t, 2 clusters"


def test_an_answer_without_a_score_is_wrong() -> None:
    found = by_name(sample_figures(grid([[1.0, None], [None, None]]), [1, 2]))
    assert (found["pass@1"].value, found["pass@2"].value, found["pass^2"].value) == (0.25, 0.5, 0.0)


def test_what_has_no_meaning_says_why() -> None:
    graded = by_name(sample_figures(grid([[0.5, 1.0]], ["ab"], reward=[[0.1, 0.2]]), [2], best_by="reward"))
    for name in ("pass@2", "pass^2", "maj@2"):
        assert graded[name].method == "scores are not right or wrong: evaluate with task.right_at"
    assert graded["best@2 by reward"].value == 1.0
    mixed = by_name(sample_figures(grid([[0.0, 1.0]], ["aa"]), [2]))
    assert mixed["maj@2"].method == "one answer is right in one sample and wrong in another"
    assert mixed["pass@2"].value == 1.0
    assert not any(name.startswith("maj") for name in by_name(sample_figures(grid([[0.0, 1.0]]), [2])))


def test_the_best_by_a_component_and_one_that_lacks_it_comes_last() -> None:
    parts = [[{"short": 3.0}, {}, {"short": 1.0}]]
    found = by_name(sample_figures(grid([[0.0, 1.0, 0.5]], components=parts), [2, 3], best_by="short"))
    assert found["best@3 by short"].value == 0.0
    assert found["best@2 by short"].value == pytest.approx((0.0 + 0.0 + 0.5) / 3)


def test_usual_ks() -> None:
    assert [usual_ks(number) for number in (1, 2, 3, 8, 10)] == [[], [2], [2, 3], [2, 4, 8], [2, 4, 8, 10]]
