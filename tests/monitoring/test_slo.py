"""Objectives, held to the workbook's numbers, worked out by hand."""

import re
from pathlib import Path

import pytest

from burnish.cli.app import run
from burnish.monitoring.slo import DEFAULT_OBJECTIVES, Objective, burn_rules

from .test_rules import promtool, with_promtool

OWN = """
- name: Pages
  percent: 99.9
  bad: sum(rate(http_requests_total{code=~"5.."}[WINDOW])) - sum(rate(excused_total[WINDOW]))
  total: sum(rate(http_requests_total[WINDOW])) + sum(rate(cached_total[WINDOW]))
"""


def objective(percent: float = 99.9, days: float = 30.0) -> Objective:
    return Objective(name="Own", percent=percent, days=days, bad="bad[WINDOW]", total="all[WINDOW]")


def limits(of: Objective) -> list[float]:
    """The share of bad events that each rule asks for, in both of its windows."""
    found = []
    for rule in burn_rules(of):
        long, short = re.findall(r"> ([\d.e-]+)\) and", rule.expr)
        assert long == short
        found.append(float(long))
    return found


def test_the_workbooks_factors() -> None:
    # Table 5-8: burn rates of 14.4, 6, 3 and 1, of a budget of 0.1 %
    assert limits(objective()) == pytest.approx([0.0144, 0.006, 0.003, 0.001])
    rules = burn_rules(objective())
    windows = [re.findall(r"(?:bad|all)\[(\w+)\]", rule.expr) for rule in rules]
    assert windows == [[a, a, b, b, a] for a, b in (("1h", "5m"), ("6h", "30m"), ("1d", "2h"), ("3d", "6h"))]
    assert [rule.severity for rule in rules] == ["critical", "critical", "warning", "warning"]
    assert [rule.name for rule in rules] == ["SloOwnFast", "SloOwnSteady", "SloOwnSlow", "SloOwnCreeping"]


def test_fewer_days_and_small_promises() -> None:
    # 7 days: 2 % in 1 of 168 hours is a rate of 3.36; 5 % in 6 is 1.4; the others would be 0.7 and 0.23, at which
    # the budget lasts
    assert limits(objective(days=7)) == pytest.approx([0.00336, 0.0014, 0.001, 0.001])
    # of a budget of 20 %, 14.4 times as much is more than everything
    assert limits(objective(percent=80)) == pytest.approx([0.99, 0.99, 0.6, 0.2])


def test_nobody_is_called_for_one_of_two() -> None:
    (fast, *_) = burn_rules(objective())
    assert fast.expr.endswith("((all[1h]) * 3600 > 50)")  # rate times the seconds of the window


def test_the_promises_that_are_there() -> None:
    by_name = {each.name: limits(each) for each in DEFAULT_OBJECTIVES}
    assert by_name["Answers"] == pytest.approx([0.072, 0.03, 0.015, 0.005])
    assert by_name["FirstToken"] == pytest.approx([0.72, 0.3, 0.15, 0.05])


@with_promtool
def test_own_objectives(tmp_path: Path, capsys) -> None:
    (tmp_path / "slo.yaml").write_text(OWN)
    out = tmp_path / "rules.yml"
    assert run(["monitor", "rules", str(out), "--slo", str(tmp_path / "slo.yaml")]) == 0
    status, said = promtool("check", "rules", out)
    assert status == 0, said
    text = out.read_text()
    assert "SloPagesFast" in text and "SloAnswersFast" not in text and "ServingDown" in text
    # a sum and a difference are each taken whole
    assert (
        '(sum(rate(http_requests_total{code=~"5.."}[1h])) - sum(rate(excused_total[1h]))) / '
        "(sum(rate(http_requests_total[1h])) + sum(rate(cached_total[1h]))) > 0.0144"
    ) in text


@pytest.mark.slow
@with_promtool
def test_a_difference_is_not_divided_in_its_second_part_alone(tmp_path: Path, capsys) -> None:
    """100 of 1000 answers failed, 99 of them excused: 0.1 % is bad, which is no fast burn."""
    (tmp_path / "slo.yaml").write_text(OWN)
    out = tmp_path / "rules.yml"
    assert run(["monitor", "rules", str(out), "--slo", str(tmp_path / "slo.yaml")]) == 0
    (tmp_path / "test.yml").write_text(
        f"""
rule_files: [{out}]
evaluation_interval: 1m
tests:
- interval: 1m
  input_series:
  - {{series: 'http_requests_total{{code="500"}}', values: '0+100x70'}}
  - {{series: 'http_requests_total{{code="200"}}', values: '0+900x70'}}
  - {{series: 'excused_total', values: '0+99x70'}}
  - {{series: 'cached_total', values: '0+0x70'}}
  alert_rule_test:
  - {{eval_time: 65m, alertname: SloPagesFast, exp_alerts: []}}
"""
    )
    status, said = promtool("test", "rules", tmp_path / "test.yml")
    assert status == 0, said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "needs a list of objectives"),
        ("name: Pages", "needs a list of objectives"),
        (": : :", "cannot be read as YAML"),
        (OWN.replace("99.9", "100"), "objective 1: percent: Input should be less than 100"),
        (
            OWN.replace("[WINDOW])) - ", "[5m])) - ").replace("WINDOW])) +", "5m])) +").replace("[WINDOW]", "[5m]"),
            "bad:",
        ),
        (OWN.replace("Pages", "My pages"), "name:"),
        (OWN + OWN, "two objectives have one name"),
        (OWN + "  colour: red\n", "colour:"),
        ("- just text", "objective 1: needs keys: name, percent"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, capsys, text: str, message: str) -> None:
    file = tmp_path / "slo.yaml"
    file.write_text(text)
    assert run(["monitor", "rules", str(tmp_path / "rules.yml"), "--slo", str(file)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and str(file) in said.err and message in said.err
    assert not (tmp_path / "rules.yml").exists()


def test_a_file_that_is_not_there(tmp_path: Path, capsys) -> None:
    assert run(["monitor", "rules", "--slo", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: cannot be read as YAML" in capsys.readouterr().err
