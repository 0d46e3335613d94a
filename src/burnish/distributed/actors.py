"""Ray actors of burnish's: started, waited for with a deadline, and ended."""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from burnish.config.extras import requires_extra
from burnish.config.schema import ClusterConfig
from burnish.distributed.roles import T
from burnish.errors import BurnishError, ConfigError, LostError, MachineError
from burnish.memory.allocator import environment_for_tensors

_POLL_SECONDS = 1.0
_CONNECT_SECONDS = 10.0
_GRACE_SECONDS = 10.0


class Actors:
    """The actors of one run. Every wait says what it waits for, and ends."""

    def __init__(self, ray: Any, cluster: ClusterConfig, *, on_gpu: bool) -> None:
        self.ray = ray
        self.cluster = cluster
        self.kind = "GPU" if on_gpu else "CPU"
        self.num_restarts = 0
        self._living: list[Any] = []
        self._places: list[Any] = []
        self._lock = threading.Lock()  # a job in a thread may start one while all are ended
        self._is_closed = False

    def check_room(self, wanted: int) -> None:
        """Wait for the nodes that the processes need: a cluster that was there before the run may still be growing.

        Raises:
            ConfigError: they do not come. A MachineError where they were there before.
        """
        seconds = 0.0 if self.cluster.address is None else self.cluster.start_seconds
        deadline = time.monotonic() + seconds
        while (there := int(self.ray.cluster_resources().get(self.kind, 0))) < wanted:
            if time.monotonic() > deadline:
                what = (
                    f"cluster: learners and generators need {wanted} {self.kind}s, and the cluster has {there} after "
                    f"{seconds:.0f} s: "
                )
                if self.num_restarts:
                    raise MachineError(f"{what}a node is lost; add one, and resume")
                on_cpu = ", or set model.device to cpu" if self.kind == "GPU" else ""
                raise ConfigError(f"{what}lower cluster.learners or cluster.generators, or add nodes{on_cpu}")
            time.sleep(_POLL_SECONDS)

    def reserve(self, num_places: int, size: int) -> Any:
        """Places for `size` actors each, on one node each: whoever shares a product speaks in every layer.

        Raises:
            MachineError: there are none in time.
        """
        kinds = {"CPU", self.kind}
        places = self.ray.util.placement_group([dict.fromkeys(kinds, float(size))] * num_places, strategy="PACK")
        with self._lock:
            self._check_open()
            self._places.append(places)
        if not places.wait(self.cluster.start_seconds):
            raise MachineError(
                f"cluster.tensor_parallel={size}: after {self.cluster.start_seconds:.0f} s (cluster.start_seconds) "
                f"there are not {num_places} times {size} free {self.kind}s on one node: lower it, or take larger nodes"
            )
        return places

    def start(
        self,
        worker: type,
        *arguments: Any,
        node: str | None = None,
        place: tuple[Any, int] | None = None,
        num_threads: int = 1,
        **named: Any,
    ) -> Any:
        """A new actor, on a node by its id if one is given, or in a place of those that are reserved. It is not there
        yet when this returns. With several threads it does as many things at the same time.

        Raises:
            LostError: all of them have just been ended.
        """
        options = {"num_cpus": 1, "num_gpus": int(self.kind == "GPU"), "max_restarts": 0, "max_task_retries": 0}
        if num_threads > 1:
            options["max_concurrency"] = num_threads
        if node is not None:
            strategies = self.ray.util.scheduling_strategies
            options |= {
                "num_cpus": 0,
                "scheduling_strategy": strategies.NodeAffinitySchedulingStrategy(node, soft=False),
            }
        if place is not None:
            strategies = self.ray.util.scheduling_strategies
            options["scheduling_strategy"] = strategies.PlacementGroupSchedulingStrategy(
                place[0], placement_group_bundle_index=place[1]
            )
        with self._lock:
            self._check_open()
            actor = self.ray.remote(worker).options(**options).remote(*arguments, **named)
            self._living.append(actor)
        return actor

    def end(self, actor: Any) -> None:
        """End one of them. Nothing is said of one that is gone already."""
        with self._lock:
            self._check_open()
            self._living.remove(actor)
        self.ray.kill(actor)

    def end_all(self) -> None:
        """End every actor. Whoever still waits for one finds it lost, and none is started before `open`."""
        with self._lock:
            self._is_closed = True
            living, self._living = self._living, []
            places, self._places = self._places, []
        for end, doomed in ((self.ray.kill, living), (self.ray.util.remove_placement_group, places)):
            for each in doomed:
                with suppress(self.ray.exceptions.RayError):  # the cluster may be gone
                    end(each)

    def open(self) -> None:
        """Let actors be started again."""
        self._is_closed = False

    def count_restart(self, what: str) -> None:
        """Note that something is started anew.

        Raises:
            LostError: all of them have just been ended.
            MachineError: it was done too often.
        """
        with self._lock:
            self._check_open()
            self.num_restarts += 1
        if self.num_restarts > self.cluster.max_restarts:
            raise MachineError(
                f"{what} was lost once more after {self.cluster.max_restarts} restarts (cluster.max_restarts): "
                "see what ends the processes, then resume"
            )

    def _check_open(self) -> None:
        if self._is_closed:
            raise LostError("every process is being started anew")

    def wait(self, answers: Sequence[Any], what: str, *, is_start: bool = False) -> list[Any]:
        """All answers, in order. The first error ends it, though others are still awaited.

        Raises:
            LostError: an actor is gone.
            MachineError: they are not all there within `cluster.timeout_seconds`, or `start_seconds`.
        """
        limit = self.cluster.start_seconds if is_start else self.cluster.timeout_seconds
        deadline = time.monotonic() + limit
        found: dict[Any, Any] = {}
        while len(found) < len(answers):
            left = [each for each in answers if each not in found]
            ready = self.next(left, what, deadline, is_start=is_start)
            try:
                found[ready] = self.answer(ready, what)
            except _FailedError:
                # one that is killed in the middle of a sum makes the others fail, who are heard first
                others, _ = self.ray.wait(left, num_returns=len(left), timeout=_GRACE_SECONDS)
                for other in others:
                    with suppress(_FailedError):
                        self.answer(other, what)
                raise
        return [found[each] for each in answers]

    def next(self, answers: Sequence[Any], what: str, deadline: float, *, is_start: bool = False) -> Any:
        """The first of some answers that is there before a deadline, by time.monotonic().

        Raises:
            MachineError: none is in time.
        """
        ready = self.soon(answers, max(0.0, deadline - time.monotonic()))
        if ready is None:
            name = "start_seconds" if is_start else "timeout_seconds"
            limit = getattr(self.cluster, name)
            raise MachineError(f"waited for {what} in vain: cluster.{name}={limit:.0f} sets the limit")
        return ready

    def soon(self, answers: Sequence[Any], seconds: float) -> Any | None:
        """The first of some answers, if one is there within so many seconds."""
        ready, _ = self.ray.wait(list(answers), timeout=seconds)
        return ready[0] if ready else None

    def answer(self, ready: Any, what: str) -> Any:
        """What an answer says.

        Raises:
            LostError: the actor is gone.
            BurnishError: it raised one.
            MachineError: it failed otherwise.
        """
        exceptions = self.ray.exceptions
        gone = (
            exceptions.RayActorError,
            exceptions.ObjectLostError,
            exceptions.WorkerCrashedError,
            exceptions.NodeDiedError,
            exceptions.LocalRayletDiedError,
            exceptions.OutOfMemoryError,  # Ray ended it, because its node was almost out of memory
        )
        try:
            return self.ray.get(ready, timeout=self.cluster.timeout_seconds)
        except exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, BurnishError):
                raise cause from None
            if isinstance(cause, gone):  # of an argument that another actor was to make
                raise LostError(f"{what}: a process is gone: {_why_gone(cause)}") from error
            raise _FailedError(f"{what}: {type(cause).__name__}: {_line(cause)}") from error
        except gone as error:
            raise LostError(f"{what}: a process is gone: {_why_gone(error)}") from error
        except exceptions.GetTimeoutError as error:
            raise MachineError(f"{what}: the answer did not arrive in {self.cluster.timeout_seconds:.0f} s") from error
        except exceptions.RayError as error:  # a full store or disk, an environment that cannot be set up
            raise MachineError(f"{what}: {type(error).__name__}: {_line(error)}") from error


class _FailedError(MachineError):
    """A process raised something, perhaps because another is gone."""


class Jobs:
    """One job after the other, in a thread that does not keep the program from ending."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="sampling aside", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Let a job be done when those before it are."""
        done: Future[T] = Future()

        def do() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                done.set_result(job())
            except BaseException as error:  # whoever asks for the result gets it
                done.set_exception(error)

        self._waiting.put(do)
        return done

    def end(self) -> None:
        """Wait a moment for the job that is going on; one that does not end is left behind."""
        self._waiting.put(None)
        self._thread.join(_GRACE_SECONDS)

    def _work(self) -> None:
        while (do := self._waiting.get()) is not None:
            do()


def _line(error: Any) -> str:
    return " ".join(str(error).split())[:400]


def _why_gone(error: Any) -> str:
    """In a few words what Ray says in a paragraph."""
    text, kind = str(error).lower(), type(error).__name__
    if kind == "OutOfMemoryError" or "memory pressure" in text:
        return "its node was almost out of memory, and Ray ended it"
    if kind in ("NodeDiedError", "LocalRayletDiedError") or "node has died" in text or "node died" in text:
        return "its node is gone"
    return "it was killed, or it crashed"


def import_ray() -> Any:
    """The module ray.

    Raises:
        ConfigError: it is not installed.
    """
    with requires_extra("ray", "cluster.kind=ray needs Ray"):
        import ray
    return ray


@contextmanager
def ray_session(cluster: ClusterConfig, num_processes: int) -> Iterator[Any]:
    """Ray, started here for this run or joined, and left when the context ends.

    Raises:
        ConfigError: Ray is not installed, or there is no such cluster.
    """
    ray = import_ray()
    path = os.pathsep.join(dict.fromkeys([str(Path.cwd()), *filter(None, os.environ.get("PYTHONPATH", "").split(":"))]))
    options: dict[str, Any] = {
        # a user's modules are found where the run was started
        "runtime_env": {"env_vars": {"PYTHONPATH": path} | environment_for_tensors()},
        "include_dashboard": False if cluster.address is None else None,
        "log_to_driver": False,
        "logging_level": "error",
        "configure_logging": False,
    }
    if cluster.address is None:
        options |= {"num_cpus": num_processes}
    if not sys.stderr.isatty():
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")  # or what Ray itself says has colours in a file too
    if cluster.address is not None:
        _check_reachable(cluster.address)
    try:
        ray.init(
            address=cluster.address or "local", **{key: value for key, value in options.items() if value is not None}
        )
    except (ConnectionError, ValueError, RuntimeError, TimeoutError, ray.exceptions.RayError) as error:
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
