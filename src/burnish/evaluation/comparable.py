"""May these tables be compared? The items that all of them have a score for, in one order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from burnish.errors import DataError, UserError
from burnish.evaluation.table import ScoreTable

_SHOWN = 3


class Evaluated(Protocol):
    """An evaluation, by what two must share to be compared."""

    @property
    def label(self) -> str:
        """What it is called."""

    @property
    def ids(self) -> Sequence[str]:
        """Of its items."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """How they were asked, answered and scored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """What is compared: one table, or one for each training seed of a method."""

    label: str
    tables: tuple[ScoreTable, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonItems:
    """The same I items in T tables: `scores_TIK` each [I, K], `means_TI` over the samples that have a score."""

    ids: tuple[str, ...]
    clusters: tuple[str, ...] | None
    slices: Mapping[str, tuple[str, ...]]
    scores_TIK: tuple[NDArray[np.float64], ...]
    means_TI: tuple[NDArray[np.float64], ...]

    def slice_of(self, field: str) -> NDArray[np.str_]:
        """The value of each item.

        Raises:
            UserError: the items have no such field.
        """
        if field not in self.slices:
            raise UserError(f"the items have no slice {field!r}; they have: {', '.join(self.slices) or 'none'}")
        return np.array(self.slices[field])


def common_items(tables: Sequence[ScoreTable]) -> CommonItems:
    """Put tables into the order of the first, and leave out the items that any of them has no score for.

    Raises:
        DataError: they differ in items, clusters or settings, or too few items are left.
    """
    first = tables[0]
    ordered = [_ordered_as(first, table) for table in tables]
    means_TI = [_means_over_samples(table.scores_IK) for table in ordered]
    has_score_I = ~np.isnan(np.stack(means_TI)).any(axis=0)
    kept: list[int] = np.flatnonzero(has_score_I).tolist()
    num_items = len(first.ids)
    if 2 * len(kept) < num_items or len(kept) == 0:
        raise DataError(f"only {len(kept)} of {num_items} items have a score in every table: too few to compare by")

    def chosen(values: Sequence[str]) -> tuple[str, ...]:
        return tuple(values) if len(kept) == num_items else tuple(values[item] for item in kept)

    return CommonItems(
        ids=chosen(first.ids),
        clusters=None if first.clusters is None else chosen(first.clusters),
        slices={name: chosen(values) for name, values in first.slices.items()},
        scores_TIK=tuple(table.scores_IK[kept] for table in ordered),
        means_TI=tuple(means[kept] for means in means_TI),
    )


def told_apart(arms: Sequence[Arm], names: Sequence[str]) -> list[Arm]:
    """Arms by their labels, or where some have the same by what they were called.

    Raises:
        UserError: two arms are called the same.
    """
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{repeated[0]} is named twice: there is nothing to compare it with in itself")
    labels = Counter(arm.label for arm in arms)
    return [arm if labels[arm.label] == 1 else replace(arm, label=name) for arm, name in zip(arms, names, strict=True)]


def require_arm(arm: Arm) -> None:
    """Refuse an arm with a table that is none, and runs that are no replicates of each other.

    Raises:
        DataError: see `require_sound`; a seed twice, different numbers of samples per item, or of other settings.
    """
    for table in arm.tables:
        require_sound(table)
    seeds = [table.origin.get("seed") for table in arm.tables]
    known = [seed for seed in seeds if seed is not None]
    if len(known) != len(set(known)):
        raise DataError(f"{arm.label}: seed {max(known, key=known.count)} stands there twice; a seed is one run")
    if len(arm.tables) > 1 and len({table.scores_IK.shape[1] for table in arm.tables}) > 1:
        raise DataError(f"{arm.label}: its runs have different numbers of samples per item")
    methods = [(table.label, table.origin["method"]) for table in arm.tables if table.origin.get("method")]
    for label, method in methods[1:]:
        first_label, first = methods[0]
        if keys := [key for key in sorted({*first, *method}) if first.get(key, _Unset) != method.get(key, _Unset)]:
            raise DataError(
                f"{arm.label}: {first_label} and {label} differ in {', '.join(keys)}: the runs of an arm are one "
                "method, and may differ in their seed alone"
            )


def require_sound(table: ScoreTable) -> None:
    """Refuse a table that is no table.

    Raises:
        DataError: it has no items, an id twice, an infinite score, or no score for more than half of the items.
    """
    num_items = len(table.ids)
    if num_items == 0 or table.scores_IK.shape[1] == 0:
        raise DataError(f"{table.label}: has no items")
    if len(set(table.ids)) < num_items:
        repeated = Counter(table.ids).most_common(1)[0][0]
        raise DataError(f"{table.label}: item {repeated!r} stands there twice")
    if len(table.scores_IK) != num_items:
        raise DataError(f"{table.label}: {num_items} items and {len(table.scores_IK)} rows of scores")
    if np.isinf(table.scores_IK).any():
        item = table.ids[int(np.argwhere(np.isinf(table.scores_IK))[0, 0])]
        raise DataError(f"{table.label}: item {item!r} has an infinite score")
    without = int(np.isnan(table.scores_IK).all(axis=1).sum())
    if 2 * without > num_items:
        raise DataError(f"{table.label}: {without} of {num_items} items have no score; see why before comparing")


def require_same_items(first: Evaluated, other: Evaluated) -> None:
    """Refuse evaluations of different items, and name some that one of them lacks.

    Raises:
        DataError: they are not of the same items.
    """
    ids, other_ids = set(first.ids), set(other.ids)
    if ids == other_ids:
        return
    lacking = (
        _lacking(first.label, [each for each in other.ids if each not in ids]),
        _lacking(other.label, [each for each in first.ids if each not in other_ids]),
    )
    raise DataError(f"{_both(first, other)}: they are not of the same items; {'; '.join(filter(None, lacking))}")


def require_same_settings(first: Evaluated, other: Evaluated) -> None:
    """Refuse evaluations that asked, sampled or scored differently, and say how.

    Raises:
        DataError: their settings differ.
    """
    one, two = ({key: each.settings[key] for key in each.settings if key != "extra"} for each in (first, other))
    differing = _first_difference(one, two, "")
    if differing is not None:
        key, value, other_value = differing
        raise DataError(
            f"{_both(first, other)}: {key} is {value} in the first and {other_value} in the second; evaluate both alike"
        )
    if len({each.settings["extra"] for each in (first, other) if "extra" in each.settings}) > 1:  # some do not know it
        raise DataError(
            f"{_both(first, other)}: they ask the same questions, with other fields beside them (unit tests, arguments "
            "of a checker); evaluate both alike"
        )


def _ordered_as(first: ScoreTable, table: ScoreTable) -> ScoreTable:
    order = None
    if table.ids != first.ids:
        require_same_items(first, table)
        place = {each: index for index, each in enumerate(table.ids)}
        order = np.array([place[each] for each in first.ids])
    require_same_settings(first, table)
    for name, mine, theirs in [
        ("clusters", first.clusters, table.clusters),
        *((f"slice {name}", values, table.slices.get(name)) for name, values in first.slices.items()),
    ]:
        if _reordered(theirs, order) != mine:
            raise DataError(f"{_both(first, table)}: their items have different {name}")
    if order is None:
        return table
    return replace(table, ids=first.ids, scores_IK=table.scores_IK[order], clusters=first.clusters, slices=first.slices)


def _both(first: Evaluated, other: Evaluated) -> str:
    return f"{first.label} and {other.label} cannot be compared"


def _reordered(values: tuple[str, ...] | None, order: NDArray[np.int64] | None) -> tuple[str, ...] | None:
    return values if values is None or order is None else tuple(values[index] for index in order)


def _lacking(label: str, missing: Sequence[str]) -> str:
    """The first of what is missing; empty if nothing."""
    if not missing:
        return ""
    more = f" and {len(missing) - _SHOWN:,} more" if len(missing) > _SHOWN else ""
    return f"{label} lacks {', '.join(repr(each) for each in missing[:_SHOWN])}{more}"


def _first_difference(value: Any, other: Any, key: str) -> tuple[str, str, str] | None:
    """The first key at which two trees differ, in order of keys, with both values as text."""
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        for name in sorted({*value, *other}, key=str):
            path = f"{key}.{name}" if key else str(name)
            found = _first_difference(value.get(name, _Unset), other.get(name, _Unset), path)
            if found is not None:
                return found
        return None
    return None if value == other else (key, _shown(value), _shown(other))


class _Unset:
    """Stands for a key that is not there."""


def _shown(value: Any) -> str:
    return "not set" if value is _Unset else repr(value)


def _means_over_samples(scores_IK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of each item's scores, NaN where it has none."""
    has_score_IK = ~np.isnan(scores_IK)
    counts_I = has_score_IK.sum(axis=1)
    sums_I = np.where(has_score_IK, scores_IK, 0.0).sum(axis=1)
    means_I: NDArray[np.float64] = np.divide(sums_I, counts_I, out=np.full(len(sums_I), np.nan), where=counts_I > 0)
    return means_I
