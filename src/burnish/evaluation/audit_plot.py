"""Reward and gold over the distance from the start, as a small SVG."""

import math
from collections.abc import Sequence
from html import escape

from burnish.evaluation.reward_audit import RewardAudit

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 400, 60, 20, 40, 50
_COLOURS = {"reward": "#b3541e", "gold": "#1f5f8b"}

Point = tuple[float, float]


def plot_audit(found: RewardAudit) -> str:
    """The gains over the start of reward (the proxy) and gold, gold with its interval, and best-of-n dashed.

    The axis is the square root of the KL where that was measured, and the step where not.
    """
    has_kl = all(step.kl is not None for step in found.steps)
    at = [math.sqrt(step.kl or 0.0) if has_kl else float(step.step) for step in found.steps]
    first = found.steps[0]
    lines = {
        "reward": [(x, step.proxy.value - first.proxy.value) for x, step in zip(at, found.steps, strict=True)],
        "gold": [(x, step.gold.value - first.gold.value) for x, step in zip(at, found.steps, strict=True)],
    }
    bars = [
        (x, step.gold.low - first.gold.value, step.gold.high - first.gold.value)
        for x, step in zip(at, found.steps, strict=True)
    ]
    dashed: dict[str, list[Point]] = {}
    if has_kl and len(found.best_of_n) > 1:
        base = found.best_of_n[0]
        dashed = {
            "reward": [(math.sqrt(each.kl), each.proxy - base.proxy) for each in found.best_of_n],
            "gold": [(math.sqrt(each.kl), each.gold - base.gold) for each in found.best_of_n],
        }
    points = [*lines["reward"], *lines["gold"], *(p for line in dashed.values() for p in line)]
    heights = [*(y for _, y in points), *(end for _, low, high in bars for end in (low, high))]
    frame = _Frame([x for x, _ in points], [y for y in heights if math.isfinite(y)])
    drawn = [_line(frame, line, _COLOURS[name], "") for name, line in lines.items()]
    drawn += [_line(frame, line, _COLOURS[name], ' stroke-dasharray="5 4"') for name, line in dashed.items()]
    drawn += [
        f'<path d="M{frame.x(x):.1f} {frame.y(low):.1f}V{frame.y(high):.1f}" stroke="{_COLOURS["gold"]}"/>'
        for x, low, high in bars
        if math.isfinite(low) and math.isfinite(high)
    ]
    return _page(
        found, frame, drawn, axis="square root of the KL to the start" if has_kl else "step", dashes=bool(dashed)
    )


class _Frame:
    """From numbers to places in the picture."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float]) -> None:
        self.right = max(xs) or 1.0
        self.low, self.high = min(0.0, *ys), max(0.0, *ys)
        if self.high == self.low:
            self.high = self.low + 1.0

    def x(self, value: float) -> float:
        return _LEFT + value / self.right * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return _TOP + (self.high - value) / (self.high - self.low) * (_HEIGHT - _TOP - _BOTTOM)


def _line(frame: _Frame, points: Sequence[Point], colour: str, style: str) -> str:
    places = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points if math.isfinite(y))
    return f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="2"{style}/>'


def _page(found: RewardAudit, frame: _Frame, drawn: Sequence[str], *, axis: str, dashes: bool) -> str:
    def text(x: float, y: float, content: str, anchor: str = "start", colour: str = "#222") -> str:
        return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{colour}">{escape(content)}</text>'

    zero, bottom = frame.y(0.0), _HEIGHT - _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="13" role="img">',
        f"<title>{escape(found.run)}: gains of reward and gold</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        f'<path d="M{_LEFT} {_TOP}V{bottom}M{_LEFT} {zero:.1f}H{_WIDTH - _RIGHT}" stroke="#999"/>',
        *drawn,
        text(_LEFT, 22, f"{found.run}: gain over the start"),
        text(_WIDTH - 190, 22, "reward", colour=_COLOURS["reward"]),
        text(_WIDTH - 130, 22, "gold", colour=_COLOURS["gold"]),
        text((_LEFT + _WIDTH) / 2, _HEIGHT - 12, axis + (" (dashed: best of n)" if dashes else ""), "middle"),
        text(_LEFT - 6, _TOP + 5, f"{frame.high:.3g}", "end"),
        text(_LEFT - 6, bottom, f"{frame.low:.3g}", "end"),
        text(_LEFT, _HEIGHT - 30, "0", "middle"),
        text(_WIDTH - _RIGHT, _HEIGHT - 30, f"{frame.right:.3g}", "end"),
        "</svg>\n",
    ]
    return "\n".join(parts)
