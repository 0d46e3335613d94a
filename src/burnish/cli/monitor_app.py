"""`burnish monitor`: rules, receivers and dashboards for Prometheus, Alertmanager and Grafana."""

from __future__ import annotations

import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from burnish.cli.arguments import AsJson, Run, RunsFolder
from burnish.cli.json_output import print_json
from burnish.errors import MachineError, UserError
from burnish.monitoring.console import Waiting

if TYPE_CHECKING:
    from burnish.monitoring.rules import Rule

monitor_app = App(
    name="monitor",
    help="""Metrics, alert rules, dashboards; Prometheus and Alertmanager started here.

    Example: burnish monitor up --train 127.0.0.1:9464 --serve 127.0.0.1:8000
    """,
)

Runbooks = Annotated[str, Parameter(help="Where alerts say that their runbook is; `burnish ui` has them there.")]
Slo = Annotated[Path | None, Parameter(help="Your objectives, a YAML list; else 99.5 % of answers, 95 % within 2.5 s.")]
_RUNBOOKS = "http://127.0.0.1:7878/runbooks"
_LOOK_SECONDS = 0.5


@monitor_app.command
def rules(
    out: Path | None = None, *, slo: Slo = None, runbooks: Runbooks = _RUNBOOKS, tests: Path | None = None
) -> int:
    """Write Prometheus' alert rules for training and serving.

    Example: burnish monitor rules rules.yml --tests .

    Parameters
    ----------
    out
        File to write; printed where none is given.
    tests
        Folder for files that `promtool test rules` takes, in which each rule fires once and stays quiet once.
    """
    from burnish.monitoring.rules import rules_yaml, tests_yaml
    from burnish.reproducibility.files import write_text

    known, own = _rules(slo)
    text = rules_yaml([*known, *own], runbooks)
    if out is None:
        if tests is not None:
            raise UserError("--tests needs a file of rules, OUT, to test")
        print(text, end="")
        return 0
    write_text(out, text)
    print(f"{len(known) + len(own)} rules in {out}; check them with: promtool check rules {out}")
    if tests is not None:
        tests.mkdir(parents=True, exist_ok=True)
        for interval, content in tests_yaml(known, str(out.resolve()), runbooks).items():
            write_text(tests / f"{out.stem}-test-{interval}.yml", content)
        print(f"run their tests with: promtool test rules {tests}/{out.stem}-test-*.yml")
    return 0


@monitor_app.command
def alertmanager(receivers: Path, out: Path | None = None) -> int:
    """Write Alertmanager's configuration from a file that says who is told.

    Example: burnish monitor alertmanager receivers.yaml alertmanager.yml

    Parameters
    ----------
    receivers
        YAML with one or more of slack, email, pagerduty, webhook; `burnish config schema receivers` has the keys.
    out
        File to write; printed where none is given.
    """
    from burnish.monitoring.alertmanager import alertmanager_yaml, read_receivers

    return _write(alertmanager_yaml(read_receivers(receivers)), out)


@monitor_app.command
def dashboards(folder: Path) -> int:
    """Write Grafana's dashboards for training, rollouts, serving and canary into a folder.

    Example: burnish monitor dashboards dashboards
    """
    from burnish.monitoring.dashboards import DASHBOARDS, dashboard_json
    from burnish.reproducibility.files import write_text

    folder.mkdir(parents=True, exist_ok=True)
    for each in DASHBOARDS:
        write_text(folder / f"{each.uid}.json", dashboard_json(each))
        print(folder / f"{each.uid}.json")
    return 0


@monitor_app.command
def metrics(out: Path | None = None, *, as_json: AsJson = False) -> int:
    """Write what every metric means, as Markdown.

    Example: burnish monitor metrics metrics.md
    """
    from burnish.monitoring.catalogue import SERVING, TRAINING, catalogue_page

    if as_json:
        if out is not None:
            raise UserError(f"--json prints, and {out} would be left as it is: give one of the two")
        print_json({"training": TRAINING, "serving": SERVING})
        return 0
    return _write(catalogue_page(), out)


@monitor_app.command
def runbook(alert: str, *, as_json: AsJson = False) -> int:
    """Print what to do about an alert.

    Example: burnish monitor runbook TrainingSilent
    """
    from burnish.monitoring.runbooks import runbook as section

    if as_json:
        print_json({"alert": alert, "runbook_markdown": section(alert)})
    else:
        print(section(alert))
    return 0


@monitor_app.command
def check(run: Run, *, runs_folder: RunsFolder = Path("runs"), as_json: AsJson = False) -> int:
    """Look at a run that is over with today's guards: what they would have said.

    Example: burnish monitor check last
    """
    from burnish.reproducibility.run_folder import RunFolder

    found = RunFolder.find(run, runs_folder)
    with Waiting("looking at the run"):
        from burnish.algorithms.guarding import guards_of
        from burnish.algorithms.session import lag_of
        from burnish.cli.train import run_config

        config = run_config(found)
        lines = found.metrics()
        alerts = guards_of(config, lag_of(config)).replay(lines)
    if as_json:
        print_json({"run": str(found.path), "num_steps": len(lines), "alerts": [alert.line() for alert in alerts]})
        return 1 if alerts else 0
    for alert in alerts:
        print(f"step {alert.step}: {alert.text}")
    print(f"{found.path}: {len(lines)} steps, {sum(alert.state == 'firing' for alert in alerts)} alerts")
    return 1 if alerts else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where Prometheus and Alertmanager keep their things and listen."""

    folder: Annotated[Path, Parameter(name="--folder", help="For files, data and logs.")] = Path("monitoring")
    port: Annotated[int, Parameter(name="--port", help="Port of Prometheus.")] = 9090
    alertmanager_port: Annotated[int, Parameter(name="--alertmanager-port", help="Port of Alertmanager.")] = 9093
    scrape_seconds: Annotated[int, Parameter(name="--scrape-seconds", help="How often is looked.")] = 15


@monitor_app.command
def up(
    *,
    train: Annotated[tuple[str, ...], Parameter(negative="", help="host:port of a run's metrics.port.")] = (),
    serve: Annotated[tuple[str, ...], Parameter(negative="", help="host:port of a server; https:// for TLS.")] = (),
    receivers: Annotated[Path | None, Parameter(help="Who is told; else alerts show in Prometheus alone.")] = None,
    key_file: Annotated[Path | None, Parameter(help="A file with a key of the role monitor, alone.")] = None,
    ca_file: Annotated[Path | None, Parameter(help="Certificates that a server's may be signed by.")] = None,
    places: Annotated[Places, Parameter(name="*")] = Places(),
    slo: Slo = None,
    runbooks: Runbooks = _RUNBOOKS,
) -> int:
    """Start this machine's Prometheus and Alertmanager with our files, until Ctrl-C.

    Example: burnish monitor up --train 127.0.0.1:9464 --serve 127.0.0.1:8000
    """
    from burnish.monitoring.alertmanager import alertmanager_yaml, read_receivers
    from burnish.monitoring.rules import rules_yaml
    from burnish.monitoring.stack import Stack, running, write_files

    if not train and not serve:
        raise UserError("give what is watched: --train HOST:PORT, --serve HOST:PORT")
    for flag, file in (("--key-file", key_file), ("--ca-file", ca_file)):
        if file is not None and not file.is_file():
            raise UserError(f"{flag} {file}: is not there")
    if places.scrape_seconds < 1:
        raise UserError(f"--scrape-seconds {places.scrape_seconds}: must be at least 1")
    known, own = _rules(slo)
    told = None if receivers is None else alertmanager_yaml(read_receivers(receivers))
    stack = Stack(
        folder=places.folder,
        train=train,
        serve=serve,
        key_file=key_file,
        ca_file=ca_file,
        prometheus_port=places.port,
        alertmanager_port=places.alertmanager_port,
        scrape_seconds=places.scrape_seconds,
    )
    write_files(stack, rules_yaml([*known, *own], runbooks), told)
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell's & has it ignored
        signal.signal(number, signal.default_int_handler)
    with suppress(KeyboardInterrupt), running(stack, tells=told is not None) as ended:
        print(f"Prometheus on http://127.0.0.1:{places.port}/alerts", file=sys.stderr, flush=True)
        if told is not None:
            print(f"Alertmanager on http://127.0.0.1:{places.alertmanager_port}", file=sys.stderr, flush=True)
        while (name := ended()) is None:
            time.sleep(_LOOK_SECONDS)
        raise MachineError(f"{name} ended by itself: see its log in {places.folder}")
    return 0


def _rules(slo: Path | None) -> tuple[list[Rule], list[Rule]]:
    """Our rules, and those of objectives that are given instead of ours."""
    from burnish.monitoring.rules import training_rules
    from burnish.monitoring.serving_rules import SERVING_RULES
    from burnish.monitoring.slo import DEFAULT_OBJECTIVES, burn_rules, read_objectives

    known = [*training_rules(), *SERVING_RULES]
    if slo is not None:
        return known, [rule for each in read_objectives(slo) for rule in burn_rules(each)]
    return [*known, *(rule for each in DEFAULT_OBJECTIVES for rule in burn_rules(each))], []


def _write(text: str, out: Path | None) -> int:
    from burnish.reproducibility.files import write_text

    if out is None:
        print(text, end="")
    else:
        write_text(out, text)
        print(out)
    return 0
