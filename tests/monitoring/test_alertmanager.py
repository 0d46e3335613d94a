"""Who is told of what, by Alertmanager's own tool; no secret stands in what is written."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from burnish.cli.app import run

AMTOOL = shutil.which("amtool")
with_amtool = pytest.mark.skipif(AMTOOL is None, reason="no amtool is here: apt-get install prometheus-alertmanager")
SECRET = "https://hooks.example/T0/B0/secret-of-ours"
KINDS = {
    "slack": {"url_file": "secret", "channel": "#runs"},
    "email": {
        "to": "a@example.org",
        "sender": "b@example.org",
        "smarthost": "mail.example.org:587",
        "username": "b",
        "password_file": "secret",
    },
    "pagerduty": {"key_file": "secret"},
    "webhook": {"url": "http://127.0.0.1:9/told", "token_file": "secret"},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_text(SECRET)
    return tmp_path


def written(folder: Path, receivers: dict) -> Path:
    (folder / "receivers.yaml").write_text(yaml.safe_dump(receivers))
    assert run(["monitor", "alertmanager", "receivers.yaml", "alertmanager.yml"]) == 0
    return folder / "alertmanager.yml"


def amtool(*arguments: str | Path) -> str:
    done = subprocess.run([str(AMTOOL), *map(str, arguments)], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def told(file: Path, **labels: str) -> set[str]:
    pairs = [f"{name}={value}" for name, value in labels.items()]
    return set(amtool("config", "routes", "test", f"--config.file={file}", *pairs).split(","))


@with_amtool
@pytest.mark.parametrize("kind", KINDS)
def test_alertmanager_takes_each_kind(folder: Path, kind: str) -> None:
    file = written(folder, {kind: KINDS[kind]})
    assert "SUCCESS" in amtool("check-config", file)
    assert SECRET not in file.read_text() and str(folder / "secret") in file.read_text()
    assert told(file, severity="critical", alertname="TrainingDown") == {kind}


@with_amtool
def test_every_severity_reaches_whom_it_should(folder: Path) -> None:
    file = written(folder, KINDS)  # by default pagerduty hears critical, slack and email warning, a webhook everything
    assert "SUCCESS" in amtool("check-config", file)
    assert told(file, severity="critical") == {"slack", "email", "pagerduty", "webhook"}
    assert told(file, severity="warning") == {"slack", "email", "webhook"}
    assert told(file, severity="info") == {"webhook"}
    assert told(file, severity="other") == {"nobody"}
    quieter = {
        **KINDS,
        "webhook": {**KINDS["webhook"], "least": "critical"},
        "slack": {**KINDS["slack"], "least": "info"},
    }
    file = written(folder, quieter)
    assert told(file, severity="info") == {"slack"} and told(file, severity="warning") == {"slack", "email"}


@with_amtool
def test_times(folder: Path) -> None:
    file = written(folder, {**KINDS, "wait_seconds": 0, "change_seconds": 2, "again_hours": 0.5})
    amtool("check-config", file)
    route = yaml.safe_load(file.read_text())["route"]
    assert (route["group_wait"], route["group_interval"], route["repeat_interval"]) == ("0s", "2s", "30m")


def silences(file: Path, source: dict[str, str], target: dict[str, str]) -> bool:
    """A naive reading of the inhibit rules: a label that both lack is equal."""

    def matches(matchers: list[str], labels: dict[str, str]) -> bool:
        for matcher in matchers:
            name, sign, value = re.fullmatch(r'(\w+)(=~|!=|=)"(.*)"', matcher).groups()
            has = labels.get(name, "")
            ok = {"=": has == value, "!=": has != value, "=~": re.fullmatch(value, has) is not None}[sign]
            if not ok:
                return False
        return True

    return any(
        matches(rule["source_matchers"], source)
        and matches(rule["target_matchers"], target)
        and all(source.get(name, "") == target.get(name, "") for name in rule.get("equal", ()))
        for rule in yaml.safe_load(file.read_text())["inhibit_rules"]
    )


def test_what_follows_from_something_worse_is_not_told(folder: Path) -> None:
    file = written(folder, KINDS)

    def alert(name: str, severity: str, **labels: str) -> dict[str, str]:
        return {"alertname": name, "severity": severity, **labels}

    run_a, run_b = {"run": "a", "instance": "t:1"}, {"run": "b", "instance": "t:2"}
    blown = alert("TrainingKlBlowUp", "critical", **run_a)
    assert silences(file, blown, alert("TrainingClipping", "warning", **run_a))
    assert not silences(file, blown, alert("TrainingClipping", "warning", **run_b))
    assert not silences(file, blown, alert("TrainingRewardCollapse", "critical", **run_a))
    down = alert("ServingDown", "critical", instance="s:1")
    assert silences(file, down, alert("ServingStalled", "critical", instance="s:1"))
    assert not silences(file, down, alert("ServingStalled", "critical", instance="s:2"))
    assert not silences(file, down, down)
    burning = alert("SloFirstTokenFast", "critical")
    assert silences(file, burning, alert("SloFirstTokenSlow", "warning"))
    # the sum over all servers says nothing of why: what does is told
    assert not silences(file, burning, alert("ServingSlowFirstToken", "warning", model="m"))
    assert not silences(file, burning, alert("ServingCacheFull", "warning", instance="s:1"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs keys: slack, email"),
        ("wait_seconds: 3", "name at least one of slack, email, pagerduty, webhook"),
        ("slack: {url_file: secret}", "slack.channel: Field required"),
        ("slack: {url_file: nowhere, channel: '#a'}", "slack.url_file: nowhere is not there"),
        (
            "email: {to: a, sender: b, smarthost: c, password_file: nowhere}",
            "email.password_file: nowhere is not there",
        ),
        ("pagerduty: {key_file: nowhere}", "pagerduty.key_file: nowhere is not there"),
        ("webhook: {url: 'http://a', token_file: nowhere}", "webhook.token_file: nowhere is not there"),
        ("webhook: {url: 'ftp://a'}", "webhook.url: "),
        ("webhook: {url: 'http://a', least: loud}", "webhook.least: "),
        ("slack: {url_file: secret, channel: '#a', url: x}", "slack.url: "),
        ("webhook: {url: 'http://a'}\nagain_hours: 0.001", "again_hours: "),
        ("{", "cannot be read as YAML"),
    ],
)
def test_bad_files_are_refused_in_a_line(folder: Path, capsys, text: str, message: str) -> None:
    (folder / "receivers.yaml").write_text(text)
    assert run(["monitor", "alertmanager", "receivers.yaml", "alertmanager.yml"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "receivers.yaml: " in said and message in said
    assert not (folder / "alertmanager.yml").exists()


def test_the_keys_are_listed(capsys) -> None:
    assert run(["config", "schema", "receivers"]) == 0
    assert "slack.url_file  (path, required)" in capsys.readouterr().out
    assert run(["config", "schema", "receivers", "--json"]) == 0
    assert "pagerduty" in json.loads(capsys.readouterr().out)["properties"]
