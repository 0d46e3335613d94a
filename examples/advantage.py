"""An advantage of your own for GRPO: how far a reward is from the median of its group. In the folder of this file:

    burnish check advantage advantage:from_median
    burnish train grpo --task.source data/questions.jsonl --task.num_held_out 8 --loss.advantage advantage:from_median

One lucky completion moves the mean of a small group, and with it the advantage of all others; it does not move the
median. From the rewards of a step and the group of each to one number per completion; B counts completions.
"""

import numpy as np
from numpy.typing import NDArray


def from_median(rewards_B: NDArray[np.float64], group_B: NDArray[np.int64]) -> NDArray[np.float64]:
    """Reward minus the median of its group; 0 in a group of equal rewards."""
    advantages_B = np.zeros(len(rewards_B))
    for group in np.unique(group_B):
        own = group_B == group
        advantages_B[own] = rewards_B[own] - np.median(rewards_B[own])
    return advantages_B
