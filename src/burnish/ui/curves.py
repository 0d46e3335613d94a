"""The metrics of a run over its steps, and the mean of runs that differ in their seed alone, with a band."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from burnish.errors import DataError
from burnish.evaluation.figures import Figure, items_figure
from burnish.reproducibility.run_folder import RunFolder, read_jsonl
from burnish.ui.answers import BandKind, Curve, Curves
from burnish.ui.reading import Kept, NotFoundError, reading

HELD_OUT = "held_out"
_LEVEL = 0.95
_KEPT_FILES = 64

Series = Mapping[int, float]


def metric_names(run: RunFolder) -> list[str]:
    """What can be drawn of a run: the held-out figure where there is one, and every metric that is a number."""
    evaluated = [HELD_OUT] if run.steps("evaluations") else []
    return [*evaluated, *(name for name in _columns(run.path / "metrics.jsonl") if name != HELD_OUT)]


def read_curves(runs: Sequence[RunFolder], metrics: Sequence[str], band: BandKind) -> Curves:
    """Each metric of a run; of several runs the mean over those that have it at a step.

    Raises:
        NotFoundError: none of the runs has a metric of that name.
        DataError: a file is damaged.
    """
    return Curves(
        runs=[run.path.name for run in runs],
        curves=[_held_out(runs, band) if name == HELD_OUT else _metric(runs, name, band) for name in metrics],
    )


def mean_with_band(metric: str, series: Sequence[Series], band: BandKind) -> Curve:
    """The mean of several runs at each step that any has, between the lowest and the highest, or with the t interval
    of the mean, for which two runs are the least.
    """
    steps = sorted({step for each in series for step in each})
    values = [np.array([each[step] for each in series if step in each]) for step in steps]
    if band == "range":
        ends = [(float(each.min()), float(each.max())) for each in values]
    else:
        ends = [_t_interval(each) for each in values]
    of_seeds = f"over {len(series)} seeds"
    return Curve(
        metric=metric,
        steps=steps,
        values=[float(each.mean()) for each in values],
        low=[low for low, _ in ends],
        high=[high for _, high in ends],
        num_runs=[len(each) for each in values],
        interval=f"lowest to highest {of_seeds}" if band == "range" else f"95 % t interval of the mean {of_seeds}",
    )


def _t_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    n, mean = len(values), float(values.mean())
    if n < 2 or np.ptp(values) == 0:  # no width would say that the mean is known for sure
        return math.nan, math.nan
    half = float(t.ppf(0.5 + _LEVEL / 2, n - 1) * values.std(ddof=1)) / math.sqrt(n)
    return mean - half, mean + half


def _metric(runs: Sequence[RunFolder], name: str, band: BandKind) -> Curve:
    found = [column for run in runs if (column := _columns(run.path / "metrics.jsonl").get(name)) is not None]
    if not found:
        raise NotFoundError(f"run {runs[0].path.name} has no metric {name!r}")
    if len(found) > 1:
        return mean_with_band(name, found, band)
    nothing = [None] * len(found[0])
    return Curve(
        metric=name,
        steps=list(found[0]),
        values=list(found[0].values()),
        low=nothing,
        high=nothing,
        num_runs=[1] * len(nothing),
        interval="",
    )


def _held_out(runs: Sequence[RunFolder], band: BandKind) -> Curve:
    found = [figures for run in runs if (figures := _evaluations(run.path / "evaluations"))]
    if not found:
        raise NotFoundError(f"run {runs[0].path.name} has no evaluation yet")
    if len(found) > 1:
        return mean_with_band(
            HELD_OUT, [{step: each.value for step, each in figures.items()} for figures in found], band
        )
    figures = found[0]
    methods = ", ".join(dict.fromkeys(each.method for each in figures.values()))
    return Curve(
        metric=HELD_OUT,
        steps=list(figures),
        values=[each.value for each in figures.values()],
        low=[each.low for each in figures.values()],
        high=[each.high for each in figures.values()],
        num_runs=[1] * len(figures),
        interval=f"95 % interval over {next(iter(figures.values())).n} items ({methods})",
    )


def _read_columns(path: Path) -> dict[str, dict[int, float]]:
    columns: dict[str, dict[int, float]] = {}
    for number, line in enumerate(read_jsonl(path), start=1):
        step = line.get("step")
        if type(step) is not int:
            raise DataError(f"{path}, line {number}: has no step")
        for name, value in line.items():
            if name != "step" and type(value) in (int, float):
                columns.setdefault(name, {})[step] = value
    return columns


def _read_evaluations(folder: Path) -> dict[int, Figure]:
    """The mean of the held-out items of each evaluated step, with the interval that `burnish eval` would give it."""
    run, found = RunFolder(folder.parent), {}
    with reading(folder):
        for step in run.steps("evaluations"):
            items = run.read_step("evaluations", step)
            scores = np.array([float(item["score"]) for item in items])
            is_share = bool(np.isin(scores, (0.0, 1.0)).all())
            figure = items_figure(scores, [str(item["id"]) for item in items], measure=HELD_OUT, is_share=is_share)
            if figure.n:
                found[step] = figure
    return found


_columns = Kept(_read_columns, limit=_KEPT_FILES)
_evaluations = Kept(_read_evaluations, limit=_KEPT_FILES)
