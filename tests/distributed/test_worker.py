"""Weights on their way from a learner to a generator."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from burnish.algorithms.grpo import GRPOConfig
from burnish.distributed.roles import RoleNeeds
from burnish.distributed.worker import GeneratorWorker, Weights, bits_of, change_of, changed, checksum_of, interface_of
from burnish.models.load import load_policy
from burnish.records import GenerationRequest, SamplingSettings

VALUES = st.sampled_from([0.0, -0.0, 1.0, 1.0000001, float("nan"), float("inf"), 3e-41])
PAIRS = st.integers(1, 60).flatmap(
    lambda size: st.tuples(*[arrays.arrays(np.float32, size, elements=VALUES.map(np.float32))] * 2)
)


@given(PAIRS)
def test_a_change_is_exact(pair: tuple[np.ndarray, np.ndarray]) -> None:
    before, after = pair
    change = change_of(before, after)
    assert changed(before.copy(), change).tobytes() == after.tobytes()


def test_a_change_of_little_is_little_to_send() -> None:
    before = np.arange(10_000, dtype=np.float32)
    after = before.copy()
    after[[3, 9_999]] += 1
    places, values = change_of(before, after)
    assert places.tolist() == [3, 9_999]
    assert values.tolist() == [4, 10_000]
    assert change_of(before, after + 1) is not None
    assert not isinstance(change_of(before, after + 1), tuple)  # all of it is less than all of it with its places


@pytest.fixture
def worker(tiny_folder: Path) -> GeneratorWorker:
    model = {"path": str(tiny_folder), "compute_dtype": "bfloat16"}
    config = GRPOConfig.model_validate({"model": model, "task": {"source": "any"}, "name": "any"})
    worker = GeneratorWorker(config, RoleNeeds(max_rows=4))
    worker.load_model()
    return worker


def published(tiny_folder: Path, version: int) -> Weights:
    from burnish.config.schema import ModelConfig

    policy = load_policy(ModelConfig(path=str(tiny_folder), compute_dtype="bfloat16"), seed=0)
    found = {name: bits_of(weight.detach() * (1 + version)) for name, weight in policy.trainable().items()}
    return Weights(version, None, found, checksum_of(found))


def test_a_generator_takes_weights_and_then_changes(worker: GeneratorWorker, tiny_folder: Path) -> None:
    first, second = published(tiny_folder, 1), published(tiny_folder, 2)
    assert worker.load_weights(first) == first.num_bytes
    changes = {name: change_of(first.arrays[name], array) for name, array in second.arrays.items()}
    worker.load_weights(Weights(2, 1, changes, second.checksum))
    assert worker.version == 2
    weight = worker._policy.trainable()["model.norm.weight"]
    assert torch.equal(weight.detach().view(torch.int16), torch.from_numpy(second.arrays["model.norm.weight"]))


def test_what_is_handed_over_is_there_for_the_next_token(tiny_folder: Path) -> None:
    model = {"path": str(tiny_folder), "compute_dtype": "bfloat16"}
    config = GRPOConfig.model_validate({"model": model, "task": {"source": "any"}, "name": "any"})
    worker = GeneratorWorker(config, RoleNeeds(max_rows=4), updates_while_sampling=True)
    worker.load_model()
    asked = GenerationRequest(token_ids=(5, 6, 7), sampling=SamplingSettings(max_tokens=6), seeds=(1,))
    with pytest.raises(ValueError, match="no weights were given before sampling"):
        worker.sample([asked])
    first, second = published(tiny_folder, 1), published(tiny_folder, 2)
    assert worker.hand_over(first) == first.num_bytes
    changes = {name: change_of(first.arrays[name], array) for name, array in second.arrays.items()}
    worker.hand_over(Weights(2, 1, changes, second.checksum))
    assert worker.version is None
    assert [completion.versions for completion in worker.sample([asked])[0]] == [((2, 6),)]
    weight = worker._policy.trainable()["model.norm.weight"]
    assert torch.equal(weight.detach().view(torch.int16), torch.from_numpy(second.arrays["model.norm.weight"]))
    worker.hand_over(first)
    worker.hand_over(replace(second, base=7))
    with pytest.raises(ValueError, match="a change of version 7 for version 1"):
        worker.sample([asked])


def test_a_change_of_another_version_or_damage_is_refused(worker: GeneratorWorker, tiny_folder: Path) -> None:
    first = published(tiny_folder, 1)
    with pytest.raises(ValueError, match="a change of version 0 for version None"):
        worker.load_weights(replace(first, base=0))
    with pytest.raises(ValueError, match="weights of version 1 arrived damaged"):
        worker.load_weights(replace(first, checksum="0" * 64))


def test_weights_of_another_type_are_refused(worker: GeneratorWorker, tiny_folder: Path) -> None:
    first = published(tiny_folder, 1)
    wide = {name: array.astype(np.float32) for name, array in first.arrays.items()}
    with pytest.raises(ValueError, match="was published as float32, and is int16 here"):
        worker.load_weights(replace(first, arrays=wide))


def test_the_interface_of_an_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None
