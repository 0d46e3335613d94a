"""What the processes of a cluster say of themselves before the first step, and whether that fits together."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from burnish.errors import ConfigError, ModelError
from burnish.models.load import inspect_model
from burnish.reproducibility.code_state import package_sha256
from burnish.reproducibility.record import quick_fingerprint

_CLOCK_SECONDS = 10.0  # further apart than this, the logs and deadlines of two machines cannot be read together


@dataclass(frozen=True, slots=True)
class Facts:
    """What a process says of itself. `models` has the fingerprint of each that it will load, by its path; `sees` is
    what the file of a Probe says to it.
    """

    host: str
    process_id: int
    burnish: str
    torch: str
    transformers: str
    python: str
    models: Mapping[str, str]
    sees: str | None


@dataclass(frozen=True, slots=True)
class Probe:
    """A file in a folder that every node must share, and what it says."""

    folder: Path
    path: str
    token: str


def facts(probe: str | None, models: Sequence[str]) -> Facts:
    """What this process says of itself; `probe` is the path of one.

    Raises:
        ModelError: a model is not here.
    """
    sees = None
    if probe is not None and Path(probe).is_file():
        sees = Path(probe).read_text(encoding="utf-8")
    return Facts(
        socket.gethostname(),
        os.getpid(),
        package_sha256(),
        torch.__version__,
        transformers.__version__,
        sys.version.split()[0],
        {path: _fingerprint(path) for path in models},
        sees,
    )


def check_facts(told: Sequence[Facts], here: Facts, probe: Probe | None) -> None:
    """Compare what processes say with what this one does.

    Raises:
        ConfigError: they do not fit together.
    """
    for each in told:
        for name in ("burnish", "torch", "transformers", "python"):
            theirs, ours = getattr(each, name), getattr(here, name)
            if theirs != ours and name == "burnish" and each.host == here.host:
                raise ConfigError(
                    "cluster: burnish's own files changed while the run was going on, and a process that is started "
                    "now would have the new ones: `burnish resume last` goes on with them"
                )
            if theirs != ours:
                raise ConfigError(
                    f"cluster: {each.host} has another {name} ({theirs[:12]}, and here {ours[:12]}): "
                    "install the same on every node"
                )
        for path, fingerprint in each.models.items():
            if fingerprint != here.models[path]:
                raise ConfigError(
                    f"cluster: {each.host} has another copy of the model {path} ({fingerprint[:12]}, and here "
                    f"{here.models[path][:12]}): copy the one from here, or give a folder that every node shares"
                )
        if probe is not None and each.sees != probe.token:
            raise ConfigError(
                f"runs_folder: {each.host} does not see what is written to {probe.folder} from here: give a folder "
                "that every node shares"
            )


def check_clocks(hosts: Sequence[str], clocks: Sequence[float], began: float, ended: float) -> None:
    """Compare clocks that were read between two times of this process.

    Raises:
        ConfigError: one is off.
    """
    for host, clock in zip(hosts, clocks, strict=True):
        if not began - _CLOCK_SECONDS <= clock <= ended + _CLOCK_SECONDS:
            raise ConfigError(f"cluster: the clock of {host} is {clock - ended:+.0f} s off: set it")


@contextmanager
def probing(folder: Path) -> Iterator[Probe]:
    """A Probe, for as long as the context lasts."""
    folder.mkdir(parents=True, exist_ok=True)
    path, token = folder / f".probe.{os.getpid()}", f"{os.getpid()} {time.time()}"
    path.write_text(token, encoding="utf-8")
    try:
        yield Probe(folder, str(path.resolve()), token)
    finally:
        path.unlink(missing_ok=True)


def _fingerprint(path: str) -> str:
    try:
        model = inspect_model(path)
    except ModelError as error:
        raise ModelError(f"{error} (on {socket.gethostname()})") from error
    return quick_fingerprint(model.source, base=model.base, commit=model.commit)
