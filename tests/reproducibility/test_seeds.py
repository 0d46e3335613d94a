import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from burnish.reproducibility.seeds import seed_for, uniforms


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**20), st.integers(1, 5))
def test_noise_depends_on_seed_and_position_alone(seed: int, position: int, count: int) -> None:
    seeds_R, positions_R = np.array([seed, 1], dtype=np.uint64), np.array([position, 2], dtype=np.uint64)
    together = uniforms(seeds_R, positions_R, count)
    assert together.shape == (2, count)
    assert np.array_equal(uniforms(seeds_R[:1], positions_R[:1], count)[0], together[0])
    assert np.array_equal(uniforms(seeds_R, positions_R, count + 3)[:, :count], together)
    assert ((together > 0) & (together < 1)).all()


def test_uniform_along_positions_seeds_and_count() -> None:
    n = 20_000
    counter, zero = np.arange(n, dtype=np.uint64), np.zeros(n, dtype=np.uint64)
    seeds = np.array([seed_for(0, "rollout", step) for step in range(n)], dtype=np.uint64)
    samples = (
        uniforms(zero, counter, 1)[:, 0],
        uniforms(counter, zero, 1)[:, 0],
        uniforms(seeds, zero, 2)[:, 1],
        uniforms(zero[:1], zero[:1], n)[0],
    )
    for sample in samples:
        assert kstest(sample, "uniform").pvalue > 0.001
        assert abs(np.corrcoef(sample[:-1], sample[1:])[0, 1]) < 0.03


def test_the_mixer_is_the_published_one() -> None:
    # SplitMix64 from state 0 begins e220a8397b1dcdaf, 6e789e6aa1b965f4; the first keys the round over the count
    def mix(state: int) -> int:
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        return state ^ (state >> 31)

    stride = 0x9E3779B97F4A7C15
    assert [mix(stride), mix(2 * stride % 2**64)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    expected = [((mix((mix(stride) + i * stride) % 2**64) >> 11) + 0.5) * 2.0**-53 for i in (1, 2)]
    zero = np.zeros(1, dtype=np.uint64)
    assert uniforms(zero, zero, 2)[0].tolist() == expected


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
