import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.inter_rater import aggregate_raters
from statsmodels.stats.inter_rater import cohens_kappa as statsmodels_cohen
from statsmodels.stats.inter_rater import fleiss_kappa as statsmodels_fleiss

from burnish.stats.agreement import cohen_kappa, fleiss_kappa

PANDALM = Path(__file__).parents[3] / "shared/data/pref_pandalm/testset-v1.json"


@pytest.mark.skipif(not PANDALM.is_file(), reason=f"{PANDALM} is not here")
def test_published_of_pandalm() -> None:
    rows = json.loads(PANDALM.read_text())
    first, second, third = ([row[f"annotator{judge}"] for row in rows] for judge in (1, 2, 3))
    found = cohen_kappa(first, second), cohen_kappa(first, third), cohen_kappa(second, third)
    assert found == pytest.approx((0.8520, 0.8789, 0.8617), abs=5e-5)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=60))
def test_cohen_against_statsmodels(pairs: list[tuple[int, int]]) -> None:
    table = np.zeros((3, 3))
    for a, b in pairs:
        table[a, b] += 1
    found = cohen_kappa(*zip(*pairs, strict=True))
    if np.isnan(found):
        assert len({label for pair in pairs for label in pair}) == 1
    else:
        assert found == pytest.approx(float(statsmodels_cohen(table, return_results=False)), abs=1e-12)


@given(st.integers(2, 5), st.integers(2, 30), st.integers(0, 1000))
def test_fleiss_against_statsmodels(judges: int, n: int, seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 3, size=(n, judges))
    if len(np.unique(labels)) > 1:
        expected = float(statsmodels_fleiss(aggregate_raters(labels)[0]))
        assert fleiss_kappa(labels.tolist()) == pytest.approx(expected, abs=1e-12)


def test_bad_labels() -> None:
    assert np.isnan(cohen_kappa(["x"] * 3, ["x"] * 3)) and np.isnan(fleiss_kappa([["x", "x"]]))
    with pytest.raises(ValueError, match="same items"):
        cohen_kappa(["x"], [])
    with pytest.raises(ValueError, match="two or more"):
        fleiss_kappa([["x", "y"], ["x"]])
