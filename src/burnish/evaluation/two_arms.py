"""Two arms on the same items: every difference that can be tested between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from burnish.evaluation.comparable import Arm
from burnish.stats.difference import Difference
from burnish.stats.paired import compare_paired
from burnish.stats.seeds import compare_seeds, compare_seeds_and_items
from burnish.stats.variance import ErrorParts, split_error


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoArms:
    """Scores of A and B, seeds x items x samples, and their means over samples; `is_paired` where seeds are shared."""

    scores_a_SIK: NDArray[np.float64]
    scores_b_SIK: NDArray[np.float64]
    means_a_SI: NDArray[np.float64]
    means_b_SI: NDArray[np.float64]
    clusters: Sequence[str] | None
    is_paired: bool

    @property
    def num_seeds(self) -> int:
        """Of the arm that has more."""
        return max(len(self.means_a_SI), len(self.means_b_SI))

    @property
    def item_means(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of A and B over seeds and samples, by item."""
        return self.means_a_SI.mean(axis=0), self.means_b_SI.mean(axis=0)

    def on(self, items: Sequence[int]) -> TwoArms:
        """The same on some of the items."""
        return replace(
            self,
            scores_a_SIK=self.scores_a_SIK[:, items],
            scores_b_SIK=self.scores_b_SIK[:, items],
            means_a_SI=self.means_a_SI[:, items],
            means_b_SI=self.means_b_SI[:, items],
            clusters=None if self.clusters is None else [self.clusters[item] for item in items],
        )

    def errors(self) -> ErrorParts | None:
        """Where there are seeds or samples to split by, and items to see a spread over."""
        num_samples = max(self.scores_a_SIK.shape[2], self.scores_b_SIK.shape[2])
        num_units = self.means_a_SI.shape[1] if self.clusters is None else len(set(self.clusters))
        if (self.num_seeds == 1 and num_samples == 1) or num_units < 2:
            return None
        return split_error(self.scores_a_SIK, self.scores_b_SIK, clusters=self.clusters, is_paired=self.is_paired)

    def differences(
        self, errors: ErrorParts | None, *, alpha: float, margin: float | None = None
    ) -> tuple[Difference, ...]:
        """Over items; with several seeds before that over seeds, and first of all over both."""
        over_items = compare_paired(*self.item_means, clusters=self.clusters, alpha=alpha, margin=margin)
        if self.num_seeds == 1:
            return (over_items,)
        of_seeds = self.means_a_SI.mean(axis=1), self.means_b_SI.mean(axis=1)
        over_seeds = compare_seeds(*of_seeds, is_paired=self.is_paired, alpha=alpha, margin=margin)
        if errors is None:
            return over_seeds, over_items
        over_both = compare_seeds_and_items(
            over_seeds.mean_a, over_seeds.mean_b, errors, num_seeds=over_seeds.n, alpha=alpha, margin=margin
        )
        return over_both, over_seeds, over_items


def two_arms(
    arms: tuple[Arm, Arm],
    scores_SIK: tuple[NDArray[np.float64], NDArray[np.float64]],
    means_SI: tuple[NDArray[np.float64], NDArray[np.float64]],
    clusters: Sequence[str] | None,
) -> TwoArms:
    """Put B's seeds into the order of A's where both have the same."""
    seeds_a, seeds_b = ([table.origin.get("seed") for table in arm.tables] for arm in arms)
    is_paired = len(seeds_a) > 1 and None not in seeds_a and set(seeds_a) == set(seeds_b)
    order = [seeds_b.index(seed) for seed in seeds_a] if is_paired else slice(None)
    return TwoArms(
        scores_a_SIK=scores_SIK[0],
        scores_b_SIK=scores_SIK[1][order],
        means_a_SI=means_SI[0],
        means_b_SI=means_SI[1][order],
        clusters=clusters,
        is_paired=is_paired,
    )
