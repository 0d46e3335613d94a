"""A Ray cluster of this machine, for the tests that need one: started and ended by its process."""

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_SECONDS = 60


@contextmanager
def ray_cluster(num_cpus: int, log: Path) -> Iterator[str]:
    """Start a head node. Yields its address; its token stands in the environment of this process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16), "RAY_USAGE_STATS_ENABLED": "0"}
    ray = str(Path(sys.executable).with_name("ray"))
    options = ["--node-ip-address=127.0.0.1", f"--port={port}", f"--num-cpus={num_cpus}", "--include-dashboard=false"]
    command = [ray, "start", "--head", "--block", *options, "--object-store-memory=200000000"]
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as head:
        try:
            deadline = time.monotonic() + START_SECONDS
            while "Ray runtime started" not in log.read_text():
                assert head.poll() is None, log.read_text()
                assert time.monotonic() < deadline, f"Ray did not start in {START_SECONDS} s: {log.read_text()}"
                time.sleep(0.2)
            yield f"127.0.0.1:{port}"
        finally:
            head.terminate()
            head.wait(30)
