from pathlib import Path
from typing import Literal

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

from burnish.config.schema import LoRAConfig, ModelConfig, OptimizerConfig
from burnish.data.packing import ends_only, pack
from burnish.errors import ModelError
from burnish.losses.loss import FunctionLoss
from burnish.models.attention import SegmentAttention
from burnish.models.load import load_policy
from burnish.models.quantized import QuantizedLinear, quantize_layers
from burnish.models.tiny import make_tiny_model
from burnish.records import Branch, Example, Segment
from burnish.training.learner import Learner
from burnish.training.optimizer import MasterOptimizer


def linear(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(columns, rows, bias=True).to(dtype)


def test_four_bits_by_hand() -> None:
    layer = linear(1, 4)
    layer.weight.data = torch.tensor([[7.0, -7.0, 1.4, -0.4]])  # the largest is 7 codes, so a code is 1
    quantized = QuantizedLinear(layer, 4)
    assert quantized.codes.shape == (1, 2)  # two weights in a byte
    assert quantized.weight.tolist() == [[7.0, -7.0, 1.0, 0.0]]


@pytest.mark.parametrize(("bits", "error"), [(8, 1 / 254), (4, 1 / 14)])
def test_no_weight_moves_by_more_than_half_a_code(bits: int, error: float) -> None:
    layer = linear(24, 192)
    largest = layer.weight.detach().view(24, 3, 64).abs().amax(2, keepdim=True).expand(-1, -1, 64).flatten(1)
    moved = (QuantizedLinear(layer, bits).weight - layer.weight).abs().detach()
    assert bool((moved <= largest * error * 1.001).all())
    assert float(moved.max()) > float(largest.max()) * error * 0.5  # and it is rounded at all


@pytest.mark.parametrize("bits", [8, 4])
def test_product_and_gradient_are_those_of_the_rounded_weight(bits: int) -> None:
    quantized = QuantizedLinear(linear(24, 64), bits)
    rows = torch.randn(5, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    grad = torch.randn(5, 24, generator=torch.Generator().manual_seed(2))
    (found,) = torch.autograd.grad(quantized(rows), rows, grad)
    expected = rows @ quantized.weight.T + quantized.bias
    assert torch.allclose(quantized(rows), expected)
    assert torch.allclose(found, torch.autograd.grad(expected, rows, grad)[0], atol=1e-6)


def test_adapters_on_a_quantised_base_begin_as_the_rounded_model(tmp_path: Path) -> None:
    path = str(make_tiny_model(tmp_path / "tiny"))
    config = ModelConfig(path=path, compute_dtype="float32", lora=LoRAConfig(base_bits=4, dora=True))
    policy = load_policy(config, seed=0)
    layers = [module for module in policy.module.modules() if isinstance(module, QuantizedLinear)]
    assert len(layers) == 14
    assert all("lora" in name for name in policy.trainable())
    assert any("magnitude" in name for name in policy.trainable())
    plain = load_policy(ModelConfig(path=path, compute_dtype="float32"), seed=0)
    ids = torch.arange(8)[None]

    def hidden(of):
        return of.hidden_states(ids[0], torch.arange(8), SegmentAttention([Segment(8, ())]))

    before = hidden(plain)
    for name, module in plain.model.named_modules():
        if type(module) is nn.Linear and "lm_head" not in name:
            module.weight.data = QuantizedLinear(module, 4).weight
    assert torch.allclose(hidden(policy), hidden(plain), atol=1e-4)
    assert not torch.allclose(hidden(policy), before, atol=1e-3)


def test_quantised_weights_on_disk_are_refused(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "tiny")
    file = folder / "config.json"
    file.write_text(file.read_text().replace("{", '{"quantization_config": {"quant_method": "gptq", "bits": 4},', 1))
    with pytest.raises(ModelError, match=r"are quantised.*base_bits"):
        load_policy(ModelConfig(path=str(folder)), seed=0)


@pytest.mark.parametrize("bits", [8, 4])
def test_the_value_head_on_a_quantised_base_is_trained(tiny_folder: Path, bits: Literal[4, 8]) -> None:
    config = ModelConfig(path=str(tiny_folder), compute_dtype="float32", lora=LoRAConfig(base_bits=bits))
    policy = load_policy(config, seed=0, kind="value")
    heads = [name for name in policy.trainable() if "score" in name]
    assert len(heads) == 1
    learner = Learner(policy, MasterOptimizer(policy.trainable(), OptimizerConfig()), micro_batch_tokens=400)
    batch = ends_only(pack([Example(id="1", prompt_ids=(5,) * 9, branches=(Branch(token_ids=(7, 8, 9)),))]))
    learner.forward_backward(batch, FunctionLoss(lambda scored, batch: scored.values_S.sum()))
    assert float(learner.optim_step(1e-2)["grad_norm"].value) > 0
    assert policy.trainable()[heads[0]].any()


@pytest.mark.parametrize("kind", ["GPT2", "Mixtral"])
def test_a_base_that_would_stay_as_it_is_is_refused(kind: str) -> None:
    settings = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"intermediate_size": 64, "num_key_value_heads": 2} if kind == "Mixtral" else {}
    model = AutoModelForCausalLM.from_config(getattr(transformers, f"{kind}Config")(**settings, **more))
    with pytest.raises(ModelError, match=r"base_bits=4 would leave \d+% of the layers' weights .* set it to 16"):
        quantize_layers(model, 4)
    assert not any(isinstance(module, QuantizedLinear) for module in model.modules())
