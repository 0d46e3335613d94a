"""Randomness as a function of what it is for: there is no generator whose state must be saved or kept in order."""

import hashlib

import numpy as np
from numpy.typing import NDArray


def seed_for(root_seed: int, purpose: str, *parts: int | str) -> int:
    """A 64-bit seed for one purpose, say `seed_for(7, "rollout", step, task_id, sample_index)`."""
    text = "\x1f".join([str(root_seed), purpose, *map(str, parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def uniforms(seeds_R: NDArray[np.uint64], positions_R: NDArray[np.uint64]) -> NDArray[np.float64]:
    """One number in [0, 1) for each (seed, position): the mixer of SplitMix64 (Steele et al. 2014) on a counter."""
    with np.errstate(over="ignore"):
        mixed_R = seeds_R + (positions_R + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed_R = (mixed_R ^ (mixed_R >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed_R = (mixed_R ^ (mixed_R >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed_R = mixed_R ^ (mixed_R >> np.uint64(31))
    drawn_R: NDArray[np.float64] = (mixed_R >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return drawn_R
