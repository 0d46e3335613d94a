import pytest
import torch

from burnish.models import logprobs


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk_rows", [1, 3, 256])
def test_against_the_whole_softmax(monkeypatch, temperature: float, chunk_rows: int) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_ROWS", chunk_rows)
    generator = torch.Generator().manual_seed(0)
    hidden_SH = torch.randn(7, 5, generator=generator, dtype=torch.float32, requires_grad=True)
    head_VH = torch.randn(11, 5, generator=generator, dtype=torch.float32, requires_grad=True)
    targets_S = torch.randint(0, 11, (7,), generator=generator)
    weights_S = torch.randn(7, generator=generator)

    logprobs_S, entropy_S = logprobs.scored_logprobs(hidden_SH, head_VH, targets_S, temperature)
    gradients = torch.autograd.grad((logprobs_S * weights_S).sum(), (hidden_SH, head_VH))

    whole_SV = torch.log_softmax(hidden_SH.double() @ head_VH.double().T / temperature, dim=1)
    naive_S = whole_SV[torch.arange(7), targets_S]
    naive_gradients = torch.autograd.grad((naive_S * weights_S).sum(), (hidden_SH, head_VH))
    assert torch.allclose(logprobs_S.double(), naive_S, atol=1e-6)
    assert torch.allclose(entropy_S.double(), -(whole_SV.exp() * whole_SV).sum(1), atol=1e-6)
    for ours, naive in zip(gradients, naive_gradients, strict=True):
        assert torch.allclose(ours, naive, atol=1e-6)


def test_gradient_check() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden_SH = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    head_VH = torch.randn(6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    targets_S = torch.tensor([0, 5, 5])

    def score(hidden, head):
        return logprobs.scored_logprobs(hidden, head, targets_S, 0.8)[0]

    # log-softmax runs in float32, so the finite differences need wide steps
    assert torch.autograd.gradcheck(score, (hidden_SH, head_VH), eps=1e-2, atol=2e-3)


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden_SH = torch.randn(2, 4, requires_grad=True)
    head_VH = torch.randn(6, 4)
    logprobs.scored_logprobs(hidden_SH, head_VH, torch.tensor([0, 1]))[0].sum().backward()
    assert head_VH.grad is None
    assert hidden_SH.grad is not None
