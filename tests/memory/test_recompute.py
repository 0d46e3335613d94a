from pathlib import Path

import pytest
import torch

from burnish.config.schema import ModelConfig
from burnish.data.packing import pack
from burnish.errors import ModelError
from burnish.memory.recompute import layers_of, recompute
from burnish.memory.trace import LiveBytes
from burnish.models.load import load_policy
from burnish.models.policy import Policy
from burnish.models.tiny import make_tiny_model
from burnish.records import Branch, Example
from burnish.training.learner import predictor_states, score


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    path = make_tiny_model(tmp_path / "tiny", num_layers=4)
    return load_policy(ModelConfig(path=str(path), compute_dtype="float32"), seed=0)


def gradient(policy: Policy) -> tuple[dict[str, torch.Tensor], int]:
    """The gradient of the log-probabilities, and the bytes that wait for the backward pass."""
    branches = tuple(Branch(token_ids=tuple(range(5 + n, 40 + n))) for n in range(3))
    batch = pack([Example(id="a", prompt_ids=tuple(range(3, 20)), branches=branches)])
    with LiveBytes() as live:
        hidden_SH = predictor_states(policy, batch)
        kept = live.live_bytes
        score(policy, batch, hidden_SH, 1.0).logprobs_S.sum().backward()
    found = {name: parameter.grad for name, parameter in policy.trainable().items() if parameter.grad is not None}
    for parameter in policy.trainable().values():
        parameter.grad = None
    return found, kept


@pytest.mark.parametrize("every", [1, 2])
def test_the_gradient_is_the_same_bit_for_bit_and_less_is_kept(policy: Policy, every: int) -> None:
    plain, plain_kept = gradient(policy)
    recompute(policy.model, every=every)
    found, kept = gradient(policy)
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    assert kept < plain_kept * (0.3 if every == 1 else 0.7)
    assert kept > plain_kept * (0.0 if every == 1 else 0.4)  # every second layer keeps what it kept


def test_a_model_without_known_layers_is_refused() -> None:
    with pytest.raises(ModelError, match="no layers"):
        layers_of(torch.nn.Linear(2, 2))
