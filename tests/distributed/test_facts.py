"""Processes that do not fit together are refused before the first step."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from burnish.algorithms.grpo import GRPOConfig
from burnish.distributed import ray_roles
from burnish.distributed.facts import Facts, Probe, check_clocks, check_facts, facts, probing
from burnish.distributed.roles import CriticNeeds, RoleNeeds
from burnish.errors import ConfigError, LostError, ModelError
from burnish.models.tiny import make_tiny_model
from burnish.reproducibility.record import quick_fingerprint

HERE = Facts("here", 1, "b" * 64, "2.13", "5.24", "3.12", {"/m": "1" * 64}, "token")
ELSEWHERE = replace(HERE, host="elsewhere", process_id=2)


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ({"burnish": "c" * 64}, "elsewhere has another burnish"),
        ({"burnish": "c" * 64, "host": "here"}, "burnish's own files changed while the run was going on"),
        ({"torch": "2.12"}, r"elsewhere has another torch \(2\.12, and here 2\.13\)"),
        ({"transformers": "5.1"}, r"elsewhere has another transformers \(5\.1, and here 5\.24\)"),
        ({"python": "3.13"}, "elsewhere has another python"),
        ({"models": {"/m": "2" * 64}}, r"elsewhere has another copy of the model /m \(2+, and here 1+\): copy"),
        ({"sees": None}, "runs_folder: elsewhere does not see what is written to runs from here"),
    ],
    ids=lambda value: next(iter(value), None) if isinstance(value, dict) else None,
)
def test_what_does_not_fit_is_one_line(theirs: dict[str, Any], message: str) -> None:
    probe = Probe(Path("runs"), "/runs/probe", "token")
    check_facts([ELSEWHERE], HERE, probe)
    with pytest.raises(ConfigError, match=message):
        check_facts([ELSEWHERE, replace(ELSEWHERE, **theirs)], HERE, probe)


def test_a_clock_that_is_off() -> None:
    check_clocks(["here", "elsewhere"], [100.0, 109.0], 100.0, 101.0)
    with pytest.raises(ConfigError, match=r"the clock of elsewhere is -20 s off"):
        check_clocks(["here", "elsewhere"], [100.0, 81.0], 100.0, 101.0)


def test_what_a_process_says(tiny_folder: Path, tmp_path: Path) -> None:
    with probing(tmp_path / "runs") as probe:
        told = facts(probe.path, [str(tiny_folder)])
        assert told.sees == probe.token
    assert list((tmp_path / "runs").iterdir()) == []
    assert facts(probe.path, []).sees is None
    copied = shutil.copytree(tiny_folder, tmp_path / "copy")
    assert list(facts(None, [str(copied)]).models.values()) == list(told.models.values())
    with pytest.raises(ModelError, match=rf"/nowhere.*\(on {told.host}\)"):
        facts(None, ["/nowhere"])


def test_copies_of_a_model_are_told_apart(tiny_folder: Path, tmp_path: Path) -> None:
    def fingerprint(folder: Path, base: Path | None = None) -> str:
        return quick_fingerprint(str(folder), base=None if base is None else str(base), commit=None)

    trained = make_tiny_model(tmp_path / "trained", seed=1)
    assert fingerprint(trained) != fingerprint(tiny_folder)
    assert fingerprint(trained, trained) != fingerprint(trained, tiny_folder)
    assert quick_fingerprint("a/b", base=None, commit="1") != quick_fingerprint("a/b", base=None, commit="2")
    before = fingerprint(trained)
    (trained / "README.md").write_text("what a copy may lack")
    assert fingerprint(trained) == before
    weights = trained / "model.safetensors"
    for size, place in ((2**20, 2**19), (2**23, 2**22), (2**23, 0), (2**23, 2**23 - 1)):  # 64 blocks are half of 2**23
        content = bytearray(size)
        weights.write_bytes(content)
        before = fingerprint(trained)
        content[place : place + 2**17] = b"\1" * min(2**17, size - place)
        weights.write_bytes(content)
        assert fingerprint(trained) != before, (size, place)


class Verb:
    def __init__(self, call: Callable[..., Any]) -> None:
        self.remote = call


class Worker:
    """A process of an address, whose clock differs and which takes a while to start."""

    def __init__(self, cluster: "Cluster", number: int) -> None:
        self.cluster, self.number = cluster, number
        self.joined: tuple[Any, ...] = ()
        self.facts, self.clock, self.address, self.join = map(
            Verb, (self._facts, self._clock, self._address, self._join)
        )
        self.load_model = Verb(lambda: None)

    def _facts(self, probe: str | None) -> Facts:
        self.cluster.now += 60
        sees = Path(probe).read_text() if probe else None
        return replace(facts(None, []), process_id=100 - self.number, sees=sees, **self.cluster.differs)

    def _clock(self) -> float:
        return self.cluster.now + self.cluster.clock_seconds

    def _address(self) -> tuple[str, int]:
        return f"10.0.0.{self.number % 2}", 7000 + self.number

    def _join(self, rank: int, ip: str, master: tuple[str, int]) -> None:
        self.joined = rank, ip, master


class Cluster:
    """Stands for Actors, and for the module time: the answers are there at once."""

    def __init__(self) -> None:
        self.now, self.clock_seconds = 1000.0, 0.0
        self.differs: dict[str, Any] = {}
        self.started: list[Worker] = []
        self.places: list[Any] = []
        self.restarts: list[str] = []
        self.count_restart = self.restarts.append

    def check_room(self, wanted: int) -> None:
        pass

    def reserve(self, num_places: int, size: int) -> str:
        return f"{num_places} times {size}"

    def start(self, worker: type, *arguments: Any, place: Any = None, **named: Any) -> Worker:
        self.places.append(place)
        self.started.append(Worker(self, len(self.started)))
        return self.started[-1]

    def end(self, worker: Worker) -> None:
        pass

    def wait(self, answers: Sequence[Any], what: str, *, is_start: bool = False) -> list[Any]:
        return list(answers)

    def time(self) -> float:
        return self.now


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster()
    monkeypatch.setattr(ray_roles, "time", SimpleNamespace(time=cluster.time, monotonic=cluster.time))
    return cluster


@pytest.fixture
def make_roles(cluster: Cluster, tiny_folder: Path, tmp_path: Path) -> Callable[..., ray_roles.RayRoles]:
    def make(needs: RoleNeeds | None = None, **settings: Any) -> ray_roles.RayRoles:
        where = {"kind": "ray", **settings}
        config = GRPOConfig.model_validate(
            {"name": "any", "model": {"path": str(tiny_folder)}, "task": {"source": "any"}, "cluster": where}
        )
        return ray_roles.RayRoles(cluster, config, needs or RoleNeeds(max_rows=4), tmp_path / "run")

    return make


@pytest.mark.parametrize("seconds", [-50.0, 50.0])  # less than a process here takes to start
def test_a_slow_start_hides_no_clock(cluster: Cluster, make_roles: Any, seconds: float) -> None:
    roles = make_roles()
    roles.start()
    cluster.clock_seconds = seconds
    with pytest.raises(ConfigError, match=rf"the clock of \S+ is \{seconds:+.0f} s off"):
        roles.start()


def test_neighbours_are_of_one_node(cluster: Cluster, make_roles: Any) -> None:
    make_roles(RoleNeeds(), learners=4, tensor_parallel=2).start()
    ranks = {worker.number: worker.joined[0] for worker in cluster.started}
    assert ranks == {2: 0, 0: 1, 3: 2, 1: 3}  # by address, then by process
    assert {worker.joined[2] for worker in cluster.started} == {("10.0.0.0", 7002)}
    assert cluster.places == [("2 times 2", 0), ("2 times 2", 0), ("2 times 2", 1), ("2 times 2", 1)]


def test_a_generator_that_is_replaced_must_fit_too(cluster: Cluster, make_roles: Any) -> None:
    roles = make_roles()
    roles.start()
    cluster.differs = {"transformers": "1.0"}
    with pytest.raises(ConfigError, match=r"has another transformers \(1\.0"):
        roles._replace_generator(0, epoch=0)


def test_a_job_from_before_a_restart_replaces_nothing(cluster: Cluster, make_roles: Any) -> None:
    roles = make_roles()
    roles.start()
    roles._epoch += 1
    with pytest.raises(LostError):
        roles._replace_generator(0, epoch=0)
    assert cluster.restarts == []


def test_every_model_that_is_loaded_is_compared() -> None:
    assert RoleNeeds(teachers=("a", "b"), critic=CriticNeeds(path="c", learning_rate=1.0)).other_models == (
        "a",
        "b",
        "c",
    )
    assert RoleNeeds(critic=CriticNeeds(path=None, learning_rate=1.0)).other_models == ()
    assert RoleNeeds(critic="shared").other_models == ()
