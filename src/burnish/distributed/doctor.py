"""What the machines of a run have, and what is wrong with them."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from burnish.config.schema import ClusterConfig, ModelConfig
from burnish.distributed.actors import Actors, ray_session
from burnish.distributed.worker import free_address, join_group
from burnish.errors import MachineError
from burnish.memory.measure import available_bytes
from burnish.models.layout import multiplies_bfloat16
from burnish.models.load import find_device, find_dtype
from burnish.reproducibility.code_state import package_sha256
from burnish.reproducibility.environment import EXACT_PACKAGES, environment_record, versions

_PRODUCT = 1024
_SENT_BYTES = 32_000_000
_FEW_BYTES, _LITTLE_DISK = 4 * 10**9, 10 * 10**9
_CLOCK_SECONDS = 2.0
_SLOW_BYTES_A_SECOND = 50e6
_COLLECTIVE_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What one machine says of itself. Bytes, and operations a second of a matrix product by type."""

    host: str
    system: str
    processor: str
    cores: int
    available_bytes: int
    disk_bytes: int
    gpus: tuple[str, ...]
    packages: dict[str, str | None]
    code: str
    clock: float
    rates: dict[str, float]
    device: str
    dtype: str

    def problems(self) -> list[str]:
        """What is wrong with it alone."""
        found = {
            f"{self.available_bytes / 1e9:.1f} GB of memory are free: 135 million weights take 3 to train": (
                self.available_bytes < _FEW_BYTES
            ),
            f"{self.disk_bytes / 1e9:.1f} GB are free on the disk of this folder: checkpoints take 12 bytes a weight": (
                self.disk_bytes < _LITTLE_DISK
            ),
            "torch finds no GPU: everything runs on the CPU": not self.gpus,
        }
        return [text for text, is_so in found.items() if is_so]


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What lies between this machine and a node."""

    host: str
    bytes_a_second: float
    clock_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterReport:
    """Every node, the way to it, and how long the sum of 4 MB over all of them took."""

    machines: list[Machine]
    links: list[Link]
    sum_seconds: float | None

    def problems(self) -> list[str]:
        """What is wrong with the nodes together."""
        found = []
        first = self.machines[0]
        for machine in self.machines[1:]:
            if machine.code != first.code:
                found.append(f"{machine.host} has another burnish than {first.host}: install the same on every node")
            for name, version in machine.packages.items():
                if version != first.packages[name]:
                    found.append(f"{machine.host} has {name} {version}, and {first.host} {first.packages[name]}")
        for link in self.links:
            if abs(link.clock_seconds) > _CLOCK_SECONDS:
                found.append(f"the clock of {link.host} is {link.clock_seconds:+.1f} s off")
            if link.bytes_a_second < _SLOW_BYTES_A_SECOND:
                found.append(f"{link.host} takes {link.bytes_a_second / 1e6:.0f} MB/s: publishing weights will be slow")
        if self.sum_seconds is None and len(self.machines) > 1:
            found.append("the nodes could not form a group: see that they reach each other's ports")
        return found


def examine() -> Machine:
    """This machine."""
    record = environment_record(torch.get_num_threads())
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    model = ModelConfig(path="any")
    return Machine(
        host=socket.gethostname(),
        system=" ".join(record[key] for key in ("system", "kernel", "machine", "libc") if record[key]),
        processor=record["cpu"] + ("" if multiplies_bfloat16() else ", no bfloat16"),
        cores=os.cpu_count() or 1,
        available_bytes=available_bytes(torch.device("cpu")),
        disk_bytes=shutil.disk_usage(Path.cwd()).free,
        gpus=tuple(f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus),
        packages={"python": record["python"], **versions((*EXACT_PACKAGES, "ray"))},
        code=package_sha256(),
        clock=time.time(),
        rates={name: _rate(getattr(torch, name)) for name in ("float32", "bfloat16")},
        device=find_device(model.device).type,
        dtype=find_dtype(model),
    )


def examine_cluster(address: str) -> ClusterReport:
    """Every node of a running Ray cluster.

    Raises:
        ConfigError: there is none at the address.
    """
    cluster = ClusterConfig(kind="ray", address=address, timeout_seconds=2 * _COLLECTIVE_SECONDS)
    with ray_session(cluster, 1) as ray:
        actors = Actors(ray, cluster, on_gpu=False)
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        probes = [actors.start(NodeProbe, node=node) for node in nodes]
        try:
            machines: list[Machine] = actors.wait([each.examine.remote() for each in probes], "a node's answer")
            links = [_link(actors, probe, machine) for probe, machine in zip(probes, machines, strict=True)]
            return ClusterReport(machines=machines, links=links, sum_seconds=_sum_seconds(actors, probes))
        finally:
            actors.end_all()


class NodeProbe:
    """Looks at the node that it is on."""

    def examine(self) -> Machine:
        """See Machine."""
        return examine()

    def take(self, sent: np.ndarray[Any, Any]) -> tuple[int, float]:
        """How much arrived, and the time here."""
        return sent.nbytes, time.time()

    def address(self) -> tuple[str, int]:
        """See LearnerWorker."""
        return free_address()

    def sum_up(self, rank: int, size: int, ip: str, master: tuple[str, int]) -> float:
        """Seconds that a sum over all nodes takes: the second of two."""
        join_group("gloo", rank, size, ip, master, timeout_seconds=_COLLECTIVE_SECONDS)
        numbers = torch.ones(1_000_000)
        seconds = 0.0
        for _ in range(2):
            dist.barrier()
            began = time.perf_counter()
            dist.all_reduce(numbers)
            seconds = time.perf_counter() - began
        dist.destroy_process_group()
        return seconds


def _link(actors: Actors, probe: Any, machine: Machine) -> Link:
    sent = np.random.default_rng(0).integers(0, 255, _SENT_BYTES, dtype=np.uint8)
    actors.wait([probe.take.remote(sent[:1000])], f"{machine.host} to answer")
    began = time.time()
    ((_, clock),) = actors.wait([probe.take.remote(sent)], f"{machine.host} to take {_SENT_BYTES / 1e6:.0f} MB")
    ended = time.time()
    offset = min(clock - began, 0.0) + max(clock - ended, 0.0)  # within the time it took, nothing is known
    return Link(host=machine.host, bytes_a_second=_SENT_BYTES / (ended - began), clock_seconds=offset)


def _sum_seconds(actors: Actors, probes: Sequence[Any]) -> float | None:
    addresses = actors.wait([each.address.remote() for each in probes], "the nodes' addresses")
    summing = [
        each.sum_up.remote(rank, len(probes), ip, addresses[0])
        for rank, (each, (ip, _)) in enumerate(zip(probes, addresses, strict=True))
    ]
    try:
        seconds: list[float] = actors.wait(summing, "a sum over the nodes")
        return max(seconds)
    except MachineError:
        return None


def _rate(dtype: torch.dtype) -> float:
    """Operations a second of a square product: the best of three."""
    a, b = torch.ones(2, _PRODUCT, _PRODUCT, dtype=dtype).unbind()
    times = []
    for _ in range(3):
        began = time.perf_counter()
        _ = a @ b
        times.append(time.perf_counter() - began)
    return 2 * _PRODUCT**3 / min(times)
