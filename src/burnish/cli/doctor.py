"""`burnish doctor`."""

from pathlib import Path
from typing import Any

import burnish
from burnish.cli.columns import print_columns
from burnish.cli.json_output import print_json
from burnish.distributed.doctor import Machine, examine, examine_cluster
from burnish.monitoring.console import Waiting
from burnish.reproducibility.environment import missing_of_extras


def print_doctor(address: str | None, *, as_json: bool) -> int:
    """Print what the machines have and what is wrong. Exit status 1 if the nodes of a cluster do not fit together."""
    if address is None:
        with Waiting("looking at this machine"):
            machine = examine()
        if as_json:
            found = {"machines": [_as_tree(machine)], "links": [], "sum_of_4_mb_seconds": None, "faults": []}
            print_json({**found, "missing_extras": _absent()})
            return 0
        _print_machine(machine)
        _print_package()
        for problem in machine.problems():
            print(f"note: {problem}")
        return 0
    with Waiting("looking at the nodes, and between them"):
        report = examine_cluster(address)
    problems = report.problems()
    if as_json:
        machines = [_as_tree(machine) for machine in report.machines]
        seen: dict[str, Any] = {"machines": machines, "links": report.links, "sum_of_4_mb_seconds": report.sum_seconds}
        print_json({**seen, "faults": problems, "missing_extras": _absent()})
        return 1 if problems else 0
    for machine, link in zip(report.machines, report.links, strict=True):
        _print_machine(machine)
        print_columns([("  from here", f"{link.bytes_a_second / 1e6:,.0f} MB/s, clock {link.clock_seconds:+.1f} s")])
        for problem in machine.problems():
            print(f"note: {machine.host}: {problem}")
    if report.sum_seconds is not None:
        print(f"a sum of 4 MB over {len(report.machines)} nodes takes {report.sum_seconds * 1000:.1f} ms")
    for problem in problems:
        print(f"wrong: {problem}")
    return 1 if problems else 0


def _print_package() -> None:
    """Where the package lies, and what of its extras is there."""
    absent = _absent()
    rows = [
        ("burnish", str(Path(burnish.__file__).parent)),
        ("  extras", ", ".join(name for name in missing_of_extras() if name not in absent) or "none"),
    ]
    if absent:
        rows.append(("  not installed", f"{', '.join(absent)}: pip install 'burnish[NAME]'"))
    print_columns(rows)


def _absent() -> list[str]:
    return [name for name, packages in missing_of_extras().items() if packages]


def _as_tree(machine: Machine) -> dict[str, Any]:
    return {
        "host": machine.host,
        "processor": machine.processor,
        "num_cores": machine.cores,
        "available_bytes": machine.available_bytes,
        "disk_bytes": machine.disk_bytes,
        "gpus": machine.gpus,
        "operations_per_second": machine.rates,
        "packages": machine.packages,
        "device": machine.device,
        "compute_dtype": machine.dtype,
        "notes": machine.problems(),
    }


def _print_machine(machine: Machine) -> None:
    rates = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in machine.rates.items())
    packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items() if version is not None)
    free = f"{machine.available_bytes / 1e9:.1f} GB of memory, {machine.disk_bytes / 1e9:.0f} GB of disk"
    print_columns(
        [
            (machine.host, f"{machine.processor}, {machine.cores} cores"),
            ("  system", machine.system),
            ("  burnish", f"{burnish.__version__}, its files {machine.code[:12]}"),
            ("  free", free),
            ("  GPUs", "; ".join(machine.gpus) or "none"),
            ("  products", rates),
            ("  versions", packages),
            ("  will use", f"{machine.device}, {machine.dtype} (model.device and model.compute_dtype change it)"),
        ]
    )
