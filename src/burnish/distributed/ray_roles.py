"""The roles on Ray: learners that form one group, and generators, each an actor."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from burnish.config.schema import RunConfig
from burnish.data.packing import split_batch
from burnish.distributed.actors import Actors, Jobs, ray_session
from burnish.distributed.facts import Facts, Probe, check_clocks, check_facts, facts, probing
from burnish.distributed.roles import CriticNeeds, RoleNeeds, T
from burnish.distributed.vllm_worker import VllmWorker
from burnish.distributed.worker import GeneratorWorker, LearnerWorker
from burnish.errors import LostError
from burnish.losses.loss import Loss
from burnish.records import Completion, GenerationRequest, Metric, Scored, TokenBatch
from burnish.rollout.play import Sample
from burnish.training.checkpoint import TrainState

_HAND_OVER_SECONDS = 0.02  # how long new weights may wait until generators that sample hear of them


@dataclass(frozen=True, slots=True)
class _Published:
    """A version, and Ray's reference of its weights."""

    version: int
    weights: Any


class Group:
    """The learners of one name, "" for the policy's: every one of them gets every call."""

    def __init__(self, roles: RayRoles, name: str) -> None:
        self._roles = roles
        self._name = name

    def score(self, batch: TokenBatch, *, with_collisions: bool = False) -> Scored:
        """See Roles."""
        parts: list[Scored] = self._roles.in_parts("score", batch, self._name, with_collisions)
        return joined(parts)

    def forward_backward(self, batch: TokenBatch, loss: Loss) -> list[dict[str, Metric]]:
        """See Roles."""
        return self._roles.in_parts("forward_backward", batch, self._name, loss, keep_groups=loss.needs_whole_groups)

    def optim_step(self, learning_rate: float) -> dict[str, Metric]:
        """See Roles."""
        found = self._roles.in_step("optim_step", self._name, learning_rate)
        loss = sum(float(each["loss"].value) for each in found)  # each has its share of the batch
        return {**found[0], "loss": Metric(loss, "mean")}


class RayRoles(Group):
    """Learners and generators of one run."""

    def __init__(self, actors: Actors, config: RunConfig, needs: RoleNeeds, folder: Path) -> None:
        super().__init__(self, "")
        self._folder = folder
        self._places: Any | None = None
        self.weight_version = 0
        self._actors = actors
        python = config.cluster.vllm_python
        if python is not None and os.sep in python:
            python = os.path.abspath(python)  # not resolved: an environment's interpreter is a link
        self._config = config.model_copy(
            update={
                "model": config.model.model_copy(update={"path": _absolute(config.model.path)}),
                "cluster": config.cluster.model_copy(update={"vllm_python": python}),
            }
        )
        critic = needs.critic
        if isinstance(critic, CriticNeeds) and critic.path is not None:
            critic = replace(critic, path=_absolute(critic.path))
        rollout = getattr(config, "rollout", None)
        self._lag: int = getattr(rollout, "lag", 0)
        self._updates_while_sampling = getattr(rollout, "update_weights", "between") == "during"
        self._needs = replace(needs, teachers=tuple(map(_absolute, needs.teachers)), critic=critic)
        self._learners: list[Any] = []
        self._generators: list[Any] = []
        self._published: list[_Published] = []
        self._newest: int | None = None  # the version that was published last
        self._held: int | None = None  # the version that every generator has, or is just given
        self._epoch = 0  # counts the restarts
        self._jobs = Jobs()
        self._clock = Clock()
        self._bytes = 0
        self.notice: Callable[[str], None] = lambda text: None

    # ---- beginning ----

    def start(self) -> None:
        """Start every process, check that they fit together, and load the weights they begin with.

        Raises:
            ConfigError: they do not fit.
            MachineError: they are not there in time.
        """
        cluster = self._config.cluster
        num_generators = cluster.generators if self._needs.max_rows else 0
        self._actors.check_room(cluster.learners + num_generators)
        if cluster.tensor_parallel > 1:  # before a generator takes half of a node
            self._places = self._actors.reserve(cluster.learners // cluster.tensor_parallel, cluster.tensor_parallel)
        self._generators = [self._start_generator() for _ in range(num_generators)]
        self._start_learners()
        self._check_facts(self._generators)
        self._wait_for_models(self._generators)

    def restart(self) -> None:
        """Start every process anew; a checkpoint must be loaded into the learners, or they begin again.

        The generators too: the job that is going on then ends at once, however long it would have sampled.

        Raises:
            MachineError: it was done too often.
        """
        self._actors.count_restart("a process")
        self._epoch += 1
        self.end()
        self._actors.open()
        self._jobs = Jobs()
        self._clock = Clock()
        self.weight_version = 0
        self._begin_anew()
        self.start()

    def end(self) -> None:
        """End every process; the job that is going on then fails."""
        self._actors.end_all()
        self._jobs.end()

    def _begin_anew(self) -> None:
        """Forget what was published: before they sample, generators get whole the weights that the learners have."""
        self._published, self._newest, self._held = [], None, None

    def _start_generator(self) -> Any:
        if self._config.cluster.engine == "vllm":
            return self._actors.start(VllmWorker, self._config, self._needs)
        if not self._updates_while_sampling:
            return self._actors.start(GeneratorWorker, self._config, self._needs)
        # one thread samples, the other is handed weights
        return self._actors.start(
            GeneratorWorker, self._config, self._needs, num_threads=2, updates_while_sampling=True
        )

    def _start_learners(self) -> None:
        actors, size = self._actors, self._config.cluster.tensor_parallel
        learners = [
            actors.start(
                LearnerWorker,
                self._config,
                self._needs,
                place=None if self._places is None else (self._places, number // size),
            )
            for number in range(self._config.cluster.learners)
        ]
        with probing(self._folder) as probe:
            told = self._check_facts(learners, probe)
        found = actors.wait([each.address.remote() for each in learners], "the learners' addresses", is_start=True)
        # those of a node are neighbours, for neighbours share products, and then a copy of the weights
        order = sorted(range(len(learners)), key=lambda number: (found[number][0], told[number].process_id))
        self._learners = [learners[number] for number in order]
        addresses = [found[number] for number in order]
        joining = [
            each.join.remote(rank, ip, addresses[0])
            for rank, (each, (ip, _)) in enumerate(zip(self._learners, addresses, strict=True))
        ]
        actors.wait(joining, "the learners to form a group and load their weights", is_start=True)

    def _wait_for_models(self, generators: Sequence[Any]) -> None:
        loading = [each.load_model.remote() for each in generators]
        self._actors.wait(loading, "a generator to load its model", is_start=True)

    def _check_facts(self, workers: Sequence[Any], probe: Probe | None = None) -> list[Facts]:
        """What they say of themselves, if it fits together. Time is only told by processes that are there."""
        path = None if probe is None else probe.path
        told: list[Facts] = self._actors.wait(
            [each.facts.remote(path) for each in workers], "the first answer of every process", is_start=True
        )
        began = time.time()
        clocks = self._actors.wait([each.clock.remote() for each in workers], "the time of every process")
        check_clocks([each.host for each in told], clocks, began, time.time())
        check_facts(told, self._here, probe)
        return told

    @cached_property
    def _here(self) -> Facts:
        return facts(None, (self._config.model.path, *self._needs.other_models))

    # ---- the verbs ----

    @property
    def critic(self) -> Group:
        """See Roles."""
        if not isinstance(self._needs.critic, CriticNeeds):
            raise ValueError("these roles were made without a critic")
        return Group(self, "critic")

    def sample(self, requests: Sequence[GenerationRequest]) -> list[tuple[Completion, ...]]:
        """See Roles. No job may be going on."""
        self._publish_first()
        return self._sample(self._epoch, self.weight_version, requests)

    def aside(self, job: Callable[[Sample], T]) -> Future[T]:
        """See Roles: a thread asks the generators while the learners learn; without a lag nothing is gained by one."""
        self._publish_first()
        sample = partial(self._sample, self._epoch, self.weight_version)
        if self._lag:
            return self._jobs.submit(partial(job, sample))
        done: Future[T] = Future()
        done.set_result(job(sample))
        return done

    def _sample(self, epoch: int, version: int, requests: Sequence[GenerationRequest]) -> list[tuple[Completion, ...]]:
        """Requests are dealt to the generators; those of one that is lost are given to a new one."""
        self._check_epoch(epoch)
        self._bring(epoch, self.weight_version if self._updates_while_sampling else version)
        with self._clock.of("generators"):
            deadline = time.monotonic() + self._config.cluster.timeout_seconds
            shares = [share for share in np.array_split(np.arange(len(requests)), len(self._generators)) if len(share)]
            asked = {self._ask(number, requests, share): (number, share) for number, share in enumerate(shares)}
            answers: dict[int, tuple[Completion, ...]] = {}
            while asked:
                ready = self._next_sampled(epoch, list(asked), deadline)
                number, share = asked.pop(ready)
                try:
                    answers |= zip(share.tolist(), self._actors.answer(ready, f"generator {number}"), strict=True)
                except LostError:
                    self._replace_generator(number, epoch)
                    asked[self._ask(number, requests, share)] = number, share
        return [answers[index] for index in range(len(requests))]

    def _ask(self, number: int, requests: Sequence[GenerationRequest], share: NDArray[np.int64]) -> Any:
        return self._generators[number].sample.remote([requests[index] for index in share])

    def _next_sampled(self, epoch: int, answers: Sequence[Any], deadline: float) -> Any:
        """The first answer. Until it is there the generators get what is published, if they may."""
        while self._updates_while_sampling and time.monotonic() < deadline:
            if (ready := self._actors.soon(answers, _HAND_OVER_SECONDS)) is not None:
                return ready
            self._bring(epoch, self.weight_version, is_sampling=True)
        return self._actors.next(answers, "a generator to sample", deadline)

    def _bring(self, epoch: int, version: int, *, is_sampling: bool = False) -> None:
        """Let every generator have a version of the weights: one change after the other, from the one that it has."""
        verb = "hand_over" if self._updates_while_sampling else "load_weights"
        while self._published and self._published[0].version <= version:
            self._held = self._published[0].version
            weights = self._published.pop(0).weights
            loading = [getattr(generator, verb).remote(weights) for generator in self._generators]
            for number, each in enumerate(loading):
                try:
                    self._bytes += self._actors.wait([each], f"generator {number} to load version {self._held}")[0]
                except LostError:
                    if not is_sampling:  # or whoever waits for its samples replaces it
                        self._replace_generator(number, epoch)

    def _check_epoch(self, epoch: int) -> None:
        """A job from before a restart, which user's code kept from noticing it, must not touch what came after."""
        if epoch != self._epoch:
            raise LostError("the generators that this was to be sampled from are gone")

    def _replace_generator(self, number: int, epoch: int) -> None:
        self._check_epoch(epoch)
        self._actors.count_restart("a generator")
        self.notice(f"generator {number} is gone: another one is started, and samples what it was asked")
        self._actors.end(self._generators[number])
        new = self._start_generator()
        self._generators[number] = new
        self._check_facts([new])
        self._wait_for_models([new])
        loading = new.load_weights.remote(self._learners[0].kept_weights.remote(self._held))
        self._bytes += self._actors.wait([loading], f"generator {number} to load version {self._held}")[0]

    def reference_logprobs(self, batch: TokenBatch) -> Tensor:
        """See Roles."""
        return torch.cat(self.in_parts("reference_logprobs", batch))

    def teacher_logprobs(self, batch: TokenBatch, teacher: int) -> Tensor:
        """See Roles."""
        return torch.cat(self.in_parts("teacher_logprobs", batch, teacher))

    def publish_weights(self, version: int) -> None:
        """See Roles. The weights go from the first learner to the generators through Ray's store, not through here; a
        generator takes them over before it samples again.
        """
        self.weight_version = version
        if self._generators:
            self._publish(base=self._newest)

    def _publish_first(self) -> None:
        if self._newest is None:
            self._publish(base=None)

    def _publish(self, *, base: int | None) -> None:
        with self._clock.of("publish"):
            in_use = min([self.weight_version, *(each.version for each in self._published)])
            in_use = in_use if self._held is None else min(in_use, self._held)
            sent = [
                each.weights.options(num_returns=2).remote(self.weight_version, base, in_use) for each in self._learners
            ]
            what = f"the learners to publish version {self.weight_version}"
            self._actors.wait([is_made for is_made, _ in sent], what)
            self._published.append(_Published(self.weight_version, sent[0][1]))
        self._newest = self.weight_version

    # ---- checkpoints and metrics ----

    def save(self, folder: Path, state: TrainState, *, keep_last: int) -> Path:
        """See Backend."""
        path: Path = self.in_step("save", folder.resolve(), state, keep_last)[0]
        return path

    def load(self, checkpoint: Path) -> TrainState:
        """See Backend."""
        state: TrainState = self.in_step("load", checkpoint.resolve())[0]
        self.weight_version = state.weight_version
        self._begin_anew()
        return state

    def checkpoint_bytes(self) -> int:
        """See Backend."""
        size: int = self.in_step("checkpoint_bytes")[0]
        return size

    def observed(self) -> dict[str, float]:
        """See Backend: what was sent, and how long who had nothing to do, since it was asked last; how many processes
        were started anew since the command began, and the most that a learner held.
        """
        seconds, spent = self._clock.read()
        sent, self._bytes = self._bytes, 0
        found = {
            "idle_learners": 1 - spent.get("learners", 0.0) / seconds,
            "restarts": float(self._actors.num_restarts),
        }
        held = [each.peak_memory.remote() for each in self._learners]
        found["peak_memory_bytes"] = max(self._actors.wait(held, "the learners to say what they held"))
        if self._generators:
            found["idle_generators"] = 1 - spent.get("generators", 0.0) / seconds
            found |= {"seconds_publish": spent.get("publish", 0.0), "bytes_published": float(sent)}
        return found

    # ---- every learner at once ----

    def in_step(self, verb: str, *arguments: Any) -> list[Any]:
        """Call every learner alike. The answers of those that share the batch, one for each share."""
        with self._clock.of("learners"):
            answers = [getattr(each, verb).remote(*arguments) for each in self._learners]
            return self._actors.wait(answers, f"the learners' {verb}")[:: self._config.cluster.tensor_parallel]

    def in_parts(self, verb: str, batch: TokenBatch, *arguments: Any, keep_groups: bool = False) -> list[Any]:
        """Deal a batch in micro-batches to the learners. One answer for each micro-batch, in the batch's order."""
        cluster = self._config.cluster
        num_shares = cluster.learners // cluster.tensor_parallel
        limit = min(int(self._config.train.micro_batch_tokens), -(-len(batch.token_ids_T) // num_shares))
        parts = list(split_batch(batch, limit, keep_groups=keep_groups))
        shares = deal([len(part.token_ids_T) for part in parts], num_shares)
        smallest = min(parts, key=lambda part: len(part.token_ids_T))
        num_rounds = max(map(len, shares))
        with self._clock.of("learners"):
            answers = []
            for rank, learner in enumerate(self._learners):
                share = shares[rank // cluster.tensor_parallel]
                mine = [parts[index] for index in share] + [smallest] * (num_rounds - len(share))
                answers.append(getattr(learner, verb).remote(mine, len(share), *arguments))
            found = self._actors.wait(answers, f"the learners' {verb}")[:: cluster.tensor_parallel]
        by_part = {
            index: each
            for share, answer in zip(shares, found, strict=True)
            for index, each in zip(share, answer, strict=True)
        }
        return [by_part[index] for index in range(len(parts))]


class Clock:
    """How long who was busy since it was read last; what is still going on counts up to now."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since = time.monotonic()
        self._busy_since: dict[str, float] = {}
        self._spent: dict[str, float] = {}

    @contextmanager
    def of(self, who: str) -> Iterator[None]:
        """The time of a block is theirs."""
        with self._lock:
            self._busy_since[who] = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._book(who, time.monotonic())
                del self._busy_since[who]

    def read(self) -> tuple[float, dict[str, float]]:
        """(seconds since it was read last, seconds of them that each was busy)."""
        with self._lock:
            now = time.monotonic()
            for who in self._busy_since:
                self._book(who, now)
            spent, self._spent = self._spent, {}
            seconds, self._since = now - self._since, now
        return seconds, spent

    def _book(self, who: str, now: float) -> None:
        self._spent[who] = self._spent.get(who, 0.0) + now - self._busy_since[who]
        self._busy_since[who] = now


@contextmanager
def ray_roles(config: RunConfig, needs: RoleNeeds, folder: Path) -> Iterator[RayRoles]:
    """Ray, with the processes of a run; all of it ends with the context. Every node must see what is in `folder`."""
    cluster = config.cluster
    num_processes = cluster.learners + (cluster.generators if needs.max_rows else 0)
    with ray_session(cluster, num_processes) as ray:
        on_gpu = config.model.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
        actors = Actors(ray, cluster, on_gpu=on_gpu)
        roles = RayRoles(actors, config, needs, folder)
        try:
            roles.start()
            yield roles
        finally:
            roles.end()


def _absolute(path: str) -> str:
    """A folder by its full path, for a process may be in another folder than this one; a name as it is."""
    return str(Path(path).resolve()) if Path(path).is_dir() else path


def deal(sizes: Sequence[int], num_shares: int) -> list[list[int]]:
    """Indices for each share; those computed at the same time are of like size, for all wait for the longest."""
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    for place, index in enumerate(sorted(range(len(sizes)), key=lambda index: -sizes[index])):
        shares[place % num_shares].append(index)
    return shares


def joined(parts: Sequence[Scored]) -> Scored:
    """What was scored in parts, as one."""

    def all_of(name: str) -> Any:
        present = [value for part in parts if (value := getattr(part, name)) is not None]
        return torch.cat(present) if present else None

    return Scored(**{each.name: all_of(each.name) for each in fields(Scored)})
