"""What Ray raises becomes one line, or is healed."""

from types import SimpleNamespace
from typing import Any

import pytest

from burnish.config.schema import ClusterConfig
from burnish.distributed.actors import Actors, ray_session
from burnish.errors import ConfigError, LostError, MachineError

CLUSTER = ClusterConfig(kind="ray")


@pytest.fixture
def ray() -> Any:
    """Imported by the tests alone: what an earlier import has read of a cluster's token stays for the process."""
    return pytest.importorskip("ray", reason="Ray is in the extra `ray`")


def raising(error: BaseException) -> Any:
    def raise_it(*arguments: Any, **named: Any) -> Any:
        raise error

    return raise_it


def answered(ray: Any, error: BaseException) -> Any:
    fake = SimpleNamespace(exceptions=ray.exceptions, get=raising(error))
    return Actors(fake, CLUSTER, on_gpu=False).answer("ready", "generator 0")


@pytest.mark.parametrize(
    ("name", "words", "why"),
    [
        ("ActorDiedError", (), "it was killed, or it crashed"),
        ("NodeDiedError", ("Ray's words",), "its node is gone"),
        ("OutOfMemoryError", ("no room",), "its node was almost out of memory, and Ray ended it"),
        ("WorkerCrashedError", (), "it was killed, or it crashed"),
    ],
)
def test_a_process_that_is_gone_is_lost(ray: Any, name: str, words: tuple[str, ...], why: str) -> None:
    with pytest.raises(LostError, match=f"^generator 0: a process is gone: {why}$"):
        answered(ray, getattr(ray.exceptions, name)(*words))


def test_an_actor_whose_node_is_gone(ray: Any) -> None:
    from ray.core.generated.common_pb2 import ActorDiedErrorContext

    context = ActorDiedErrorContext(error_message="The actor died because its node has died.", actor_id=bytes(16))
    with pytest.raises(LostError, match=r"^generator 0: a process is gone: its node is gone$"):
        answered(ray, ray.exceptions.ActorDiedError(context))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ObjectStoreFullError", ("no\nroom",)),
        ("OutOfDiskError", ("no room",)),
        ("RaySystemError", ("no room",)),
        ("RuntimeEnvSetupError", ("no room",)),
        ("ActorUnschedulableError", ("no room",)),
        ("TaskCancelledError", ()),
    ],
)
def test_whatever_else_ray_raises_is_one_line(ray: Any, name: str, words: tuple[str, ...]) -> None:
    said = "" if name in ("OutOfDiskError", "TaskCancelledError") else ".*no room"
    with pytest.raises(MachineError, match=f"^generator 0: {name}: {said}") as caught:
        answered(ray, getattr(ray.exceptions, name)(*words))
    assert not isinstance(caught.value, LostError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("is_token", [True, False], ids=["token", "silence"])
def test_a_cluster_that_lets_nobody_in_is_one_line(ray: Any, monkeypatch: pytest.MonkeyPatch, is_token: bool) -> None:
    error = ray.exceptions.AuthenticationError("no token\nis given") if is_token else ConnectionError("nobody")
    monkeypatch.setattr(ray, "init", raising(error))
    with pytest.raises(ConfigError, match=r"cluster\.address=.*RAY_AUTH_TOKEN") as caught, ray_session(CLUSTER, 1):
        pass
    assert "\n" not in str(caught.value)


class Places:
    """A placement group for which there is no room."""

    def wait(self, seconds: float) -> bool:
        return False


def test_learners_of_a_product_for_which_no_node_has_room(ray: Any) -> None:
    asked: list[Any] = []
    removed: list[Any] = []

    def placement_group(bundles: list[dict[str, float]], strategy: str) -> Places:
        asked.append(bundles)
        return Places()

    util = SimpleNamespace(placement_group=placement_group, remove_placement_group=removed.append)
    actors = Actors(SimpleNamespace(exceptions=ray.exceptions, util=util, kill=None), CLUSTER, on_gpu=True)
    with pytest.raises(MachineError, match=r"cluster\.tensor_parallel=4: .* not 2 times 4 free GPUs on one node"):
        actors.reserve(2, 4)
    assert asked == [[{"CPU": 4.0, "GPU": 4.0}] * 2]
    actors.end_all()
    assert len(removed) == 1
