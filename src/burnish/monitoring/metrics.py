"""Reducing the metrics of micro-batches and optimizer steps to the numbers of one training step."""

from collections.abc import Iterable, Mapping

from burnish.records import Metric


def reduce_metrics(parts: Iterable[Mapping[str, Metric]]) -> dict[str, float]:
    """Combine equal names by their declared reduction. The only place where a metric is read from its device."""
    by_name: dict[str, list[Metric]] = {}
    for part in parts:
        for name, metric in part.items():
            by_name.setdefault(name, []).append(metric)
    return {name: _reduce(name, metrics) for name, metrics in by_name.items()}


def _reduce(name: str, metrics: list[Metric]) -> float:
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
            return sum(values) / sum(float(metric.count) for metric in metrics)
