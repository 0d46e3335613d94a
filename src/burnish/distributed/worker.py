"""What the processes of a cluster do: learners that form one group, and generators. Plain classes; Ray makes actors of
them.
"""

from __future__ import annotations

import hashlib
import os
import queue
import socket
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from burnish.config.schema import RunConfig
from burnish.distributed.facts import Facts, facts
from burnish.distributed.local import build_local_roles, prepare_process
from burnish.distributed.roles import RoleNeeds
from burnish.distributed.sharding import make_sharding
from burnish.losses.loss import Loss
from burnish.memory.measure import peak_memory_bytes
from burnish.models.load import find_device, find_dtype, load_policy
from burnish.records import Completion, GenerationRequest, LossOutput, Metric, Scored, TokenBatch
from burnish.reproducibility.seeds import seed_for
from burnish.rollout.generators.native import NativeGenerator
from burnish.training.checkpoint import TrainState, load_checkpoint, save_checkpoint


@dataclass(frozen=True, slots=True)
class Weights:
    """The trained weights of one version, as they compute; with a `base`, what changed since that version.

    `arrays` has for each weight its values, or (places, values) of the changed ones; bfloat16 travels as its bits.
    `checksum` is of the whole weights after the change.
    """

    version: int
    base: int | None
    arrays: Mapping[str, NDArray[Any] | tuple[NDArray[Any], NDArray[Any]]]
    checksum: str

    @property
    def num_bytes(self) -> int:
        """What travels."""
        return sum(
            sum(part.nbytes for part in each) if isinstance(each, tuple) else each.nbytes
            for each in self.arrays.values()
        )


class LearnerWorker:
    """One process of the group. Each of them gets every call, in the same order, for they wait for each other.

    Processes that share a product get the same micro-batches; the others get as many, of which those after the first
    `num_real` are there so that nobody waits: they add nothing.
    """

    def __init__(self, config: RunConfig, needs: RoleNeeds) -> None:
        self.config = config
        self.needs = needs
        self._kept: dict[int, dict[str, NDArray[Any]]] = {}  # weights by version

    def facts(self, probe: str | None) -> Facts:
        """See Facts; `probe` is the path of a Probe."""
        return facts(probe, (self.config.model.path, *self.needs.other_models))

    def clock(self) -> float:
        """The time here."""
        return time.time()

    def peak_memory(self) -> int:
        """The most that this process held, in bytes."""
        return peak_memory_bytes()

    def address(self) -> tuple[str, int]:
        """Where the others find this process."""
        return free_address()

    def join(self, rank: int, ip: str, master: tuple[str, int]) -> None:
        """Form the group, in which this is the process of a rank, and load the weights."""
        self.rank = rank
        device, cluster = find_device(self.config.model.device), self.config.cluster
        prepare_process(self.config)
        backend = "nccl" if device.type == "cuda" else "gloo"
        join_group(backend, rank, cluster.learners, ip, master, timeout_seconds=cluster.timeout_seconds)
        sharding = make_sharding(cluster.learners, cluster.tensor_parallel, cluster.replicas, device)
        self._roles = build_local_roles(self.config, replace(self.needs, max_rows=0), sharding=sharding)

    def forward_backward(
        self, parts: Sequence[TokenBatch], num_real: int, role: str, loss: Loss
    ) -> list[dict[str, Metric]]:
        """Accumulate the gradient of the parts. Metrics of the real ones."""
        metrics: list[dict[str, Metric]] = []
        for index, part in enumerate(parts):
            found = self._roles.learners[role].forward_backward(part, loss if index < num_real else Nothing(loss))
            metrics += found if index < num_real else []
        return [{name: _on_cpu(metric) for name, metric in found.items()} for found in metrics]

    def optim_step(self, role: str, learning_rate: float) -> dict[str, Metric]:
        """See Learner."""
        self._reshard()
        return {name: _on_cpu(metric) for name, metric in self._roles.learners[role].optim_step(learning_rate).items()}

    def score(self, parts: Sequence[TokenBatch], num_real: int, role: str, with_collisions: bool) -> list[Scored]:
        """What the weights say of the real parts."""
        learner = self._roles.learners[role]
        return [learner.score(part, with_collisions=with_collisions) for part in parts][:num_real]

    def reference_logprobs(self, parts: Sequence[TokenBatch], num_real: int) -> list[Tensor]:
        """What the weights that the run started from say of the real parts."""
        return [self._roles.reference_logprobs(part) for part in parts][:num_real]

    def teacher_logprobs(self, parts: Sequence[TokenBatch], num_real: int, teacher: int) -> list[Tensor]:
        """What a teacher says of the real parts."""
        return [self._roles.teacher_logprobs(part, teacher) for part in parts][:num_real]

    def weights(self, version: int, base: int | None, in_use: int) -> tuple[bool, Weights | None]:
        """The trained weights as they compute, from the first process; the others help it.

        With a `base`, a version from before, only what changed since then. Versions from `in_use` on are kept.
        """
        policy = self._roles.learner.policy
        # peft keeps adapters in float32
        dtype = torch.float32 if policy.is_adapted else getattr(torch, find_dtype(self.config.model))
        sampled_from = {name for name, _ in policy.module.named_parameters()}  # a shared critic's head is not
        arrays: dict[str, NDArray[Any]] = {}
        for name, weight in self._roles.learner.optimizer.weights():
            if self.rank == 0 and name in sampled_from:
                arrays[name] = bits_of(weight.to(dtype))
        if self.rank != 0:
            return True, None
        sent: dict[str, Any] = dict(arrays)
        if base is not None:
            sent = {name: change_of(self._kept[base][name], array) for name, array in arrays.items()}
        self._kept = {each: kept for each, kept in self._kept.items() if each >= in_use} | {version: arrays}
        return True, Weights(version, base, sent, checksum_of(arrays))

    def kept_weights(self, version: int) -> Weights:
        """A version that generators still use, whole."""
        kept = self._kept[version]
        return Weights(version, None, kept, checksum_of(kept))

    def save(self, folder: Path, state: TrainState, keep_last: int) -> Path:
        """Write a checkpoint: the first process does, of what all have."""
        return save_checkpoint(folder, self._roles.learners, state, keep_last=keep_last, is_writer=self.rank == 0)

    def load(self, checkpoint: Path) -> TrainState:
        """Take over a checkpoint, of however many processes."""
        self._reshard()
        return load_checkpoint(checkpoint, self._roles.learners)

    def checkpoint_bytes(self) -> int:
        """See Roles."""
        return self._roles.checkpoint_bytes()

    def _reshard(self) -> None:
        """Let go of what FSDP gathered to score and keeps: after the weights change it would be the old ones."""
        for learner in self._roles.learners.values():
            trunk: Any = learner.policy.trunk
            trunk.reshard()


class GeneratorWorker:
    """A process that samples from the weights it was given last. While it samples, another thread may hand over newer
    ones, if it was made for that.
    """

    def __init__(self, config: RunConfig, needs: RoleNeeds, *, updates_while_sampling: bool = False) -> None:
        self.config = config
        self.needs = needs
        self.version: int | None = None
        self._updates_while_sampling = updates_while_sampling
        self._handed_over: queue.SimpleQueue[Weights] = queue.SimpleQueue()

    def facts(self, probe: str | None) -> Facts:
        """See Facts."""
        return facts(probe, (self.config.model.path,))

    def clock(self) -> float:
        """The time here."""
        return time.time()

    def load_model(self) -> None:
        """Load the weights that the run starts from."""
        prepare_process(self.config)
        seed = seed_for(self.config.seed, "adapter")
        self._policy = load_policy(self.config.model, seed=seed, kind=self.needs.kind)
        take_over = self._take_over if self._updates_while_sampling else None
        self._generator = NativeGenerator(self._policy, max_rows=self.needs.max_rows, take_over=take_over)

    @torch.no_grad()
    def load_weights(self, weights: Weights) -> int:
        """Take over a version. Returns how many bytes it took.

        Raises:
            ValueError: it is a change of another version than the one that is here, or arrived damaged.
        """
        if weights.base is not None and weights.base != self.version:
            raise ValueError(f"a change of version {weights.base} for version {self.version}")
        arrays: dict[str, NDArray[Any]] = {}
        for name, parameter in self._policy.trainable().items():
            here, sent = bits_of(parameter.detach()), weights.arrays[name]
            if here.dtype != (values := sent[1] if isinstance(sent, tuple) else sent).dtype:
                raise ValueError(f"{name} was published as {values.dtype}, and is {here.dtype} here")
            arrays[name] = changed(here, sent)
            parameter.copy_(tensor_of(arrays[name]))
        if checksum_of(arrays) != weights.checksum:
            raise ValueError(f"weights of version {weights.version} arrived damaged: their checksum differs")
        self.version = weights.version
        return weights.num_bytes

    def hand_over(self, weights: Weights) -> int:
        """Let a version be taken over before the next token that is sampled. Returns how many bytes it took."""
        self._handed_over.put(weights)
        return weights.num_bytes

    def _take_over(self) -> int:
        while not self._handed_over.empty():  # nobody else takes
            self.load_weights(self._handed_over.get())
        if self.version is None:
            raise ValueError("no weights were given before sampling")
        return self.version

    def sample(self, requests: Sequence[GenerationRequest]) -> list[tuple[Completion, ...]]:
        """See Generator."""
        return self._generator.generate(requests)


class Nothing:
    """A loss of 0 that needs what another one needs."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.normalizer = loss.normalizer
        self.needs_whole_groups = loss.needs_whole_groups

    def __call__(self, scored: Scored, batch: TokenBatch) -> LossOutput:
        """0, with a gradient of 0."""
        return LossOutput(total=self.loss(scored, batch).total * 0, metrics={})


def free_address() -> tuple[str, int]:
    """This node's address, and a port that is free there."""
    import ray

    ip: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # ray's
    with socket.socket() as free:
        free.bind((ip, 0))
        return ip, int(free.getsockname()[1])


def join_group(backend: str, rank: int, size: int, ip: str, master: tuple[str, int], *, timeout_seconds: float) -> None:
    """Make this process, at an address, one of a torch process group whose first process is at `master`."""
    if (interface := interface_of(ip)) is not None:  # or gloo takes what the host's name resolves to
        os.environ["GLOO_SOCKET_IFNAME"] = interface
    dist.init_process_group(
        backend,
        init_method=f"tcp://{master[0]}:{master[1]}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout_seconds),
    )


def interface_of(ip: str) -> str | None:
    """The network interface that has an address, on Linux."""
    if not sys.platform.startswith("linux"):
        return None
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(asking.fileno(), 0x8915, request)  # SIOCGIFADDR
            except OSError:  # an interface without an address
                continue
            if socket.inet_ntoa(answer[20:24]) == ip:
                return name
    return None


def checksum_of(arrays: Mapping[str, NDArray[Any]]) -> str:
    """sha256 of all weights in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def bits_of(weight: Tensor) -> NDArray[Any]:
    """A copy as an array; numpy has no bfloat16."""
    here = weight.detach().cpu().contiguous()
    array = here.view(torch.int16).numpy() if here.dtype == torch.bfloat16 else here.numpy()
    return array.copy()


def tensor_of(array: NDArray[Any]) -> Tensor:
    """The inverse of `bits_of`, on the array's memory."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.int16 else tensor


def change_of(before: NDArray[Any], after: NDArray[Any]) -> NDArray[Any] | tuple[NDArray[Any], NDArray[Any]]:
    """The places and values that changed, or all values where that is less to send. Bits are compared: -0 is not 0."""
    kind = np.int16 if after.itemsize == 2 else np.int32
    places = np.flatnonzero(before.view(kind).ravel() != after.view(kind).ravel())
    if len(places) * (4 + after.itemsize) >= after.nbytes or after.size >= 2**31:
        return after
    return places.astype(np.int32), after.ravel()[places]


def changed(before: NDArray[Any], change: NDArray[Any] | tuple[NDArray[Any], NDArray[Any]]) -> NDArray[Any]:
    """The values after a change. `before` is changed in place, where it can be."""
    if not isinstance(change, tuple):
        return change.reshape(before.shape).copy()  # what came through shared memory is read-only
    places, values = change
    before.ravel()[places] = values
    return before


def _on_cpu(metric: Metric) -> Metric:
    def here(value: Tensor | float) -> Tensor | float:
        return value.detach().cpu() if isinstance(value, Tensor) else value

    return replace(metric, value=here(metric.value), count=here(metric.count))
