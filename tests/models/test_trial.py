"""A trial finds what a model's config does not say. The models are Llamas with one change."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from burnish.errors import ModelError
from burnish.models import attention
from burnish.models.trial import try_out


@pytest.fixture
def model() -> Any:
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    attention.install(model)
    return model


def around(module: torch.nn.Module, change) -> None:
    original = module.forward
    module.forward = lambda *arguments, **options: change(original, *arguments, **options)


def refused(model: Any, message: str) -> None:
    with pytest.raises(ModelError, match=f"is not supported: {message}"):
        try_out(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_llama_passes_and_is_left_as_it_was(model, dtype: torch.dtype) -> None:
    model.to(dtype)
    with torch.no_grad():
        try_out(model)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.get_input_embeddings()._forward_hooks


def test_without_numbers_there_is_nothing_to_try(model) -> None:
    model.to("meta")
    try_out(model)


def test_a_recurrence_over_the_row(model) -> None:
    around(model.model.layers[1].mlp, lambda mlp, rows: mlp(rows) + 1e-6 * rows.cumsum(1))
    refused(model, "sequences that are packed in one row mix in it")


def test_a_branch_that_sees_the_other(model) -> None:
    around(
        model.model.layers[0].mlp,
        lambda mlp, rows: mlp(rows) + 1e-6 * rows.roll(2, 1) * (torch.arange(10) == 5)[:, None],
    )
    refused(model, "sequences that are packed in one row mix in it")


def test_a_layer_that_does_not_attend(model) -> None:
    around(model.model.layers[0].self_attn, lambda attend, hidden_states, **options: (hidden_states, None))
    refused(model, "not every one of its layers attends once")


def test_a_layer_that_attends_twice(model) -> None:
    def twice(attend, **options):
        attend(**options)
        return attend(**options)

    around(model.model.layers[0].self_attn, twice)
    refused(model, "not every one of its layers attends once")


def test_an_attention_with_more_than_a_plan_knows(model) -> None:
    around(model.model.layers[0].self_attn, lambda attend, **options: attend(s_aux=torch.ones(2), **options))
    refused(model, "it attends with s_aux")


def test_a_mask_that_is_neither_causal_nor_a_window(model) -> None:
    model.config.is_causal = False
    refused(model, "its mask is neither causal nor a window")


def test_logits_of_its_own(model) -> None:
    def scaled(forward, **options):
        return SimpleNamespace(logits=1.05 * forward(**options).logits)

    around(model, scaled)
    refused(model, "it changes its logits in a way of its own")


def test_a_forward_pass_that_fails(model) -> None:
    def fail(forward, **options):
        raise TypeError("unexpected\nargument")

    around(model.model, fail)
    refused(model, "a trial of it failed: unexpected argument")
