import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.stats.clustered import clustered_mean


def test_vector() -> None:
    found = clustered_mean([1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 0, 0], np.repeat(["a", "b", "c", "d"], 3).tolist())
    assert (found.miller, found.cr1) == pytest.approx((0.1863390, 0.2151657), abs=5e-8)
    alone = clustered_mean([1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 0, 0], range(12))
    assert alone.cr1 == pytest.approx(0.1507557, abs=5e-8)


@given(st.integers(3, 40), st.integers(0, 1000))
@settings(deadline=None)
def test_against_statsmodels(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, clusters = rng.normal(size=n), rng.integers(0, 6, size=n)
    clusters[:2] = [0, 1]
    options = {"groups": clusters, "use_correction": True, "df_correction": True}
    fit = sm.OLS(values, np.ones(n)).fit(cov_type="cluster", cov_kwds=options, use_t=True)
    found = clustered_mean(values, clusters.tolist())
    assert found.cr1 == pytest.approx(float(fit.bse[0]), rel=1e-9)  # (n - 1) / (n - p) is 1 for a mean alone
    assert (found.low, found.high) == pytest.approx(tuple(fit.conf_int()[0]), rel=1e-9)


def test_one_cluster_and_none() -> None:
    assert np.isnan(clustered_mean([1.0, 0.0], ["a", "a"]).low)
    with pytest.raises(ValueError, match="needs its cluster"):
        clustered_mean([1.0], [])
