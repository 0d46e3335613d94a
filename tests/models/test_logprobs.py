import pytest
import torch

from burnish.models import logprobs
from burnish.models.head import Head

# what may follow the matrix
HEADS = [{}, {"scale": 0.3}, {"softcap": 1.5}, {"bias_V": torch.linspace(-1, 1, 11), "scale": 2.0, "softcap": 1.0}]


def naive_logits(hidden_SH: torch.Tensor, weight_VH: torch.Tensor, settings) -> torch.Tensor:
    logits_SV = hidden_SH.double() @ weight_VH.double().T + settings.get("bias_V", torch.zeros(1)).double()
    logits_SV = logits_SV * settings.get("scale", 1.0)
    cap = settings.get("softcap")
    return logits_SV if cap is None else cap * torch.tanh(logits_SV / cap)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk_rows", [1, 3, 256])
@pytest.mark.parametrize("with_entropy", [False, True])
@pytest.mark.parametrize("settings", HEADS, ids="+".join)
def test_against_the_whole_softmax(
    monkeypatch, temperature: float, chunk_rows: int, with_entropy: bool, settings
) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_ROWS", chunk_rows)
    generator = torch.Generator().manual_seed(0)
    hidden_SH = torch.randn(7, 5, generator=generator, dtype=torch.float32, requires_grad=True)
    head_VH = torch.randn(11, 5, generator=generator, dtype=torch.float32, requires_grad=True)
    targets_S = torch.randint(0, 11, (7,), generator=generator)
    weights_S = torch.randn(7, generator=generator)
    settings = {name: value.clone().requires_grad_() if name == "bias_V" else value for name, value in settings.items()}
    inputs = [hidden_SH, head_VH, *(value for name, value in settings.items() if name == "bias_V")]

    def gradients_of(logprobs_S: torch.Tensor, entropy_S: torch.Tensor) -> tuple[torch.Tensor, ...]:
        total = (logprobs_S * weights_S).sum() + (entropy_S.sum() if with_entropy else 0.0)
        return torch.autograd.grad(total, inputs)

    head = Head(head_VH, **settings)
    logprobs_S, entropy_S = logprobs.scored_logprobs(hidden_SH, head, targets_S, temperature)
    gradients = gradients_of(logprobs_S, entropy_S)

    whole_SV = torch.log_softmax(naive_logits(hidden_SH, head_VH, settings) / temperature, dim=1)
    naive_S, naive_entropy_S = whole_SV[torch.arange(7), targets_S], -(whole_SV.exp() * whole_SV).sum(1)
    naive_gradients = gradients_of(naive_S, naive_entropy_S)
    assert torch.allclose(logprobs_S.double(), naive_S, atol=1e-6)
    assert torch.allclose(entropy_S.double(), naive_entropy_S, atol=1e-6)
    collisions_S = logprobs.log_collisions(hidden_SH.detach(), head, temperature).detach()
    assert torch.allclose(collisions_S.double(), (2 * whole_SV).logsumexp(1), atol=1e-6)
    for ours, naive in zip(gradients, naive_gradients, strict=True):
        assert torch.allclose(ours, naive, atol=1e-6)


def test_gradient_check() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden_SH = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    head_VH = torch.randn(6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    targets_S = torch.tensor([0, 5, 5])

    def score(hidden, head):
        return logprobs.scored_logprobs(hidden, Head(head), targets_S, 0.8)[0]

    # log-softmax runs in float32, so the finite differences need wide steps
    assert torch.autograd.gradcheck(score, (hidden_SH, head_VH), eps=1e-2, atol=2e-3)


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden_SH = torch.randn(2, 4, requires_grad=True)
    head_VH = torch.randn(6, 4)
    logprobs.scored_logprobs(hidden_SH, Head(head_VH), torch.tensor([0, 1]))[0].sum().backward()
    assert head_VH.grad is None
    assert hidden_SH.grad is not None
