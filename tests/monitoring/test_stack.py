"""`burnish monitor up`: from a server that is gone and a run that is not well to a message, and to the next one that it
is over. Everything is real: the server, the run, Prometheus, Alertmanager.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from burnish.cli.app import run
from burnish.monitoring.rules import rules_yaml, training_rules
from burnish.monitoring.stack import Stack, write_files

from .conftest import ADMIN, serve, watched
from .processes import free_port, post, query, running, text_of, until, with_prometheus

FIRE_SECONDS = 100  # ServingDown waits for a minute
UP = ["monitor", "up", "--train", "127.0.0.1:9"]


@pytest.mark.slow
@with_prometheus
def test_alerts_reach_whoever_is_told_and_end(tiny_folder: Path, tmp_path: Path, monkeypatch) -> None:
    with watched(tmp_path, tiny_folder, monkeypatch) as (made, server):
        assert made.ask(1)["choices"]
        assert made.told == []
        server.send_signal(signal.SIGTERM)
        server.wait(60)
        (tmp_path / "stale").touch()
        fired = until(lambda: made.alert("TrainingStaleness", "firing"), 30, made.logs)
        (run_name,) = [each.name for each in (tmp_path / "runs").iterdir() if each.is_dir()]
        assert (fired["labels"]["run"], fired["labels"]["severity"]) == (run_name, "warning")
        assert fired["annotations"]["runbook_url"] == "http://127.0.0.1:7878/runbooks#TrainingStaleness"
        (tmp_path / "stale").unlink()
        until(lambda: made.alert("TrainingStaleness", "resolved"), 30, made.logs)

        down = until(lambda: made.alert("ServingDown", "firing"), FIRE_SECONDS, made.logs)
        assert down["labels"]["instance"] == f"127.0.0.1:{made.serve_port}" and down["labels"]["severity"] == "critical"
        again = serve(tmp_path, tiny_folder, made.serve_port, made.admin_port)
        with running(tmp_path / "again.log", *again):
            until(lambda: made.alert("ServingDown", "resolved"), 60, made.logs)
            until(lambda: made.query("burnish_serve_ready == 1"), 30, made.logs)
            # the first refusal of all is seen: its counter was there before it
            (tmp_path / "weights" / "broken").mkdir()
            swap = f"http://127.0.0.1:{made.admin_port}/admin/models/tiny/weights"
            with pytest.raises(OSError, match="400"):
                post(swap, {"path": "broken"}, ADMIN)
            until(lambda: made.alert("ServingSwapRefused", "firing"), 30, made.logs)
        names = {alert["labels"]["alertname"] for message in made.told for alert in message["alerts"]}
        assert {name for name in names if name.startswith("Serving")} == {"ServingDown", "ServingSwapRefused"}


@pytest.mark.slow
@with_prometheus
def test_a_finished_run_is_not_down_and_a_killed_one_is(tiny_folder: Path, tmp_path: Path, monkeypatch) -> None:
    """By the rule itself, which needs the last step of the one and the first of the other."""
    monkeypatch.chdir(tmp_path)
    rows = [json.dumps({"prompt": f"say {i}", "completion": f"word {i}"}) + "\n" for i in range(12)]
    (tmp_path / "data.jsonl").write_text("".join(rows))
    ports, prometheus = (free_port(), free_port()), free_port()
    common = ["--data.source", "data.jsonl", "--data.num_held_out", "4", "--data.batch_size", "3"]
    common += ["--model.path", str(tiny_folder), "--model.compute_dtype", "float32"]
    up = ["monitor", "up", *(word for port in ports for word in ("--train", f"127.0.0.1:{port}"))]
    up += ["--scrape-seconds", "1", "--port", str(prometheus)]
    with running(tmp_path / "up.log", *up) as stack:
        ready = f"http://127.0.0.1:{prometheus}"
        until(lambda: text_of(f"{ready}/-/ready"), 60)
        steps = (["--train.num_steps", "30", "--metrics.port", str(ports[0])], ["--metrics.port", str(ports[1])])
        with (
            running(tmp_path / "short.log", "train", "sft", *common, *steps[0]) as short,
            running(tmp_path / "long.log", "train", "sft", *common, *steps[1], "--train.num_steps", "100000") as long,
        ):
            assert short.wait(120) == 0
            assert query(ready, f'last_over_time(burnish_train_step{{instance="127.0.0.1:{ports[0]}"}}[1h]) == 30')
            until(lambda: query(ready, f'burnish_train_step{{instance="127.0.0.1:{ports[1]}"}} > 1'), 60)
            long.kill()
            long.wait(30)
        rule = next(each for each in training_rules() if each.name == "TrainingDown")
        gone = until(lambda: len(query(ready, "up == 0")) == 2 and query(ready, rule.expr), 30)
        assert [each["metric"]["instance"] for each in gone] == [f"127.0.0.1:{ports[1]}"]
        assert stack.poll() is None


@pytest.mark.slow
@with_prometheus
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_all_of_it(tmp_path: Path, number: signal.Signals) -> None:
    """Sent to the whole group, as a terminal does."""
    ports = free_port(), free_port()
    (tmp_path / "receivers.yaml").write_text("webhook: {url: 'http://127.0.0.1:9/'}")
    command = [sys.executable, "-m", "burnish", *UP, "--receivers", "receivers.yaml"]
    command += ["--port", str(ports[0]), "--alertmanager-port", str(ports[1])]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        until(lambda: all(text_of(f"http://127.0.0.1:{port}/-/ready") for port in ports), 60)
        os.killpg(process.pid, number)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 0 and "ended by itself" not in said, said
        assert not any(text_of(f"http://127.0.0.1:{port}/-/ready") for port in ports)
    finally:
        if process.poll() is None:
            process.terminate()  # it ends what it started
            process.wait(60)


@pytest.mark.slow
@with_prometheus
def test_rules_that_prometheus_does_not_take_are_one_line(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slo.yaml").write_text("[{name: A, percent: 99, bad: 'sum((x[WINDOW]', total: 'sum(y[WINDOW])'}]")
    began = time.monotonic()
    assert run([*UP, "--slo", "slo.yaml", "--port", str(free_port())]) == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "prometheus did not get ready" in said and "monitoring" in said
    assert time.monotonic() - began < 25  # it ended, which is not waited out
    assert "SloAFast" in (tmp_path / "monitoring" / "prometheus.log").read_text()


@with_prometheus
def test_a_port_that_is_taken_is_said_and_not_taken_for_ours(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run([*UP, "--port", str(port)]) == 3
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["monitor", "up"], "give what is watched: --train HOST:PORT, --serve HOST:PORT"),
        (["monitor", "up", "--train", "http://127.0.0.1:9100"], "give HOST:PORT"),
        (["monitor", "up", "--serve", "127.0.0.1"], "give HOST:PORT"),
        ([*UP, "--scrape-seconds", "0"], "--scrape-seconds 0: must be at least 1"),
        ([*UP, "--key-file", "none"], "--key-file none: is not there"),
        ([*UP, "--ca-file", "none"], "--ca-file none: is not there"),
        ([*UP, "--receivers", "none"], "none: cannot be read as YAML"),
        ([*UP, "--slo", "none"], "none: cannot be read as YAML"),
        ([*UP, "--port", "70000"], "cannot listen on 127.0.0.1:70000"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, monkeypatch, capsys, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) in (2, 3)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and message in said


def test_without_the_programs(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(UP) == 2
    assert "prometheus is not on this machine: apt install" in capsys.readouterr().err


def test_the_key_and_certificates_are_for_servers_alone(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("monitor-key-0123456789")
    stack = Stack(
        folder=tmp_path / "monitoring",
        train=("127.0.0.1:9100",),
        serve=("127.0.0.1:8000", "https://serve.example:8443", "[::1]:8000"),
        key_file=tmp_path / "key",
        ca_file=tmp_path / "ca.pem",
        prometheus_port=1,
        alertmanager_port=2,
        scrape_seconds=5,
    )
    write_files(stack, rules_yaml(training_rules()), None)
    text = (stack.folder / "prometheus.yml").read_text()
    assert "monitor-key" not in text
    train, server = yaml.safe_load(text)["scrape_configs"]
    assert train == {"job_name": "burnish-train", "static_configs": [{"targets": ["127.0.0.1:9100"]}]}
    assert server["static_configs"] == [
        {"targets": ["127.0.0.1:8000"]},
        {"targets": ["serve.example:8443"], "labels": {"__scheme__": "https"}},
        {"targets": ["[::1]:8000"]},
    ]
    assert server["authorization"] == {"credentials_file": str(tmp_path / "key")}
    assert server["tls_config"] == {"ca_file": str(tmp_path / "ca.pem")}
    assert not (stack.folder / "alertmanager.yml").exists()
