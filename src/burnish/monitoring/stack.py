"""Prometheus and Alertmanager of this machine with burnish's files, started and ended together."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from burnish.errors import ConfigError, MachineError, UserError
from burnish.monitoring.rules import SERVE_JOB, TRAIN_JOB
from burnish.reproducibility.files import write_text

_READY_SECONDS = 30.0
_STOP_SECONDS = 10.0
_LOOK_SECONDS = 0.1
_TARGET = re.compile(r"(https://)?([\w.-]+|\[[0-9a-fA-F:]+\]):\d{1,5}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """What is watched, HOST:PORT each, and where; a server with TLS is https://HOST:PORT. A key file holds the key of
    the role monitor, for servers that have keys; a CA file the certificates that a server's may be signed by.
    """

    folder: Path
    train: Sequence[str]
    serve: Sequence[str]
    key_file: Path | None
    ca_file: Path | None
    prometheus_port: int
    alertmanager_port: int
    scrape_seconds: int


def write_files(stack: Stack, rules: str, alertmanager: str | None) -> None:
    """Write prometheus.yml, rules.yml and, if somebody is to be told, alertmanager.yml into the folder.

    Raises:
        UserError: what is to be watched is no HOST:PORT.
    """
    for target in (*stack.train, *stack.serve):
        if _TARGET.fullmatch(target) is None:
            raise UserError(f"{target}: give HOST:PORT, or https://HOST:PORT for a server with TLS")
    stack.folder.mkdir(parents=True, exist_ok=True)
    write_text(stack.folder / "rules.yml", rules)
    tree: dict[str, object] = {
        "global": {
            "scrape_interval": f"{stack.scrape_seconds}s",
            "scrape_timeout": f"{min(stack.scrape_seconds, 10)}s",
            "evaluation_interval": f"{stack.scrape_seconds}s",
        },
        "rule_files": ["rules.yml"],
        "scrape_configs": [
            {"job_name": job, "static_configs": [_static(each) for each in targets], **access}
            for job, targets, access in ((TRAIN_JOB, stack.train, {}), (SERVE_JOB, stack.serve, _access(stack)))
            if targets
        ],
    }
    if alertmanager is not None:
        write_text(stack.folder / "alertmanager.yml", alertmanager)
        address = f"127.0.0.1:{stack.alertmanager_port}"
        tree["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [address]}]}]}
    write_text(stack.folder / "prometheus.yml", yaml.safe_dump(tree, sort_keys=False))


@contextmanager
def running(stack: Stack, *, tells: bool) -> Iterator[Callable[[], str | None]]:
    """Both programs, ready, until the context ends. Yields what says whether one of them has ended, and which.

    Raises:
        ConfigError: a program is not there.
        MachineError: a port is taken, or one does not get ready; its log is in the folder.
    """
    prometheus = _program("prometheus")
    alertmanager = _program("prometheus-alertmanager", "alertmanager") if tells else None
    for port in (stack.prometheus_port, *([stack.alertmanager_port] if tells else [])):
        _require_free(port)  # else whoever has it would pass for ours
    with ExitStack() as at_the_end:
        started = {}
        if alertmanager is not None:
            command = [
                alertmanager,
                "--config.file=alertmanager.yml",
                "--storage.path=alertmanager-data",
                f"--web.listen-address=127.0.0.1:{stack.alertmanager_port}",
                "--cluster.listen-address=",
            ]
            started["alertmanager"] = _started(command, stack.folder, at_the_end)
            _wait_ready("alertmanager", started["alertmanager"], stack.alertmanager_port, stack.folder)
        command = [
            prometheus,
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=prometheus-data",
            f"--web.listen-address=127.0.0.1:{stack.prometheus_port}",
        ]
        started["prometheus"] = _started(command, stack.folder, at_the_end)
        _wait_ready("prometheus", started["prometheus"], stack.prometheus_port, stack.folder)

        def ended() -> str | None:
            return next((name for name, process in started.items() if process.poll() is not None), None)

        yield ended


def _static(target: str) -> dict[str, object]:
    place = target.removeprefix("https://")
    return {"targets": [place], **({} if place == target else {"labels": {"__scheme__": "https"}})}


def _access(stack: Stack) -> dict[str, object]:
    found: dict[str, object] = {}
    if stack.key_file is not None:
        found["authorization"] = {"credentials_file": str(stack.key_file.resolve())}
    if stack.ca_file is not None:
        found["tls_config"] = {"ca_file": str(stack.ca_file.resolve())}
    return found


def _require_free(port: int) -> None:
    with socket.socket() as tried:
        tried.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as they do: a connection that lingers is no matter
        try:
            tried.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise MachineError(f"cannot listen on 127.0.0.1:{port}: {error}; give another port") from error


def _program(*names: str) -> str:
    for name in names:
        if (found := shutil.which(name)) is not None:
            return found
    raise ConfigError(f"{' or '.join(names)} is not on this machine: apt install prometheus prometheus-alertmanager")


def _started(command: Sequence[str], folder: Path, at_the_end: ExitStack) -> subprocess.Popen[bytes]:
    log = at_the_end.enter_context((folder / f"{Path(command[0]).name}.log").open("wb"))
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=log,
        stderr=log,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for us, who end it
    )
    at_the_end.callback(_end, process)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(_STOP_SECONDS)


def _wait_ready(name: str, process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    until = time.monotonic() + _READY_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=2) as answer:
                if answer.status == 200:
                    return
        except (OSError, urllib.error.URLError):
            pass
        time.sleep(_LOOK_SECONDS)
    raise MachineError(f"{name} did not get ready on port {port}: see its log in {folder}")
