import pytest
import torch
from torch.nn import functional as F

from burnish.models import cpu_attention
from burnish.models.cpu_attention import attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("block_scores", [4_000_000, 100])
def test_value_and_gradient_are_those_of_exact_attention(
    dtype: torch.dtype, is_causal: bool, block_scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_attention, "_BLOCK_SCORES", block_scores)  # several blocks, the last one short
    generator = torch.Generator().manual_seed(0)
    rows, keys = (13, 13) if is_causal else (7, 11)
    query = torch.randn(2, 3, rows, 8, generator=generator).to(dtype).requires_grad_()
    key, value = (torch.randn(2, 3, keys, 8, generator=generator).to(dtype).requires_grad_() for _ in range(2))
    grad = torch.randn(2, 3, rows, 8, generator=generator).to(dtype)
    seen = torch.ones(rows, keys).tril(0 if is_causal else keys - rows).bool()
    mask = torch.zeros(rows, keys).masked_fill(~seen, float("-inf"))

    output = attention(query, key, value, None if is_causal else mask.to(dtype), 0.4)
    found = torch.autograd.grad(output, (query, key, value), grad)

    exact = [part.detach().double().requires_grad_() for part in (query, key, value)]
    expected = ((exact[0] @ exact[1].mT) * 0.4 + mask).softmax(-1) @ exact[2]
    wanted = torch.autograd.grad(expected, exact, grad.double())
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    assert torch.allclose(output.double(), expected, atol=tolerance)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == dtype
        assert torch.allclose(ours.double(), theirs, atol=tolerance * float(theirs.abs().max()))


def test_in_bfloat16_it_errs_hardly_more_than_torch() -> None:
    """Torch keeps its scores in float32, for which it pays with most of its time."""
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(1, 4, 64, 32, generator=generator).bfloat16().requires_grad_() for _ in range(3))
    grad = torch.randn(1, 4, 64, 32, generator=generator).bfloat16()
    exact = [part.detach().double().requires_grad_() for part in (query, key, value)]
    wanted = torch.autograd.grad(
        F.scaled_dot_product_attention(*exact, is_causal=True, scale=0.3), exact, grad.double()
    )

    def errors(output: torch.Tensor) -> list[float]:
        found = torch.autograd.grad(output, (query, key, value), grad)
        return [
            float((ours.double() - theirs).norm() / theirs.norm()) for ours, theirs in zip(found, wanted, strict=True)
        ]

    ours = errors(attention(query, key, value, None, 0.3))
    theirs = errors(F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3))
    assert all(mine < 2.2 * peers for mine, peers in zip(ours, theirs, strict=True)), (ours, theirs)
