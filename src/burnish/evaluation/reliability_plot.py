"""How often answers are right against how sure the model was, as a small SVG that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from burnish.stats.calibration import Calibration, ReliabilityBin

_SIDE, _LEFT, _TOP, _RIGHT, _BOTTOM = 360, 60, 40, 30, 60
_COLOUR = "#0072b2"
_TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def plot_reliability(label: str, what: str, found: Calibration) -> str:
    """A point for each bin, the larger the more answers it has, with the interval of its share of right answers.

    `what` was taken as confidence. Below the dashed line the model was surer than it is right.
    """
    title = f"{label}: calibration error {found.error:.3f} [{found.low:.3f}, {found.high:.3f}], n {found.n}"
    width, height = _LEFT + _SIDE + _RIGHT, _TOP + _SIDE + _BOTTOM
    largest = max(each.n for each in found.bins)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        'font-family="sans-serif" font-size="12" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(_LEFT, 22, title),
        *_axes(what),
        *(part for each in found.bins for part in _point(each, largest)),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _x(value: float) -> float:
    return _LEFT + value * _SIDE


def _y(value: float) -> float:
    return _TOP + (1 - value) * _SIDE


def _axes(what: str) -> Iterator[str]:
    yield _line(_x(0), _y(0), _x(1), _y(0), "#333")
    yield _line(_x(0), _y(0), _x(0), _y(1), "#333")
    for tick in _TICKS:
        yield _line(_x(tick), _y(0), _x(tick), _y(0) + 4, "#333")
        yield _text(_x(tick), _y(0) + 18, f"{tick:g}", anchor="middle")
        yield _line(_x(0) - 4, _y(tick), _x(0), _y(tick), "#333")
        yield _text(_x(0) - 8, _y(tick) + 4, f"{tick:g}", anchor="end")
    yield _line(_x(0), _y(0), _x(1), _y(1), "#888", more=' stroke-dasharray="4 3"')
    yield _text(_x(0.5), _y(0) + 40, f"how sure: {what}", anchor="middle")
    middle = _y(0.5)
    yield f'<text transform="translate(18 {middle:.0f}) rotate(-90)" text-anchor="middle">share of right answers</text>'


def _point(each: ReliabilityBin, largest: int) -> Iterator[str]:
    x = _x(each.confidence)
    yield _line(x, _y(each.low), x, _y(each.high), _COLOUR, more=' stroke-width="2"')
    radius = 2 + 5 * (each.n / largest) ** 0.5
    spread = f"{each.least:.3f} to {each.most:.3f}"
    yield (
        f'<circle cx="{x:.1f}" cy="{_y(each.right):.1f}" r="{radius:.1f}" fill="{_COLOUR}">'
        f"<title>{each.n} answers, sure by {spread}: {each.right:.3f} right</title></circle>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, *, more: str = "") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{more}/>'


def _text(x: float, y: float, content: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'
