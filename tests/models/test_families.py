"""Models beyond Llama's shape, against plain transformers: eager attention, its own head, one sequence at a time."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM

from burnish.config.schema import ModelConfig
from burnish.data.packing import pack
from burnish.errors import DataError, ModelError
from burnish.models.attention import SegmentAttention
from burnish.models.load import inspect_model, load_policy
from burnish.models.logprobs import scored_logprobs
from burnish.models.policy import Policy
from burnish.models.tiny import make_byte_tokenizer
from burnish.records import Branch, Example, GenerationRequest, SamplingSettings
from burnish.rollout.generators.native import NativeGenerator

WINDOW = 8
ALTERNATING: dict[str, Any] = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2}
ALL_HEADS: dict[str, Any] = {"num_key_value_heads": None}  # the config has no such setting

# What is special in each family: its config, and the settings that bring it out.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {}),
    "qwen2_window": ("Qwen2", {"use_sliding_window": True, **ALTERNATING}),
    "qwen3": ("Qwen3", {"head_dim": 12}),
    "gemma": ("Gemma", {"head_dim": 12}),
    "gemma2": (
        "Gemma2",
        {"head_dim": 12, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, **ALTERNATING},
    ),
    "gemma3": ("Gemma3Text", {"head_dim": 12, **ALTERNATING}),
    "mistral": ("Mistral", {"sliding_window": WINDOW}),
    "ministral": ("Ministral", {"head_dim": 12, **ALTERNATING}),
    "phi": ("Phi", {}),
    "phi3": ("Phi3", {"sliding_window": WINDOW}),
    "olmo": ("Olmo", {"clip_qkv": 0.5}),
    "olmo2": ("Olmo2", {}),
    "olmo3": ("Olmo3", ALTERNATING),
    "gpt2": ("GPT2", ALL_HEADS),
    "gpt_neox": ("GPTNeoX", {"rotary_pct": 0.5, **ALL_HEADS}),
    "mixtral": ("Mixtral", {"sliding_window": WINDOW, "num_local_experts": 4}),
    "qwen2_moe": ("Qwen2Moe", {"use_sliding_window": True, "moe_intermediate_size": 16, **ALTERNATING, **EXPERTS}),
    "qwen3_moe": ("Qwen3Moe", {"moe_intermediate_size": 16, **EXPERTS}),
    "olmoe": ("Olmoe", EXPERTS),
    "granite": ("Granite", {"logits_scaling": 4.0, "attention_multiplier": 0.5, "residual_multiplier": 0.7}),
    "cohere": ("Cohere", {"logit_scale": 0.25, "use_qk_norm": True}),
    "cohere2": ("Cohere2", {"logit_scale": 0.25, **ALTERNATING}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0]}),
    "starcoder2": ("Starcoder2", {"sliding_window": WINDOW}),
}


@pytest.fixture(autouse=True)
def as_in_a_run() -> Iterator[None]:
    """An operation without a deterministic form raises. One thread, because a second one has nothing to do."""
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("families") / request.param, *FAMILIES[request.param])


def make_model(folder: Path, name: str, settings: dict[str, Any]) -> Path:
    tokenizer = make_byte_tokenizer()
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    given = {key: value for key, value in {**shape, **settings}.items() if value is not None}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(getattr(transformers, f"{name}Config")(**given))
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases and norms begin as zeros and ones
                parameter += 0.2 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load(folder: Path, compute_dtype: str = "float32") -> Policy:
    return load_policy(ModelConfig(path=str(folder), compute_dtype=compute_dtype), seed=0)


def tokens(count: int, seed: int) -> tuple[int, ...]:
    """None of the special ones, among which transformers gives that of padding no gradient."""
    return tuple(torch.randint(3, 259, (count,), generator=torch.Generator().manual_seed(seed)).tolist())


def examples() -> list[Example]:
    """Prompts and branches shorter and longer than the window; of one prompt, of the same and of other lengths."""
    shapes = ((5, (3, 14, 9)), (12, (2, 2)), (3, (15,)), (11, (1, 6)), (1, (4, 1)), (1, (WINDOW - 1,)))
    return [
        Example(
            id=str(index),
            prompt_ids=tokens(prompt, seed=10 * index),
            branches=tuple(
                Branch(token_ids=tokens(length, seed=10 * index + at)) for at, length in enumerate(lengths, 1)
            ),
        )
        for index, (prompt, lengths) in enumerate(shapes)
    ]


def plain_logprobs(model: Any, prompt_ids: tuple[int, ...], token_ids: tuple[int, ...]) -> Tensor:
    logits = model(torch.tensor([[*prompt_ids, *token_ids]]), use_cache=False).logits[0, len(prompt_ids) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(token_ids)[:, None])[:, 0]


def plain_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)


def all_plain_logprobs(model: Any) -> Tensor:
    pairs = [(each.prompt_ids, branch.token_ids) for each in examples() for branch in each.branches]
    return torch.cat([plain_logprobs(model, *pair) for pair in pairs])


def packed_logprobs(policy: Policy) -> Tensor:
    batch = pack(examples())
    hidden_TH = policy.hidden_states(batch.token_ids_T, batch.position_ids_T, SegmentAttention(batch.segments))
    return scored_logprobs(hidden_TH[batch.predictor_S], policy.head, batch.target_ids_S)[0]


def test_training_is_that_of_plain_transformers(folder: Path) -> None:
    policy, model = load(folder), plain_model(folder)
    found_S, wanted_S = packed_logprobs(policy), all_plain_logprobs(model)
    assert found_S.detach().numpy() == pytest.approx(wanted_S.detach().numpy(), abs=1e-5)
    weights_S = torch.linspace(-1, 2, len(wanted_S))
    for logprobs_S in (found_S, wanted_S):
        (logprobs_S * weights_S).sum().backward()
    found, wanted = ({name: each.grad for name, each in side.named_parameters()} for side in (policy.module, model))
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert gradient.any() and (found[name] - gradient).norm() < 1e-4 * gradient.norm(), name


def requests() -> list[GenerationRequest]:
    """More than there is room for at once, so that lanes are used again by longer and shorter ones."""
    sampling = SamplingSettings(max_tokens=WINDOW + 4)
    return [
        GenerationRequest(
            token_ids=tokens(length, seed=length),
            sampling=replace(sampling, max_tokens=sampling.max_tokens - index),
            seeds=tuple(range(10 * index, 10 * index + 1 + index % 3)),
        )
        for index, length in enumerate((2, 13, 5, 9, 1))
    ]


@torch.no_grad()
def test_generation_is_that_of_plain_transformers(folder: Path) -> None:
    model = plain_model(folder)
    generator = NativeGenerator(load(folder), max_rows=6)
    for asked, completions in zip(requests(), generator.generate(requests()), strict=True):
        assert len(completions) == len(asked.seeds)
        for each in completions:
            assert len(each.token_ids) == asked.sampling.max_tokens
            wanted = plain_logprobs(model, asked.token_ids, each.token_ids)
            assert each.model_logprobs == pytest.approx(wanted.tolist(), abs=1e-5)


def test_bfloat16_is_near(folder: Path) -> None:
    policy, model = load(folder, "bfloat16"), plain_model(folder)
    found_S = packed_logprobs(policy)
    found_S.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in policy.trainable().values())
    with torch.no_grad():
        assert (found_S - all_plain_logprobs(model)).abs().mean() < 0.05
        asked = requests()[1]
        for each in NativeGenerator(policy, max_rows=6).generate([asked])[0]:
            wanted = plain_logprobs(model, asked.token_ids, each.token_ids)
            assert (torch.tensor(each.model_logprobs) - wanted).abs().mean() < 0.05


def test_long_rope_ends_where_it_would_turn(tmp_path: Path) -> None:
    """Beyond the original context every position of a batch turns otherwise, those of short sequences too."""
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 10000.0}
    original = {"original_max_position_embeddings": 32}
    folder = make_model(tmp_path / "phi3", "Phi3", {**original, "rope_parameters": {**rope, **original}})
    policy, model = load(folder), plain_model(folder)
    assert policy.context_length == inspect_model(str(folder)).context_length == 32
    assert torch.allclose(packed_logprobs(policy), all_plain_logprobs(model), atol=1e-5)
    with pytest.raises(DataError, match="the model's context of 32"):
        NativeGenerator(policy, max_rows=1).generate([replace(requests()[0], token_ids=tokens(30, seed=0))])


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("GptOss", {"head_dim": 8}, "its attention has sinks"),
        ("Llama4Text", {"head_dim": 8}, "it has layers of type chunked_attention; it attends within chunks"),
        ("Lfm2", {"layer_types": ["conv", "full_attention"]}, "it has layers of type conv"),
        ("Mamba", {}, "it has layers of type linear_attention"),
        ("Gemma3Text", {"use_bidirectional_attention": True}, "its tokens see later ones"),
        ("MiniCPM3", {}, "its values are narrower than its keys"),
        ("Bloom", {}, "not every one of its layers attends once"),
        ("DiffLlama", {}, "not every one of its layers attends once"),
        ("StableLm", {}, "StableLmAttention is not supported: the model does not hand it the attention plan"),
        ("Doge", {}, r"DogeAttention is not supported: its mask is not that of its window"),
        ("Olmoe", {"sliding_window": WINDOW, **EXPERTS}, r"its mask is not that of its window \(8\)"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isalnum() else "",
)
def test_other_shapes_are_refused(tmp_path: Path, name: str, settings: dict[str, Any], message: str) -> None:
    folder = make_model(tmp_path / name, name, settings)
    with pytest.raises(ModelError, match=message):
        load(folder)
