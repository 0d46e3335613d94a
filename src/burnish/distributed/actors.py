"""Ray actors of burnish's: started, waited for with a deadline, and ended."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from burnish.config.schema import ClusterConfig
from burnish.errors import BurnishError, ConfigError, LostError, MachineError

_POLL_SECONDS = 1.0
_CONNECT_SECONDS = 10.0


class Actors:
    """The actors of one run. Every wait says what it waits for, and ends."""

    def __init__(self, ray: Any, cluster: ClusterConfig, *, on_gpu: bool) -> None:
        self.ray = ray
        self.cluster = cluster
        self.kind = "GPU" if on_gpu else "CPU"
        self.num_restarts = 0
        self._living: list[Any] = []

    def check_room(self, wanted: int) -> None:
        """Wait for the nodes that the processes need: a cluster may still be growing.

        Raises:
            ConfigError: they do not come.
        """
        deadline = time.monotonic() + self.cluster.start_seconds
        while (there := int(self.ray.cluster_resources().get(self.kind, 0))) < wanted:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"cluster: learners and generators need {wanted} {self.kind}s, and the cluster has {there} after "
                    f"{self.cluster.start_seconds:.0f} s: lower cluster.learners or cluster.generators, or add nodes"
                )
            time.sleep(_POLL_SECONDS)

    def start(self, worker: type, *arguments: Any, node: str | None = None) -> Any:
        """A new actor, on a node by its id if one is given. It is not there yet when this returns."""
        options = {"num_cpus": 1, "num_gpus": int(self.kind == "GPU"), "max_restarts": 0, "max_task_retries": 0}
        if node is not None:
            strategies = self.ray.util.scheduling_strategies
            options |= {
                "num_cpus": 0,
                "scheduling_strategy": strategies.NodeAffinitySchedulingStrategy(node, soft=False),
            }
        actor = self.ray.remote(worker).options(**options).remote(*arguments)
        self._living.append(actor)
        return actor

    def end(self, actors: Sequence[Any] | None = None) -> None:
        """End some actors, or all."""
        for actor in list(self._living) if actors is None else actors:
            self.ray.kill(actor)  # says nothing of one that is gone already
            self._living.remove(actor)

    def count_restart(self, what: str) -> None:
        """Note that something is started anew.

        Raises:
            MachineError: it was done too often.
        """
        self.num_restarts += 1
        if self.num_restarts > self.cluster.max_restarts:
            raise MachineError(
                f"{what} was lost once more after {self.cluster.max_restarts} restarts (cluster.max_restarts): "
                "see what ends the processes, then resume"
            )

    def wait(self, answers: Sequence[Any], what: str, *, seconds: float | None = None) -> list[Any]:
        """All answers, in order. The first error ends it, though others are still awaited.

        Raises:
            LostError: an actor is gone.
            MachineError: they are not all there in time, `cluster.timeout_seconds` unless `seconds` says it.
        """
        limit = self.cluster.timeout_seconds if seconds is None else seconds
        deadline = time.monotonic() + limit
        found: dict[Any, Any] = {}
        while len(found) < len(answers):
            ready = self.next(
                [each for each in answers if each not in found], what, seconds=deadline - time.monotonic(), limit=limit
            )
            found[ready] = self.answer(ready, what)
        return [found[each] for each in answers]

    def next(self, answers: Sequence[Any], what: str, *, seconds: float, limit: float) -> Any:
        """The first of some answers that is there, within the `seconds` that are left of a `limit`.

        Raises:
            MachineError: none is in time.
        """
        ready, _ = self.ray.wait(list(answers), timeout=max(0.0, seconds))
        if not ready:
            raise MachineError(f"waited {limit:.0f} s for {what}, in vain: cluster.timeout_seconds sets the limit")
        return ready[0]

    def answer(self, ready: Any, what: str) -> Any:
        """What an answer says.

        Raises:
            LostError: the actor is gone.
            BurnishError: it raised one.
        """
        exceptions = self.ray.exceptions
        try:
            return self.ray.get(ready, timeout=self.cluster.timeout_seconds)
        except exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, BurnishError):
                raise cause from None
            raise MachineError(f"{what}: {type(cause).__name__}: {' '.join(str(cause).split())[:500]}") from error
        except (exceptions.RayActorError, exceptions.ObjectLostError) as error:
            raise LostError(f"{what}: a process is gone ({' '.join(str(error).split())[:300]})") from error
        except exceptions.GetTimeoutError as error:
            raise MachineError(f"{what}: the answer did not arrive in {self.cluster.timeout_seconds:.0f} s") from error


@contextmanager
def ray_session(cluster: ClusterConfig, num_processes: int) -> Iterator[Any]:
    """Ray, started here for this run or joined, and left when the context ends.

    Raises:
        ConfigError: Ray is not installed, or there is no such cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f"cluster.kind=ray needs Ray ({error}): pip install 'burnish[ray]'") from error
    path = os.pathsep.join(dict.fromkeys([str(Path.cwd()), *filter(None, os.environ.get("PYTHONPATH", "").split(":"))]))
    options: dict[str, Any] = {
        "runtime_env": {"env_vars": {"PYTHONPATH": path}},  # a user's modules are found where the run was started
        "include_dashboard": False if cluster.address is None else None,
        "log_to_driver": False,
        "logging_level": "error",
        "configure_logging": False,
    }
    if cluster.address is None:
        options |= {"num_cpus": num_processes, "object_store_memory": None}
    if cluster.address is not None:
        _check_reachable(cluster.address)
    try:
        ray.init(
            address=cluster.address or "local", **{key: value for key, value in options.items() if value is not None}
        )
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise ConfigError(
            f"cluster.address={cluster.address}: {' '.join(str(error).split())[:300]}"
            "; is the address right, and RAY_AUTH_TOKEN the cluster's?"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray itself tries for many minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        if address == "auto":
            return
        raise ConfigError(f"cluster.address={address}: give HOST:PORT of a Ray head node, or auto")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise ConfigError(f"cluster.address={address}: nothing answers there ({error}): is Ray running?") from error
