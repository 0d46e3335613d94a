"""The report in Chromium: it asks for nothing; each figure is drawn, its texts inside and beside each other."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from burnish.experiments.report import write_report
from burnish.experiments.runner import run_experiment

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MEASURE = """
<pre id="measured"></pre><script>
const texts = svg => [...svg.querySelectorAll("text")].map(each => [each.textContent, each.getBoundingClientRect()]);
const beside = (a, b) => a.right <= b.left + 1 || a.bottom <= b.top + 1;
const apart = (a, b) => beside(a, b) || beside(b, a);
const measured = [...document.querySelectorAll("svg")].map(svg => {
  const frame = svg.getBoundingClientRect(), written = texts(svg);
  const inside = r => r.left >= frame.left && r.right <= frame.right && r.top >= frame.top && r.bottom <= frame.bottom;
  return {
    title: svg.querySelector("title").textContent, width: frame.width, height: frame.height,
    drawn: [...svg.querySelectorAll("circle,polyline,polygon")].filter(each => each.getBBox().width > 0).length,
    outside: written.filter(([, rect]) => !inside(rect)).map(([text]) => text),
    overlapping: written.flatMap(([text, rect], i) =>
      written.slice(i + 1).filter(([, other]) => !apart(rect, other)).map(([other]) => [text, other])),
  };
});
const asked = performance.getEntriesByType("resource").map(each => each.name);
document.getElementById("measured").textContent = JSON.stringify({figures: measured, asked});
</script></body>
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no browser is here: apt-get install chromium"),
]


def measure(report: Path) -> dict[str, Any]:
    """What the browser makes of a report; no name is resolved for it."""
    page = report.with_name("measured.html")
    page.write_text(report.read_text().replace("</body>", MEASURE))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    profile = f"--user-data-dir={report.parent / 'profile'}"
    command = [str(CHROMIUM), *options, profile, "--window-size=1280,1000", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    (found,) = re.findall(r'<pre id="measured">(.*?)</pre>', done.stdout, re.DOTALL)
    measured: dict[str, Any] = json.loads(unescape(found))
    return measured


def check(measured: dict[str, Any], least: dict[str, int]) -> None:
    """Every figure named by the beginning of its title has that many marks, and none has texts in each other's way."""
    assert measured["asked"] == []
    figures = measured["figures"]
    assert [next(name for name in least if figure["title"].startswith(name)) for figure in figures] == list(least)
    for figure, marks in zip(figures, least.values(), strict=True):
        assert figure["drawn"] >= marks and min(figure["width"], figure["height"]) >= 80, figure
        assert not figure["outside"] and not figure["overlapping"], figure


def scores(seed: int, share: float) -> dict[str, Any]:
    right = round(40 * share) + 2 * seed
    return {"scores": [1.0] * right + [0.0] * (40 - right), "metrics": {"kl": 0.01 * seed + share}}


def test_an_experiment_of_arms(plan_of, runner_of) -> None:
    arms = {"base": {}, "a-longer-name-of-an-arm": {"optimizer.learning_rate": 1e-4}, "c": {"train.num_steps": 9}}
    shares = {"base": 0.3, "a-longer-name-of-an-arm": 0.6, "c": 0.31}
    behaviour = {f"{arm}-seed{seed}": scores(seed, share) for arm, share in shares.items() for seed in range(3)}
    behaviour["c-seed1"] = {"failure": "the gradient's norm is nan: lower optimizer.learning_rate"}
    runner = runner_of(plan_of(arms=arms, secondary=["kl"], margin=0.05), behaviour)
    run_experiment(runner)
    least = {"difference in": 2, "held_out over": 6, "held_out, inter": 3, "share of runs": 3}
    check(measure(write_report(runner.folder)), least)


def test_a_sweep(plan_of, runner_of) -> None:
    space = {"optimizer.learning_rate": {"low": 1e-6, "high": 1e-3, "log": True}}
    plan = plan_of(arms=None, baseline=None, sweep={"space": space, "trials": 4})
    trials = {f"trial-{number:03d}-seed3": scores(number, 0.4) for number in range(4)}
    shares = {"untuned": 0.3, "winner": 0.4}
    anew = {f"{arm}-seed{seed}": scores(seed, share) for arm, share in shares.items() for seed in range(3)}
    runner = runner_of(plan, {**trials, **anew})
    run_experiment(runner)
    least = {"difference in": 1, "held_out over": 4, "held_out, inter": 2, "share of runs": 2}
    check(measure(write_report(runner.folder)), {**least, "held_out, searched": 5, "held_out:": 3})
