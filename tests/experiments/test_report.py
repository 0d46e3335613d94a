"""From run folders to the report, and the command around it, with the scripted trainer."""

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from burnish.cli.app import run
from burnish.errors import UserError
from burnish.experiments.figures import Row, forest, learning_curves, profiles
from burnish.experiments.report import write_report
from burnish.experiments.runner import run_experiment

# held-out means: base 0.25 0.5 0.25, fast 0.5 1.0 0.75; differences 0.25 0.5 0.5
SCORES = {
    "base-seed0": [1, 0, 0, 0],
    "base-seed1": [1, 1, 0, 0],
    "base-seed2": [0, 0, 0, 1],
    "fast-seed0": [1, 1, 0, 0],
    "fast-seed1": [1, 1, 1, 1],
    "fast-seed2": [0, 1, 1, 1],
}
BEHAVIOUR = {name: {"scores": scores, "metrics": {"kl": 0.1 * len(name)}} for name, scores in SCORES.items()}


@pytest.fixture
def ran(plan_of, runner_of):
    """Run an experiment with these changes of its file and of the trainer's behaviour; its runner."""

    def make(behaviour=None, **changes):
        runner = runner_of(plan_of(**changes), {**BEHAVIOUR, **(behaviour or {})}, max_parallel=2)
        run_experiment(runner)
        return runner

    return make


def test_the_numbers_by_hand(ran) -> None:
    folder = ran(margin=0.9).folder
    write_report(folder)
    report = json.loads((folder.path / "report.json").read_text())
    base, fast = report["analysis"]["arms"]
    assert (base["values"], fast["values"]) == ({"0": 0.25, "1": 0.5, "2": 0.25}, {"0": 0.5, "1": 1.0, "2": 0.75})
    assert base["mean"]["value"] == pytest.approx(1 / 3) and fast["mean"]["value"] == pytest.approx(0.75)
    (claim,) = report["analysis"]["claims"]
    # squared error over items 11/432 on 3 degrees, which holds all of the error over seeds: 1/144 on 2
    error = (11 / 432) ** 0.5
    assert claim["estimate"]["value"] == pytest.approx(5 / 12)
    assert claim["estimate"]["standard_error"] == pytest.approx(error)
    assert claim["estimate"]["low"] == pytest.approx(5 / 12 - 3.182446 * error, abs=1e-6)
    assert claim["verdict"] == "equivalent"  # 5/12 + 2.353363 * error, the one-sided bound, is 0.792 and below 0.9
    # nothing of the error is the seeds' alone, so twice the items halve its square
    assert re.fullmatch(
        r"over seeds and 4 items; twice the seeds leave \d+% of the error, twice the items 71%", claim["note"]
    )
    assert report["plan_sha256"] == folder.versions()[-1].sha256


def test_markdown_and_html_say_the_same(ran) -> None:
    folder = ran().folder
    path = write_report(folder)
    text, html = (folder.path / "report.md").read_text(), path.read_text()
    line = "fast: held_out +0.4167, 95% CI [-0.09116, +0.9245], adjusted p = 0.08, 3 seeds: undecided"
    assert line in text and line in html
    assert "| fast-seed1 | finished | 4 |" in text and "<td>fast-seed1</td><td>finished</td>" in html
    for linked in re.findall(r"\((figures/\w+\.svg)\)", text):
        ElementTree.parse(folder.path / linked)
    assert html.count("<svg") == 4 and not re.search(r"(src|href)=|url\(|@import", html)


def test_a_diverged_run_stays_in_every_table(ran) -> None:
    failure = "the gradient's norm is nan: lower optimizer.learning_rate"
    folder = ran({"fast-seed2": {"failure": failure}}).folder
    write_report(folder)
    text = (folder.path / "report.md").read_text()
    assert re.search(rf"\| fast-seed2 \| diverged \|.*{failure} \|", text)
    assert "| fast | 2/3 |" in text and "lost: fast-seed2 (diverged)" in text


def test_metrics_that_were_not_planned_are_exploratory(ran) -> None:
    folder = ran().folder
    write_report(folder, also=["loss", "held_out"])
    text = (folder.path / "report.md").read_text()
    assert text.count("## Exploratory comparisons") == 1
    assert "| fast | loss |" in text.partition("## Exploratory comparisons")[2]


def test_an_unknown_metric_names_those_there_are(ran) -> None:
    with pytest.raises(UserError, match=r"metric 'losss': no finished run has it; they have held_out, kl, loss"):
        write_report(ran().folder, also=["losss"])


def test_an_amendment_is_shown_with_its_difference(ran, plan_of) -> None:
    folder = ran().folder
    folder.write_plan(plan_of(secondary=["loss"]), reason="the loss is of interest too")
    write_report(folder)
    text = (folder.path / "report.md").read_text()
    assert "the loss is of interest too" in text and '- secondary: [] -> [{"name": "loss"' in text
    assert "| fast | loss |" in text.partition("## Exploratory comparisons")[2]
    planned = text.partition("## Result")[2].partition("##")[0]
    assert "adjusted p = 0.08" in planned  # what was planned is judged as before


def test_runs_beside_the_plan_are_named(ran) -> None:
    folder = ran().folder
    (one,) = folder.runs.glob("fast-seed0-*")
    other = one.with_name("fast-seed9-abcdef")
    other.mkdir()
    (other / "run.json").write_text((one / "run.json").read_text())
    write_report(folder)
    assert "count nowhere: fast-seed9" in (folder.path / "report.md").read_text()


def test_nothing_to_report(plan_of, folder) -> None:
    folder.write_plan(plan_of())
    with pytest.raises(UserError, match="nothing was run yet"):
        write_report(folder)


def test_names_cannot_break_the_page(ran) -> None:
    folder = ran(question="Is <b>a</b> & b | c better?").folder
    path = write_report(folder)
    assert "Is &lt;b&gt;a&lt;/b&gt; &amp; b | c better?" in path.read_text()


def test_the_commands_that_read(ran, capsys, tmp_path: Path) -> None:
    folder = ran({"fast-seed2": {"says": "no such file"}}).folder
    where = ["--experiments-folder", str(folder.path.parent)]
    assert run(["experiment", "status", "tried", *where]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["run", "state", "step", "seconds"] and len(lines) == 8
    assert lines[-1] == "5 finished, 1 failed" or lines[-1] == "1 failed, 5 finished"
    assert run(["experiment", "status", str(tmp_path / "experiment.yaml"), "--json", *where]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {each["run"]: each["reason"] for each in told["runs"]}["fast-seed2"] == "no such file"
    assert run(["experiment", "report", "tried", *where]) == 0
    printed = capsys.readouterr().out
    assert "fast: held_out" in printed and printed.splitlines()[-1].endswith("report.html")
    assert run(["experiment", "report", "tried", "--json", *where]) == 0
    assert json.loads(capsys.readouterr().out)["analysis"]["metric"] == "held_out"
    assert run(["experiment", "status", "none", *where]) == 2
    assert "no plan of an experiment 'none'" in capsys.readouterr().err


def places(svg: str) -> list[float]:
    """Where the circles of a figure are, from left to right in the order of the rows."""
    return [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', svg)]


def test_a_forest_plot_is_to_scale() -> None:
    rows = [Row(label=f"arm & {v}", value=v, low=v - 1, high=v + 1, text="") for v in (0.0, 1.0, 3.0)]
    svg = forest(rows, axis="difference", zero=0.0, margin=0.5)
    ElementTree.fromstring(svg)
    a, b, c = places(svg)
    assert c - b == pytest.approx(2 * (b - a), abs=0.2)


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-9, 1e9])
def test_figures_of_a_single_value(value: float) -> None:
    nan = float("nan")
    for svg in (
        forest([Row(label="a", value=value, low=nan, high=nan, text="")], axis="x", zero=0.0),
        forest([Row(label="a", value=nan, low=nan, high=nan, text="")], axis="x"),
        learning_curves({"a": {0: {1: value}}}, axis="x"),
        learning_curves({"a": {0: {1: value}, 1: {2: value}}}, axis="x"),
        profiles({"a": [(value, 1.0), (value, 0.0)]}, axis="x"),
    ):
        ElementTree.fromstring(svg)
        assert "nan" not in svg and "inf" not in svg


def test_a_band_spans_the_seeds() -> None:
    svg = learning_curves({"a": {0: {0: 0.0, 1: 1.0}, 1: {0: 0.5, 1: 0.0}, 2: {0: 0.25, 1: 0.5, 2: 9.0}}}, axis="x")
    (polygon,) = re.findall(r'<polygon points="([^"]+)"', svg)
    (line,) = re.findall(r'<polyline points="([^"]+)"', svg)
    heights = [float(point.split(",")[1]) for point in polygon.split()]
    low, mean = heights[0], [float(point.split(",")[1]) for point in line.split()]
    assert len(heights) == 4 and len(mean) == 2  # step 2 is not of every seed
    high = heights[-1]
    assert mean[0] == pytest.approx((low + high) / 2, abs=0.11)
