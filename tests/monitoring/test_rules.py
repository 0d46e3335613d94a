"""Every alert by Prometheus' own checker: it fires once, stays quiet once, and has a runbook and metrics that exist."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from burnish.cli.app import run
from burnish.monitoring.catalogue import SERVING, TRAINING
from burnish.monitoring.conditions import CONDITIONS, SILENT
from burnish.monitoring.dashboards import DASHBOARDS
from burnish.monitoring.rules import Rule, rules_yaml, training_rules
from burnish.monitoring.rules import tests_yaml as examples
from burnish.monitoring.runbooks import section_of, sections
from burnish.monitoring.serving_rules import SERVING_RULES
from burnish.monitoring.slo import DEFAULT_OBJECTIVES, burn_rules

PROMTOOL = shutil.which("promtool")
with_promtool = pytest.mark.skipif(PROMTOOL is None, reason="no promtool is here: apt-get install prometheus")
RULES: list[Rule] = [
    *training_rules(),
    *SERVING_RULES,
    *(rule for each in DEFAULT_OBJECTIVES for rule in burn_rules(each)),
]


def series_of_the_catalogue() -> Iterator[str]:
    for spec in (*TRAINING, *SERVING):
        ends = ("_bucket", "_count", "_sum") if spec.kind == "histogram" else ("",)
        yield from (spec.name + end for end in ends)


def named(expr: str) -> set[str]:
    return set(re.findall(r"\bburnish_\w+", expr))


def promtool(*arguments: str | Path) -> tuple[int, str]:
    done = subprocess.run([str(PROMTOOL), *map(str, arguments)], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


@with_promtool
def test_prometheus_takes_the_rules(tmp_path: Path, capsys) -> None:
    assert run(["monitor", "rules", str(tmp_path / "rules.yml")]) == 0
    status, said = promtool("check", "rules", tmp_path / "rules.yml")
    assert status == 0 and f"{len(RULES)} rules found" in said, said


@pytest.mark.slow
@with_promtool
def test_every_rule_fires_once_and_stays_quiet_once(tmp_path: Path, capsys) -> None:
    assert run(["monitor", "rules", str(tmp_path / "rules.yml"), "--tests", str(tmp_path / "tests")]) == 0
    files = sorted((tmp_path / "tests").glob("*.yml"))
    status, said = promtool("test", "rules", *files)
    assert status == 0, said
    cases = [case for file in files for case in yaml.safe_load(file.read_text())["tests"]]
    told = {(t["alertname"], bool(t["exp_alerts"])) for case in cases for t in case["alert_rule_test"]}
    assert told == {(rule.name, fires) for rule in RULES for fires in (True, False)}


@with_promtool
@pytest.mark.parametrize("threshold", [15, -15])
def test_a_rule_that_never_fires_or_always_is_found(tmp_path: Path, threshold: int) -> None:
    """What the test above rests on: promtool says so when a threshold is another one than the example's."""
    rule = next(each for each in RULES if each.name == "ServingSwapStuck")
    wrong = replace(rule, expr=f"burnish_serve_swaps_in_flight > {threshold}")
    (tmp_path / "rules.yml").write_text(rules_yaml([wrong]))
    (content,) = examples([wrong], "rules.yml").values()
    (tmp_path / "test.yml").write_text(content)
    status, said = promtool("test", "rules", tmp_path / "test.yml")
    assert status != 0 and "ServingSwapStuck" in said


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    assert {section_of(rule.name) for rule in RULES} == set(sections())
    assert len({rule.name for rule in RULES}) == len(RULES)


@pytest.mark.parametrize("name", sections())
def test_a_runbook_says_something(name: str) -> None:
    assert len(sections()[name].split()) >= 8
    for command in re.findall(r"`burnish (\w+)", sections()[name]):
        assert run([command, "--help"]) == 0


def test_every_metric_of_a_rule_or_a_panel_is_in_the_catalogue() -> None:
    known = set(series_of_the_catalogue())
    queries = {f"rule {rule.name}": rule.expr for rule in RULES}
    queries |= {f"{board.uid} {p.title}": " ".join(p.queries.values()) for board in DASHBOARDS for p in board.panels}
    queries |= {f"values of {board.uid}": board.values_of for board in DASHBOARDS}
    for where, expr in queries.items():
        assert named(expr) <= known, where
    examples = {series for rule in RULES for series in (*rule.fires, *rule.quiet)}
    assert set().union(*map(named, examples)) <= known


def test_the_guide_names_every_condition() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "monitoring.md").read_text(encoding="utf-8")
    table = guide[guide.index("critical ") : guide.index("```\n\nMost are relative")].split()
    by_severity: dict[str, set[str]] = {}
    for word in table:
        if word in ("critical", "warning", "info"):
            found = by_severity.setdefault(word, set())
        else:
            found.add(word)
    every = (*CONDITIONS, SILENT)
    assert by_severity == {word: {each.name for each in every if each.severity == word} for word in by_severity}
    assert sum(map(len, by_severity.values())) == len(every)


def test_every_condition_has_a_rule_of_its_severity_and_words() -> None:
    by_name = {rule.name: rule for rule in RULES}
    for condition in CONDITIONS:
        rule = by_name["Training" + condition.name.title().replace("_", "")]
        assert rule.severity == condition.severity and rule.summary.endswith(condition.summary)
        assert f'condition="{condition.name}"' in rule.expr
    assert by_name["TrainingSilent"].severity == SILENT.severity


def test_the_guide_names_what_wakes_somebody_for_a_server() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "monitoring.md").read_text(encoding="utf-8")
    found = re.search(r"^Of a server, (.*?) are critical", guide, re.DOTALL | re.MULTILINE)
    assert found
    of_training = {rule.name for rule in training_rules()}
    critical = {rule.name for rule in RULES if rule.severity == "critical"} - of_training
    assert set(re.findall(r"`(\w+)`", found[1])) == critical
    assert {rule.name for rule in RULES if rule.severity == "info"} - of_training == {"ServingDrift"}
