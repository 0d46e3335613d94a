import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from burnish.config.schema import ModelConfig
from burnish.models.load import load_policy
from burnish.models.policy import Policy
from burnish.models.tiny import make_tiny_model
from burnish.records import Completion, GenerationRequest, Message, Prompt, Rollout, RolloutGroup, Task

torch.set_num_threads(2)

MakeGroups = Callable[..., list[RolloutGroup]]


@pytest.fixture(autouse=True)
def forget_modules_of_the_test(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a test wrote and imported is not found by the next one that writes a module of that name."""
    modules, paths = set(sys.modules), list(sys.path)
    yield
    base = str(tmp_path_factory.getbasetemp())
    for name in set(sys.modules) - modules:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(base):
            del sys.modules[name]
    sys.path[:] = paths


@pytest.fixture(autouse=True)
def a_slow_machine_is_not_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command says while it takes long would stand among what a test expects it to say."""
    monkeypatch.setattr("burnish.monitoring.console._QUIET_SECONDS", 3600.0)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def tiny_teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model with the same vocabulary, and another hidden size."""
    return make_tiny_model(tmp_path_factory.mktemp("model") / "teacher", seed=1, hidden_size=48)


@pytest.fixture
def tiny_policy(tiny_folder: Path) -> Policy:
    return load_policy(ModelConfig(path=str(tiny_folder), compute_dtype="float32"), seed=0)


@pytest.fixture(scope="session")
def make_groups() -> MakeGroups:
    """Groups of random tokens: `lengths[g]` are the completion lengths of group g."""

    def make(
        lengths: Sequence[Sequence[int]], *, seed: int = 0, prompt_lengths: Sequence[int] = ()
    ) -> list[RolloutGroup]:
        rng = np.random.default_rng(seed)
        groups = []
        for index, group_lengths in enumerate(lengths):
            prompt_length = prompt_lengths[index] if prompt_lengths else int(rng.integers(1, 9))
            task = Task(id=f"task-{index}", messages=(Message(role="user", content=f"q{index}"),), answer="1")
            rollouts = tuple(
                Rollout(
                    completion=Completion(
                        token_ids=tuple(rng.integers(0, 259, length).tolist()),
                        text="",
                        sampling_logprobs=tuple((-rng.exponential(3, length)).tolist()),
                        model_logprobs=(0.0,) * length,
                        finish_reason="stop",
                    ),
                    reward=float(rng.normal()),
                )
                for length in group_lengths
            )
            prompt = Prompt(task=task, text="", token_ids=tuple(rng.integers(0, 259, prompt_length).tolist()))
            groups.append(RolloutGroup(id=index, prompt=prompt, rollouts=rollouts, weight_version=3))
        return groups

    return make


@pytest.fixture(scope="session")
def as_groups() -> Callable[..., list[RolloutGroup]]:
    """Groups of what a generator returned for these requests, all with reward 0."""

    def make(requests: Sequence[GenerationRequest], completions: Sequence[Sequence[Completion]]) -> list[RolloutGroup]:
        task = Task(id="t", messages=(Message(role="user", content="q"),), answer="")
        return [
            RolloutGroup(
                id=index,
                prompt=Prompt(task=task, text="", token_ids=request.token_ids),
                rollouts=tuple(Rollout(completion=completion, reward=0.0) for completion in group),
                weight_version=0,
            )
            for index, (request, group) in enumerate(zip(requests, completions, strict=True))
        ]

    return make
