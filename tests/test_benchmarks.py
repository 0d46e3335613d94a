"""The programs of benchmarks/, on the tiny model."""

import importlib
import json
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
RUN = {"step": 4.0, "peak_rss_gb": 1.0}


@pytest.fixture
def load(monkeypatch):
    """A program as a module, found as it finds its neighbours when it is started."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def named(name: str) -> ModuleType:
        return importlib.import_module(name)

    return named


@pytest.mark.slow
def test_no_point_of_growth_counts_what_the_optimizer_keeps(load, monkeypatch, tiny_folder, tmp_path) -> None:
    growth = load("growth")
    drawn = []
    monkeypatch.setattr(growth, "MODEL", str(tiny_folder))
    monkeypatch.setattr(growth, "AXES", {"group": [growth.Size(group=2, prompt=8, completion=8)] * 2})
    monkeypatch.setattr(growth, "draw", lambda found, path: drawn.append(found))
    monkeypatch.setattr(growth.allocator, "choose", lambda **settings: None)
    monkeypatch.setattr(growth.torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(sys, "argv", ["growth.py", "--plot", str(tmp_path / "growth.svg"), "group"])
    growth.main()
    first, second = drawn[0]["group"]
    assert first.beside_bytes == second.beside_bytes > 0


@pytest.mark.slow
def test_every_run_computes_the_reference_of_dpo(load, monkeypatch, tiny_folder, tmp_path, capsys) -> None:
    side = load("burnish_side")
    monkeypatch.setattr(side, "MODEL", str(tiny_folder))
    monkeypatch.setattr(side, "restart_for_tensors", lambda: None)
    monkeypatch.setattr(sys, "argv", ["burnish_side.py", "dpo", "--steps", "1", "--new", "8"])
    kept = tmp_path / "cache"
    monkeypatch.setenv("BURNISH_CACHE", str(kept))
    asked = []
    score = side.Learning.compute_reference

    def counted(self, roles, say, **options) -> None:
        score(self, roles, asked.append, **options)

    monkeypatch.setattr(side.Learning, "compute_reference", counted)
    for _ in range(2):
        monkeypatch.setitem(os.environ, "BURNISH_CACHE", str(kept))
        side.main()
    assert asked == ["computing the reference's log-probabilities of 17 examples"] * 2
    assert not kept.exists()
    runs = [json.loads(line.split(" ", 2)[2]) for line in capsys.readouterr().out.splitlines()]
    assert all(run["reference"] > 0 for run in runs)


def test_what_is_read_in_bulk_is_measured(load, monkeypatch, capsys) -> None:
    for name, arguments in (("compare_tables", ["--items", "40", "--samples", "2"]), ("runs_list", ["5"])):
        program = load(name)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        program.main()
    said = capsys.readouterr().out
    assert all(f"| {kind} |" in said for kind in load("compare_tables").KINDS)
    assert "5 runs listed in" in said


def test_a_layout_has_a_lag_and_a_prediction(load) -> None:
    scaling = load("scaling")
    local = [{"seconds_sample": 2.0, "seconds_learn": 4.0}] * 2
    lines = [{"seconds": 5.0, "seconds_sample": 1.0, "seconds_learn": 4.0, "tokens": 100, "seconds_publish": 0.5}] * 2
    expected = scaling.predicted("1x1x2x1", local, lines)
    assert expected.step_seconds == pytest.approx(4.5)  # sampling, a second of it, is hidden
    assert (expected.idle_learners, expected.idle_generators) == pytest.approx((0.0, 1 - 1 / 4.5))
    assert scaling.predicted("2x1x1", local, lines).step_seconds == pytest.approx(2 + 2 + 0.5)
    assert scaling.row("1x1x2x1", lines, expected).startswith("| 1x1x2x1 | 5.00 | 4.50 | 100 | 25 | 0.50 | 0 |")


def test_a_row_says_the_ratio_with_and_without_the_reference(load) -> None:
    compare = load("compare")
    ours = [{**RUN, "step": 1.0, "reference": seconds} for seconds in (0.6, 0.05, 0.9)]
    assert "| 4.00x |" in compare.row("dpo", [RUN] * 3, ours)
    assert compare.row("dpo", [RUN] * 3, ours).endswith("| 2.50x with the reference, 0.60 s |")
    assert compare.row("sft", [RUN], [{**RUN, "reference": 0.0}]).endswith("| 1.00x | 1.00 | 1.00 |  |")
