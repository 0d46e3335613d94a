"""The same model on the same items, asked in other words: what does it lose?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from burnish.errors import DataError, UserError
from burnish.evaluation.comparable import common_items, require_sound
from burnish.evaluation.figures import Figure, clusters_of, items_figure, usable_scores
from burnish.evaluation.table import ScoreTable
from burnish.stats.difference import Difference, Verdict, judge
from burnish.stats.multiple import holm, holm_of_given
from burnish.stats.paired import compare_paired


@dataclass(frozen=True, slots=True, kw_only=True)
class Perturbed:
    """What a change of the questions does: `found` is changed - plain, `p_adjusted` by Holm over all changes."""

    perturb: str
    found: Difference
    p_adjusted: float
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Robustness:
    """`worst` is the mean over items of the lowest score among all forms of the question.

    None where answers were sampled: chance alone would lower it.
    """

    label: str
    num_items: int
    plain: Figure
    forms: tuple[Perturbed, ...]
    worst: Figure | None
    notes: tuple[str, ...]


def robustness(
    plain: ScoreTable, changed: Sequence[ScoreTable], *, alpha: float = 0.05, margin: float | None = None
) -> Robustness:
    """Pair each changed form with the plain one, item by item.

    An answer without a score counts as in `figures`. Better and worse are said of the changed form.

    Raises:
        UserError: there is no changed form, one is not perturbed, the plain one is, or they are not of one model.
        DataError: they differ in more than how the questions were changed.
    """
    names = [str(table.settings.get("perturb")) for table in changed]
    _require_one_model(plain, changed)
    tables = []
    for table in (plain, *changed):
        require_sound(table)
        settings = {key: value for key, value in table.settings.items() if key != "perturb"}
        tables.append(replace(table, settings=settings, scores_IK=usable_scores(table)[0]))
    common = common_items(tables)
    base, *others = common.means_TI
    try:
        found = [compare_paired(base, each, clusters=common.clusters, alpha=alpha, margin=margin) for each in others]
    except ValueError as error:
        raise UserError(str(error)) from error
    adjusted = holm([each.p_value for each in found]).tolist()
    same = holm_of_given([each.p_equivalent for each in found])
    forms = [
        Perturbed(perturb=name, found=each, p_adjusted=p, verdict=judge((each,), p, also, alpha))
        for name, each, p, also in zip(names, found, adjusted, same, strict=True)
    ]
    measure = usable_scores(plain)[1]
    kept = replace(plain, ids=common.ids, clusters=common.clusters)
    is_greedy = plain.settings.get("sampling", {}).get("temperature") == 0

    def figure(values_I: NDArray[np.float64], name: str) -> Figure:
        is_share = measure == "accuracy"
        return items_figure(values_I, clusters_of(kept), measure=name, is_share=is_share, level=1 - alpha)

    left_out = len(plain.ids) - len(common.ids)
    worst_I = np.stack(common.means_TI).min(axis=0)
    return Robustness(
        label=plain.label,
        num_items=len(common.ids),
        plain=figure(base, measure),
        forms=tuple(forms),
        worst=figure(worst_I, "worst form") if is_greedy else None,
        notes=() if left_out == 0 else (f"{left_out} items without a score in some form are left out",),
    )


def _require_one_model(plain: ScoreTable, changed: Sequence[ScoreTable]) -> None:
    if not changed:
        raise UserError("give the store of the plain questions and at least one of changed ones (task.perturb)")
    if "perturb" in plain.settings:
        raise UserError(
            f"{plain.label}: the first store must hold the plain questions, not {plain.settings['perturb']}"
        )
    for table in changed:
        if "perturb" not in table.settings:
            raise UserError(f"{table.label}: a store after the first must be evaluated with task.perturb")
        if _model(table) != _model(plain):
            raise DataError(
                f"{plain.label} and {table.label} are not the same model: `burnish compare` compares models"
            )
    names = [table.settings["perturb"] for table in changed]
    if len(set(names)) < len(names):
        raise UserError(f"the form {next(name for name in names if names.count(name) > 1)!r} is given twice")


def _model(table: ScoreTable) -> object:
    model = table.origin.get("model") or {}
    return model.get("sha256"), table.origin.get("compute_dtype")
