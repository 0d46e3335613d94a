"""What several answers to each item say: pass@k, pass^k, the vote maj@k, the best of k by another measure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from burnish.errors import UserError
from burnish.evaluation.figures import Figure, clusters_of, items_figure, usable_scores
from burnish.evaluation.table import ScoreTable
from burnish.stats.samples import best_of_n, majority_at_k, pass_all_k, pass_at_k

Sample = Mapping[str, Any]
_NEITHER = "scores are not right or wrong: evaluate with task.right_at"
_BOTH = "one answer is right in one sample and wrong in another"


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleGrid:
    """The answers of a table by item and sample, in its order."""

    table: ScoreTable
    samples_IK: Sequence[Sequence[Sample]]

    @classmethod
    def of(cls, table: ScoreTable, samples: Sequence[Sample]) -> SampleGrid:
        """From the lines of samples.jsonl."""
        by_id: dict[str, list[Sample]] = {name: [] for name in table.ids}
        for line in samples:
            by_id[line["id"]].append(line)
        rows = [sorted(by_id[name], key=lambda line: int(line["sample"])) for name in table.ids]
        return cls(table=table, samples_IK=rows)

    @property
    def num_samples(self) -> int:
        """Answers to each item."""
        return int(self.table.scores_IK.shape[1])


def usual_ks(num_samples: int) -> list[int]:
    """2, 4, 8 ... up to the number of samples, and that number; none for one sample."""
    powers = [2**power for power in range(1, num_samples.bit_length()) if 2**power < num_samples]
    return [*powers, num_samples] if num_samples > 1 else []


def sample_figures(
    grid: SampleGrid, ks: Sequence[int], *, best_by: str | None = None, level: float = 0.95
) -> list[Figure]:
    """For each k: a right one among k answers, all of them right, and where answers were parsed the vote of k.

    `best_by` adds the score of the best of k by a field of the samples (logprob, reward, or a component of the reward):
    one without it comes last. All are exact over the subsets of an item's answers; the interval is that of the items.
    NaN, with the reason as its method, where k is above the number of answers.

    Raises:
        UserError: no answer has the field `best_by`, or some k is below 1.
    """
    if (least := min(ks, default=1)) < 1:
        raise UserError(f"k={least}: at least one answer must be drawn")
    scores_IK, measure = usable_scores(grid.table)
    if not ks:
        return []
    is_right_IK = scores_IK == 1.0
    right_I, number = is_right_IK.sum(axis=1), is_right_IK.shape[1]
    no_shares = None if measure == "accuracy" else _NEITHER
    has_votes = _are_parsed(grid)
    no_vote = no_shares or (_BOTH if has_votes and _disagree(grid, is_right_IK) else None)
    proxy_IK = None if best_by is None else _proxies(grid, best_by)
    found = []
    for k in ks:
        too_few = f"needs {k} answers to an item, there are {grid.num_samples}" if k > grid.num_samples else None
        figure = _Figures(grid, level, too_few)
        found += [
            figure.make(f"pass@{k}", partial(pass_at_k, right_I, number, k), no_shares),
            figure.make(f"pass^{k}", partial(pass_all_k, right_I, number, k), no_shares),
        ]
        if has_votes:
            found.append(figure.make(f"maj@{k}", partial(_votes, grid, is_right_IK, k), no_vote))
        if proxy_IK is not None:
            name = f"best@{k} by {best_by}"
            found.append(figure.make(name, partial(_bests, proxy_IK, scores_IK, k), None, measure == "accuracy"))
    return found


@dataclass(frozen=True, slots=True)
class _Figures:
    grid: SampleGrid
    level: float
    too_few: str | None

    def make(
        self,
        measure: str,
        values_of: Callable[[], NDArray[np.float64]],
        because: str | None,
        is_share: bool = True,
    ) -> Figure:
        """The mean over items, or NaN for a reason."""
        because = because or self.too_few
        if because is not None:
            nan = math.nan
            return Figure(measure=measure, of="all", value=nan, low=nan, high=nan, n=0, method=because)
        values_I = values_of()
        clusters = clusters_of(self.grid.table)
        kept = np.flatnonzero(np.isfinite(values_I))
        return items_figure(
            values_I[kept], [clusters[row] for row in kept], measure=measure, is_share=is_share, level=self.level
        )


def _are_parsed(grid: SampleGrid) -> bool:
    return any(line.get("parsed") is not None for lines in grid.samples_IK for line in lines)


def _disagree(grid: SampleGrid, is_right_IK: NDArray[np.bool_]) -> bool:
    """Whether an item has the same answer right in one sample and wrong in another: then no vote has a score."""
    for lines, is_right_K in zip(grid.samples_IK, is_right_IK, strict=True):
        right: dict[str, bool] = {}
        for line, is_right in zip(lines, is_right_K, strict=True):
            answer = line.get("parsed")
            if answer is not None and right.setdefault(answer, bool(is_right)) != bool(is_right):
                return True
    return False


def _votes(grid: SampleGrid, is_right_IK: NDArray[np.bool_], k: int) -> NDArray[np.float64]:
    return np.array(
        [
            majority_at_k([line.get("parsed") for line in lines], is_right_K.tolist(), k)
            for lines, is_right_K in zip(grid.samples_IK, is_right_IK, strict=True)
        ]
    )


def _proxies(grid: SampleGrid, name: str) -> NDArray[np.float64]:
    """The field of each sample, by which the best is chosen."""
    found = [[_proxy(line, name) for line in lines] for lines in grid.samples_IK]
    if all(each is None for row in found for each in row):
        known = sorted({key for lines in grid.samples_IK for line in lines for key in _proxy_names(line)})
        raise UserError(f"no answer has a number {name!r} to choose by; they have: {', '.join(known) or 'none'}")
    return np.array([[-math.inf if each is None else each for each in row] for row in found], dtype=np.float64)


def _proxy(line: Sample, name: str) -> float | None:
    value = line.get(name) if name in ("logprob", "reward") else (line.get("components") or {}).get(name)
    return None if value is None else float(value)


def _proxy_names(line: Sample) -> list[str]:
    return [*(key for key in ("logprob", "reward") if line.get(key) is not None), *(line.get("components") or {})]


def _bests(proxy_IK: NDArray[np.float64], scores_IK: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    return np.array([best_of_n(proxy_K, scores_K, k) for proxy_K, scores_K in zip(proxy_IK, scores_IK, strict=True)])
