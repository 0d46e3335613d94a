import pytest
import torch
from torch import nn

from burnish.models.layout import packed_linears

pytestmark = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor has no bfloat16 products in oneDNN"
)


def layers() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 96, bias=True), nn.Linear(96, 32, bias=False)).bfloat16()


@torch.no_grad()
def test_packed_products_are_the_same_and_end_with_the_context() -> None:
    module = layers()
    rows = torch.randn(1, 8, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    plain = module(rows)
    with packed_linears(module, num_rows=8):
        assert all("forward" in layer.__dict__ for layer in module)
        packed = module(rows)
        other_height = module(rows[:, :3])
    assert torch.allclose(packed.float(), plain.float(), atol=2e-2)
    assert torch.allclose(other_height.float(), plain[:, :3].float(), atol=2e-2)
    module[0].weight.mul_(0)  # what is packed must not outlive the context
    assert float(module[0](rows).sub(module[0].bias).abs().max()) == 0


@torch.no_grad()
def test_float32_is_left_alone() -> None:
    module = layers().float()
    with packed_linears(module, num_rows=8):
        assert not any("forward" in layer.__dict__ for layer in module)
