import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from burnish.reproducibility.seeds import seed_for, uniforms


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**20))
def test_a_uniform_depends_on_seed_and_position_alone(seed: int, position: int) -> None:
    seeds_R, positions_R = np.array([seed, 1], dtype=np.uint64), np.array([position, 2], dtype=np.uint64)
    together = uniforms(seeds_R, positions_R)
    assert uniforms(seeds_R[:1], positions_R[:1])[0] == together[0]
    assert 0 <= together[0] < 1


def test_uniform_along_positions_and_along_seeds() -> None:
    n = 20_000
    counter, zero = np.arange(n, dtype=np.uint64), np.zeros(n, dtype=np.uint64)
    seeds = np.array([seed_for(0, "rollout", step) for step in range(n)], dtype=np.uint64)
    for sample in (uniforms(zero, counter), uniforms(counter, zero), uniforms(seeds, zero)):
        assert kstest(sample, "uniform").pvalue > 0.001
        assert abs(np.corrcoef(sample[:-1], sample[1:])[0, 1]) < 0.03


def test_known_values_stay() -> None:
    # SplitMix64 from state 0 (the published sequence begins e220a8397b1dcdaf, 6e789e6aa1b965f4)
    first = uniforms(np.zeros(2, dtype=np.uint64), np.arange(2, dtype=np.uint64))
    expected = [(0xE220A8397B1DCDAF >> 11) * 2.0**-53, (0x6E789E6AA1B965F4 >> 11) * 2.0**-53]
    assert first.tolist() == expected


def test_every_part_of_a_purpose_counts() -> None:
    seeds = {
        seed_for(0, "rollout", 1, "t", 2),
        seed_for(1, "rollout", 1, "t", 2),
        seed_for(0, "order", 1, "t", 2),
        seed_for(0, "rollout", 2, "t", 2),
        seed_for(0, "rollout", 1, "u", 2),
        seed_for(0, "rollout", 1, "t", 3),
        seed_for(0, "rollout", 1, "t"),
        seed_for(0, "rollout", 11, "t", 2),
    }
    assert len(seeds) == 8
