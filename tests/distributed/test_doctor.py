"""What burnish doctor says of machines."""

import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import burnish
from burnish.cli.app import run
from burnish.distributed.doctor import ClusterReport, Link, Machine, examine
from burnish.reproducibility.code_state import package_sha256


@pytest.fixture(scope="module")
def machine() -> Machine:
    return examine()


def test_this_machine(capsys: pytest.CaptureFixture[str], machine: Machine) -> None:
    assert run(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert f"{machine.cores} cores" in shown
    assert "float32" in shown and "GFLOP/s" in shown
    assert f"torch {machine.packages['torch']}" in shown
    assert f"{machine.device}, {machine.dtype}" in shown
    assert f"{burnish.__version__}, its files {package_sha256()[:12]}" in shown
    assert str(Path(burnish.__file__).parent) in shown
    assert f"{platform.system()} {platform.release()} {platform.machine()}" in shown


def test_extras_that_are_not_whole_are_named(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    missing = {"demo": [], "lora": ["peft"], "serve": ["h11", "uvicorn"], "sweep": []}
    monkeypatch.setattr("burnish.cli.doctor.missing_of_extras", lambda: missing)
    assert run(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1)[1] for line in lines if line.startswith("  extras")] == ["demo, sweep"]
    assert [line for line in lines if "not installed" in line] == [
        "  not installed  lora, serve: pip install 'burnish[NAME]'"
    ]


def test_what_one_machine_lacks(machine: Machine) -> None:
    enough: dict[str, Any] = {"available_bytes": 10**11, "disk_bytes": 10**12, "gpus": ("any",)}
    assert replace(machine, **enough).problems() == []
    assert "2.0 GB of memory are free" in replace(machine, **{**enough, "available_bytes": 2 * 10**9}).problems()[0]
    assert "1.0 GB are free on the disk" in replace(machine, **{**enough, "disk_bytes": 10**9}).problems()[0]
    assert replace(machine, **{**enough, "gpus": ()}).problems() == ["torch finds no GPU: everything runs on the CPU"]


def test_what_does_not_fit_together(machine: Machine) -> None:
    link = Link(host="a", bytes_a_second=1e9, clock_seconds=0.0)
    a, b = replace(machine, host="a"), replace(machine, host="b")
    assert ClusterReport(machines=[a, b], links=[link, link], sum_seconds=0.1).problems() == []
    other = replace(b, code="else", packages={**b.packages, "torch": "1.0"})
    slow = Link(host="b", bytes_a_second=1e6, clock_seconds=-30.0)
    found = ClusterReport(machines=[a, other], links=[link, slow], sum_seconds=None).problems()
    assert found == [
        "b has another burnish than a: install the same on every node",
        f"b has torch 1.0, and a {a.packages['torch']}",
        "the clock of b is -30.0 s off",
        "b takes 1 MB/s: publishing weights will be slow",
        "the nodes could not form a group: see that they reach each other's ports",
    ]
