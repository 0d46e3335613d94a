from collections.abc import Callable
from functools import partial

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


@pytest.mark.parametrize(
    ("head_dim", "prompt", "width", "most"),
    [(32, 0, 64, 1.5), (64, 0, 128, 1.5), (64, 128, 128, 1.5), (128, 1024, 32, 1.8)],
)
def test_in_bfloat16_it_errs_as_much_as_torch(head_dim: int, prompt: int, width: int, most: float) -> None:
    generator = torch.Generator().manual_seed(1)
    keys, scaling = prompt + width, head_dim**-0.5
    query, key, value, grad = (
        torch.randn(2, 3, rows, head_dim, generator=generator).bfloat16() for rows in (width, keys, keys, width)
    )
    mask = torch.zeros(width, keys).masked_fill(~torch.ones(width, keys).tril(prompt).bool(), float("-inf")).bfloat16()
    ours_of = partial(attention, mask_RK=None if prompt == 0 else mask, scaling=scaling)
    theirs_of = partial(F.scaled_dot_product_attention, attn_mask=mask, scale=scaling)

    def gradients(function: Callable[..., torch.Tensor], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        parts = [part.to(dtype).requires_grad_() for part in (query, key, value)]
        return torch.autograd.grad(function(*parts), parts, grad.to(dtype))

    exact = gradients(partial(theirs_of, attn_mask=mask.double()), torch.float64)
    ours, theirs = (gradients(each, torch.bfloat16) for each in (ours_of, theirs_of))
    for mine, peers, wanted in zip(ours, theirs, exact, strict=True):
        mine_error, peers_error = (float((each.double() - wanted).norm()) for each in (mine, peers))
        assert mine_error < most * peers_error  # more of the query, less of the value


def test_numbers_that_do_not_lie_side_by_side() -> None:
    query, key, value = (torch.randn(1, 2, 8, 5).mT.requires_grad_() for _ in range(3))
    with torch.no_grad():
        expected = attention(query, key, value, None, 0.4)
    assert torch.allclose(attention(query, key, value, None, 0.4), expected, atol=1e-6)


def test_no_rows() -> None:
    query, key = torch.zeros(1, 2, 0, 8, requires_grad=True), torch.zeros(1, 2, 3, 8)
    assert attention(query, key, key, torch.zeros(0, 3), 0.4).shape == (1, 2, 0, 8)
