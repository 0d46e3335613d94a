"""Reducing the metrics of micro-batches and optimizer steps to the numbers of one training step."""

from collections.abc import Iterable, Mapping

from burnish.records import Metric


def reduce_metrics(parts: Iterable[Mapping[str, Metric]]) -> dict[str, float]:
    """Combine equal names by their declared reduction. The only place where a metric is read from its device.

    A mean over nothing (the wanted answers of a step that has none) is left out.
    """
    by_name: dict[str, list[Metric]] = {}
    for part in parts:
        for name, metric in part.items():
            by_name.setdefault(name, []).append(metric)
    reduced = {name: _reduce(name, metrics) for name, metrics in by_name.items()}
    return {name: value for name, value in reduced.items() if value is not None}


def _reduce(name: str, metrics: list[Metric]) -> float | None:
    reductions = {metric.reduction for metric in metrics}
    if len(reductions) != 1:
        raise ValueError(f"metric {name!r} is declared with different reductions: {sorted(reductions)}")
    values = [float(metric.value) for metric in metrics]
    match metrics[0].reduction:
        case "max":
            return max(values)
        case "sum":
            return sum(values)
        case "mean":
            count = sum(float(metric.count) for metric in metrics)
            return sum(values) / count if count else None
