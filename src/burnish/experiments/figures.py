"""Figures as SVG text that needs nothing else to be shown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
_ROW = 26
_PLOT_WIDTH, _PLOT_HEIGHT = 500, 260
_LEFT, _TOP, _BOTTOM = 70, 16, 46
_LETTER = 7  # width of a letter, about


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of a forest plot; an interval with NaN is not drawn."""

    label: str
    value: float
    low: float
    high: float
    text: str


def forest(rows: Sequence[Row], *, axis: str, zero: float | None = None, margin: float | None = None) -> str:
    """Values with their intervals, one under the other. `margin` shades what counts as no difference."""
    shown = [each for row in rows for each in (row.value, row.low, row.high) if math.isfinite(each)]
    shown += [] if zero is None else [zero]
    shown += [] if margin is None else [-margin, margin]
    left = max(_LEFT, 16 + _width(row.label for row in rows))
    right, bottom = left + _PLOT_WIDTH, _TOP + _ROW * len(rows)
    x = _Scale.over(shown, left, right)
    parts = list(_x_axis(x, axis, bottom))
    if margin is not None:
        width = x.at(margin) - x.at(-margin)
        parts.append(
            f'<rect x="{x.at(-margin):.1f}" y="{_TOP}" width="{width:.1f}" height="{bottom - _TOP}" fill="#eee"/>'
        )
    if zero is not None:
        parts.append(_line(x.at(zero), _TOP, x.at(zero), bottom, "#888", dashes="4 3"))
    for index, row in enumerate(rows):
        y = _TOP + _ROW * (index + 0.5)
        parts.append(_text(left - 8, y + 4, row.label, anchor="end"))
        parts.append(_text(right + 12, y + 4, row.text))
        if math.isfinite(row.low) and math.isfinite(row.high):
            parts.append(_line(x.at(row.low), y, x.at(row.high), y, _COLORS[0], width=2))
        if math.isfinite(row.value):
            parts.append(f'<circle cx="{x.at(row.value):.1f}" cy="{y:.1f}" r="4" fill="{_COLORS[0]}"/>')
    width = right + 24 + _width(row.text for row in rows)
    return _svg(width, bottom + _BOTTOM, parts, f"{axis}: {', '.join(row.label for row in rows)}")


def learning_curves(curves: Mapping[str, Mapping[int, Mapping[int, float]]], *, axis: str) -> str:
    """`curves[arm][seed][step]`: for each arm the mean over seeds, and a band from the lowest to the highest seed.

    A step counts where every seed of the arm has it.
    """
    bands = {arm: _band(list(seeds.values())) for arm, seeds in curves.items()}
    points = [point for band in bands.values() for point in band]
    x = _Scale.over([point[0] for point in points], _LEFT, _LEFT + _PLOT_WIDTH, is_tight=True)
    y = _Scale.over([each for point in points for each in point[1:]], _TOP + _PLOT_HEIGHT, _TOP)
    parts = [*_x_axis(x, "step", _TOP + _PLOT_HEIGHT, smallest=1.0), *_y_axis(y, axis)]
    for index, band in enumerate(bands.values()):
        color = _color(index)
        outline = [(step, low) for step, _, low, _ in band] + [(step, high) for step, _, _, high in reversed(band)]
        area = " ".join(f"{x.at(step):.1f},{y.at(value):.1f}" for step, value in outline)
        parts.append(f'<polygon points="{area}" fill="{color}" fill-opacity="0.15"/>')
        parts.append(_polyline([(x.at(step), y.at(mean)) for step, mean, _, _ in band], color))
    return _with_legend(parts, curves, f"{axis} over the steps")


def search_history(scores: Mapping[int, float], *, axis: str, is_higher_better: bool) -> str:
    """The score of each trial by its number, and a line of the best so far."""
    best = list(accumulate(scores.values(), max if is_higher_better else min))
    x = _Scale.over([float(number) for number in scores], _LEFT, _LEFT + _PLOT_WIDTH)
    y = _Scale.over(best + list(scores.values()), _TOP + _PLOT_HEIGHT, _TOP)
    parts = [*_x_axis(x, "trial", _TOP + _PLOT_HEIGHT, smallest=1.0), *_y_axis(y, axis)]
    corners: list[tuple[float, float]] = []
    for number, value in zip(scores, best, strict=True):
        corners += [(x.at(number), corners[-1][1])] if corners else []
        corners.append((x.at(number), y.at(value)))
    parts.append(_polyline(corners, _COLORS[1]))
    parts += [
        f'<circle cx="{x.at(number):.1f}" cy="{y.at(value):.1f}" r="4" fill="{_COLORS[0]}"/>'
        for number, value in scores.items()
    ]
    return _with_legend(parts, ("a trial", "best so far"), f"{axis} of each trial")


def profiles(corners: Mapping[str, Sequence[tuple[float, float]]], *, axis: str) -> str:
    """Performance profiles: for each arm the share of its runs above a value."""
    values = [value for each in corners.values() for value, _ in each]
    x = _Scale.over(values, _LEFT, _LEFT + _PLOT_WIDTH)
    y = _Scale(0.0, 1.0, _TOP + _PLOT_HEIGHT, _TOP)
    parts = [*_x_axis(x, axis, _TOP + _PLOT_HEIGHT), *_y_axis(y, "share of runs above")]
    for index, each in enumerate(corners.values()):
        color = _color(index)
        steps = [(x.low, 1.0), *each, (x.high, 0.0)] if each else []
        parts.append(_polyline([(x.at(value), y.at(share)) for value, share in steps], color))
    return _with_legend(parts, corners, f"share of runs above each {axis}")


def _band(seeds: Sequence[Mapping[int, float]]) -> list[tuple[int, float, float, float]]:
    """(step, mean, lowest, highest) where every seed has the step."""
    steps = sorted(set.intersection(*(set(seed) for seed in seeds))) if seeds else []
    return [
        (step, sum(values) / len(values), min(values), max(values))
        for step in steps
        for values in [[seed[step] for seed in seeds]]
    ]


@dataclass(frozen=True, slots=True)
class _Scale:
    """From values to places."""

    low: float
    high: float
    first: float
    last: float

    @classmethod
    def over(cls, values: Sequence[float], first: float, last: float, *, is_tight: bool = False) -> _Scale:
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        room = (high - low) * (0.0 if is_tight else 0.06) or (0.0 if high > low else max(abs(low) * 0.1, 0.5))
        return cls(low - room, high + room, first, last)

    def at(self, value: float) -> float:
        return self.first + (value - self.low) / (self.high - self.low) * (self.last - self.first)

    def ticks(self, smallest: float = 0.0) -> Iterator[float]:
        """A few round numbers, at least `smallest` apart."""
        rough = max((self.high - self.low) / 5, smallest)
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * each for each in (1, 2, 5, 10) if power * each >= rough * 0.999)
        for index in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1):
            yield index * step


def _x_axis(x: _Scale, name: str, bottom: float, *, smallest: float = 0.0) -> Iterator[str]:
    yield _line(x.first, bottom, x.last, bottom, "#333")
    for tick in x.ticks(smallest):
        yield _line(x.at(tick), bottom, x.at(tick), bottom + 4, "#333")
        yield _text(x.at(tick), bottom + 18, f"{tick:.6g}", anchor="middle")
    yield _text((x.first + x.last) / 2, bottom + 36, name, anchor="middle")


def _y_axis(y: _Scale, name: str) -> Iterator[str]:
    yield _line(_LEFT, y.first, _LEFT, y.last, "#333")
    for tick in y.ticks():
        yield _line(_LEFT - 4, y.at(tick), _LEFT, y.at(tick), "#333")
        yield _text(_LEFT - 8, y.at(tick) + 4, f"{tick:.6g}", anchor="end")
    middle = (y.first + y.last) / 2
    yield f'<text transform="translate(16 {middle:.0f}) rotate(-90)" text-anchor="middle">{escape(name)}</text>'


def _with_legend(parts: list[str], names: Iterable[str], title: str) -> str:
    left, names = _LEFT + _PLOT_WIDTH + 12, list(names)
    for index, name in enumerate(names):
        y = _TOP + 10 + 20 * index
        parts.append(_line(left, y, left + 20, y, _color(index), width=2))
        parts.append(_text(left + 26, y + 4, name))
    height = _TOP + max(_PLOT_HEIGHT, 20 * len(names)) + _BOTTOM
    return _svg(left + 38 + _width(names), height, parts, title)


def _color(index: int) -> str:
    return _COLORS[index % len(_COLORS)]


def _width(texts: Iterable[str]) -> int:
    return _LETTER * max(map(len, texts), default=0)


def _line(x1: float, y1: float, x2: float, y2: float, color: str, *, width: int = 1, dashes: str = "") -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    place = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {place} stroke="{color}" stroke-width="{width}"{dashed}/>'


def _polyline(points: Sequence[tuple[float, float]], color: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: float, height: float, parts: Sequence[str], title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'font-family="sans-serif" font-size="12" role="img">\n<title>{escape(title)}</title>\n'
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )
