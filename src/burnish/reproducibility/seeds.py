"""Randomness as a function of what it is for: there is no generator whose state must be saved or kept in order."""

import hashlib

import numpy as np
from numpy.typing import NDArray


def seed_for(root_seed: int, purpose: str, *parts: int | str) -> int:
    """A 64-bit seed for one purpose, say `seed_for(7, "rollout", step, task_id, sample_index)`."""
    text = "\x1f".join([str(root_seed), purpose, *map(str, parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def uniforms(seeds_R: NDArray[np.uint64], positions_R: NDArray[np.uint64], count: int) -> NDArray[np.float64]:
    """`count` numbers in (0, 1) for each (seed, position), shape [R, count].

    Two rounds of the mixer of SplitMix64 (Steele et al. 2014) on counters: one over positions, one over the count.
    """
    keys_R = _mix(seeds_R + (positions_R + np.uint64(1)) * _STRIDE)
    mixed = _mix(keys_R[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _STRIDE)
    drawn: NDArray[np.float64] = ((mixed >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return drawn


_STRIDE = np.uint64(0x9E3779B97F4A7C15)


def _mix(counters: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = (counters ^ (counters >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed
