"""What Ray raises becomes one line, or is healed."""

from types import SimpleNamespace
from typing import Any

import pytest

from burnish.config.schema import ClusterConfig
from burnish.distributed.actors import Actors, ray_session
from burnish.errors import ConfigError, LostError, MachineError

ray = pytest.importorskip("ray", reason="Ray is in the extra `ray`")
exceptions = ray.exceptions
CLUSTER = ClusterConfig(kind="ray")


def raising(error: BaseException) -> Any:
    def raise_it(*arguments: Any, **named: Any) -> Any:
        raise error

    return raise_it


def answered(error: BaseException) -> Any:
    fake = SimpleNamespace(exceptions=exceptions, get=raising(error))
    return Actors(fake, CLUSTER, on_gpu=False).answer("ready", "generator 0")


@pytest.mark.parametrize(
    "error",
    [exceptions.ActorDiedError(), exceptions.OutOfMemoryError("no room"), exceptions.WorkerCrashedError()],
    ids=lambda error: type(error).__name__,
)
def test_a_process_that_is_gone_is_lost(error: Exception) -> None:
    with pytest.raises(LostError, match=r"^generator 0: a process is gone \("):
        answered(error)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (exceptions.ObjectStoreFullError("no\nroom"), "ObjectStoreFullError: .*no room"),
        (exceptions.OutOfDiskError("no room"), "OutOfDiskError: "),
        (exceptions.RaySystemError("it broke"), "RaySystemError: .*it broke"),
        (exceptions.RuntimeEnvSetupError("no folder"), "RuntimeEnvSetupError: .*no folder"),
        (exceptions.ActorUnschedulableError("nowhere"), "ActorUnschedulableError: .*nowhere"),
        (exceptions.TaskCancelledError(), "TaskCancelledError: "),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_else_ray_raises_is_one_line(error: Exception, message: str) -> None:
    with pytest.raises(MachineError, match=f"^generator 0: {message}") as caught:
        answered(error)
    assert not isinstance(caught.value, LostError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error", [exceptions.AuthenticationError("no token\nis given"), ConnectionError("nobody")], ids=["token", "silence"]
)
def test_a_cluster_that_lets_nobody_in_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(ray, "init", raising(error))
    with pytest.raises(ConfigError, match=r"cluster\.address=.*RAY_AUTH_TOKEN") as caught, ray_session(CLUSTER, 1):
        pass
    assert "\n" not in str(caught.value)


class Places:
    """A placement group for which there is no room."""

    def wait(self, seconds: float) -> bool:
        return False


def test_learners_of_a_product_for_which_no_node_has_room() -> None:
    asked: list[Any] = []
    removed: list[Any] = []

    def placement_group(bundles: list[dict[str, float]], strategy: str) -> Places:
        asked.append(bundles)
        return Places()

    util = SimpleNamespace(placement_group=placement_group, remove_placement_group=removed.append)
    actors = Actors(SimpleNamespace(exceptions=exceptions, util=util, kill=None), CLUSTER, on_gpu=True)
    with pytest.raises(MachineError, match=r"cluster\.tensor_parallel=4: .* not 2 times 4 free GPUs on one node"):
        actors.reserve(2, 4)
    assert asked == [[{"CPU": 4.0, "GPU": 4.0}] * 2]
    actors.end_all()
    assert len(removed) == 1
