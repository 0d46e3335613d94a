import torch

from burnish.memory.trace import LiveBytes


def test_counts_what_is_alive_and_the_most_there_was() -> None:
    with LiveBytes() as live:
        a = torch.empty(1000, device="meta")
        b = torch.empty(500, device="meta") + 1  # the empty one is gone when the sum exists
        assert live.live_bytes == 6000
        assert live.peak_bytes == 8000
        view = a[:10]
        assert live.live_bytes == 6000  # a view is no memory of its own
        del a
        assert live.live_bytes == 6000
        del view
        assert live.live_bytes == 2000
        live.reset_peak()
        assert live.peak_bytes == 2000
        del b
    assert live.live_bytes == 0


def test_sees_what_autograd_keeps_and_frees() -> None:
    weight = torch.ones(100, 100, device="meta", requires_grad=True)
    with LiveBytes() as live:
        hidden = torch.ones(50, 100, device="meta") @ weight
        total = hidden.relu().sum()
        del hidden
        kept = live.live_bytes
        total.backward()
        assert weight.grad is not None
        assert live.live_bytes == weight.grad.nbytes + total.nbytes
    # the input and the result of relu are kept for the backward pass; the product is not
    assert kept == 50 * 100 * 4 * 2 + total.nbytes


def test_says_what_was_there_at_the_peak() -> None:
    with LiveBytes() as live:
        early = torch.empty(100, device="meta")
        large = torch.empty(1000, device="meta")
        del large
        late = torch.empty(200, device="meta")
        assert live.bytes_at_peak([early, early[:5], late]) == early.nbytes
        live.reset_peak()
        assert live.bytes_at_peak([early, late]) == early.nbytes + late.nbytes


def test_counts_real_tensors_too() -> None:
    with LiveBytes() as live:
        x = torch.ones(256, 256)
        y = x @ x
        assert live.live_bytes == x.nbytes + y.nbytes
