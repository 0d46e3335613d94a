import math

import numpy as np
import pytest

from burnish.stats.selection import luck_of_the_best


def test_published_and_drawn() -> None:
    # Harter 1961, table 1: 0, 0.56419, 0.84628, 1.53875, 2.50759
    found = [luck_of_the_best(count) for count in (1, 2, 3, 10, 100)]
    assert found == pytest.approx([0, math.pi**-0.5, 1.5 * math.pi**-0.5, 1.53875, 2.50759], abs=5e-6)
    drawn = np.random.default_rng(0).normal(size=(40_000, 7)).max(axis=1)
    assert luck_of_the_best(7) == pytest.approx(drawn.mean(), abs=0.01)
    with pytest.raises(ValueError, match="best of 0"):
        luck_of_the_best(0)
