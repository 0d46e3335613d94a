"""Two Ray nodes in two network namespaces of this machine: the nearest to two machines that one has."""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="namespaces need root and iproute2"),
]
RAY = str(Path(sys.executable).with_name("ray"))
IPS = ("10.77.0.1", "10.77.0.2")
HEAD = ("--head", "--port=6379", "--include-dashboard=false")
START_SECONDS = 90


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=10)


@contextmanager
def namespaces() -> Iterator[tuple[str, str]]:
    """Two of them, with a cable between."""
    names = (f"burnish{os.getpid()}a", f"burnish{os.getpid()}b")
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, IPS, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], timeout=10, check=False, capture_output=True)


@contextmanager
def node(
    namespace: str, address: str, log: Path, environment: dict[str, str], *options: str
) -> Iterator[subprocess.Popen]:
    """A Ray node, ended by its process."""
    limits = ["--num-cpus=2", "--object-store-memory=100000000", "--block"]
    command = ["ip", "netns", "exec", namespace, RAY, "start", f"--node-ip-address={address}", *options, *limits]
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output, env=environment) as process:
        try:
            deadline = time.monotonic() + START_SECONDS
            while "Ray runtime started" not in log.read_text():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, f"no Ray after {START_SECONDS} s: {log.read_text()}"
                time.sleep(0.3)
            yield process
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """(the first one's namespace, the environment in which both can be spoken to)."""
    folder = tmp_path_factory.mktemp("nodes")
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16), "RAY_USAGE_STATS_ENABLED": "0"}
    environment = {**os.environ, **token, "OMP_WAIT_POLICY": "passive"}
    with ExitStack() as stack:
        first, second = stack.enter_context(namespaces())
        stack.enter_context(node(first, IPS[0], folder / "head", environment, *HEAD))
        stack.enter_context(node(second, IPS[1], folder / "worker", environment, f"--address={IPS[0]}:6379"))
        yield first, environment


def burnish(namespace: str, environment: dict[str, str], folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = ["ip", "netns", "exec", namespace, sys.executable, "-m", "burnish", *words]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=400)


def test_a_run_over_two_nodes_is_the_run_of_one_process(two_nodes, tiny_folder: Path, tmp_path: Path) -> None:
    namespace, environment = two_nodes
    recipe = ["train", "grpo", "--model.path", str(tiny_folder), "--model.num_threads", "1"]
    recipe += [
        "--model.compute_dtype",
        "float32",
        "--task.source",
        "reasoning-gym:chain_sum",
        "--task.num_held_out",
        "8",
    ]
    recipe += ["--task.options", '{"size": 60}', "--rollout.max_tokens", "8", "--rollout.num_prompts", "4"]
    recipe += ["--rollout.group_size", "4", "--train.num_steps", "3", "--loss.entropy_coefficient", "0.01"]
    where = ["--cluster.kind", "ray", "--cluster.address", f"{IPS[0]}:6379", "--cluster.learners", "2"]
    done = burnish(namespace, environment, tmp_path, *recipe, *where, "--cluster.generators", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    alone = burnish(namespace, environment, tmp_path, *recipe)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    spread, local = (metrics_of(tmp_path, each.stdout) for each in (done, alone))
    for line, other in zip(spread, local, strict=True):
        assert line["rollouts_sha256"] == other["rollouts_sha256"]
        assert line["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


def test_doctor_looks_at_both(two_nodes, tmp_path: Path) -> None:
    namespace, environment = two_nodes
    done = burnish(namespace, environment, tmp_path, "doctor", "--address", f"{IPS[0]}:6379")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a sum of 4 MB over 2 nodes takes" in done.stdout
    assert done.stdout.count("from here") == 2


@pytest.mark.parametrize("token", [secrets.token_hex(16), None], ids=["wrong", "missing"])
def test_a_token_that_is_not_the_clusters_is_one_line(two_nodes, tmp_path: Path, token: str | None) -> None:
    namespace, environment = two_nodes
    others = {name: value for name, value in environment.items() if name != "RAY_AUTH_TOKEN"}
    others |= {"HOME": str(tmp_path)} | ({} if token is None else {"RAY_AUTH_TOKEN": token})  # a home may have one too
    done = burnish(namespace, others, tmp_path, "doctor", "--address", f"{IPS[0]}:6379")
    assert done.returncode == 2
    assert "RAY_AUTH_TOKEN" in done.stderr and "Traceback" not in done.stderr


def metrics_of(folder: Path, output: str) -> list[dict]:
    found = re.search(r"run (\S+): step 0", output)
    assert found is not None, output
    return [json.loads(line) for line in (folder / found[1] / "metrics.jsonl").read_text().splitlines()]
