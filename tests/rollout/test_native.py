from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from burnish.config.schema import OptimizerConfig
from burnish.data.packing import pack_groups
from burnish.errors import DataError
from burnish.records import GenerationRequest, SamplingSettings
from burnish.rollout.generators import native
from burnish.rollout.generators.native import NativeGenerator
from burnish.training.learner import Learner
from burnish.training.optimizer import MasterOptimizer

SAMPLING = SamplingSettings(max_tokens=12)
TEXTS = ["hello", "a rather longer prompt, with words", "x", "what is this?", "yy", "12 + 30 ="]


@pytest.fixture
def generator(tiny_policy) -> NativeGenerator:
    return NativeGenerator(tiny_policy, max_rows=8)


def request(generator, text: str, seeds=(0,), **settings) -> GenerationRequest:
    ids = tuple(generator.policy.tokenizer(text)["input_ids"])
    return GenerationRequest(token_ids=ids, sampling=replace(SAMPLING, **settings), seeds=seeds)


def requests(generator, **settings) -> list[GenerationRequest]:
    return [
        request(generator, text, tuple(range(10 * i, 10 * i + 1 + i % 4)), **settings) for i, text in enumerate(TEXTS)
    ]


@torch.no_grad()
def test_logprobs_are_the_models_own(generator, tiny_folder) -> None:
    naive = AutoModelForCausalLM.from_pretrained(tiny_folder, attn_implementation="eager").double()
    for asked, completions in zip(requests(generator), generator.generate(requests(generator)), strict=True):
        for completion in completions:
            ids = torch.tensor([[*asked.token_ids, *completion.token_ids]])
            logprobs = naive(ids).logits[0, len(asked.token_ids) - 1 : -1].log_softmax(-1)
            expected = logprobs.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
            assert torch.tensor(completion.model_logprobs) == pytest.approx(expected.numpy(), abs=1e-5)
            assert completion.sampling_logprobs == completion.model_logprobs


@torch.no_grad()
def test_greedy_is_the_argmax_of_the_naive_model(generator, tiny_folder) -> None:
    naive = AutoModelForCausalLM.from_pretrained(tiny_folder, attn_implementation="eager")
    asked = requests(generator, temperature=0.0)
    for each, completions in zip(asked, generator.generate(asked), strict=True):
        ids = list(each.token_ids)
        for token in completions[0].token_ids:
            assert int(naive(torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids.append(token)


@pytest.mark.parametrize("max_rows", [1, 3, 100])
def test_tokens_do_not_depend_on_the_batch(generator, max_rows: int) -> None:
    asked = requests(generator)
    together = generator.generate(asked)
    other = NativeGenerator(generator.policy, max_rows=max_rows)
    assert [[c.token_ids for c in group] for group in other.generate(asked)] == [
        [c.token_ids for c in g] for g in together
    ]
    backwards = other.generate(asked[::-1])[::-1]
    assert [[c.token_ids for c in group] for group in backwards] == [[c.token_ids for c in g] for g in together]
    for each, group in zip(asked, together, strict=True):
        for seed, completion in zip(each.seeds, group, strict=True):
            alone = other.generate([replace(each, seeds=(seed,))])[0][0]
            assert alone.token_ids == completion.token_ids
            assert alone.sampling_logprobs == pytest.approx(completion.sampling_logprobs, abs=1e-5)


def test_repeats_exactly_and_the_seed_matters(generator) -> None:
    asked = requests(generator)
    assert generator.generate(asked) == generator.generate(asked)
    first, second = generator.generate([request(generator, "hello", (1, 2))])[0]
    assert first.token_ids != second.token_ids


def test_prompts_are_prefilled_once_and_places_are_refilled(generator, monkeypatch) -> None:
    sizes = []
    original = type(generator.policy).hidden_states

    def counted(self, token_ids_T, position_ids_T, plan):
        sizes.append((type(plan).__name__, len(token_ids_T)))
        return original(self, token_ids_T, position_ids_T, plan)

    monkeypatch.setattr(type(generator.policy), "hidden_states", counted)
    asked = [request(generator, text, (1, 2, 3, 4)) for text in TEXTS]
    completions = generator.generate(asked)
    prefilled = sum(size for plan, size in sizes if plan == "SegmentAttention")
    assert prefilled == sum(len(each.token_ids) for each in asked)
    decoded = [size for plan, size in sizes if plan == "LaneCache"]
    assert max(decoded) <= generator.max_rows
    # the first token of each completion comes from the prefill
    assert sum(decoded) == sum(len(c.token_ids) - 1 for group in completions for c in group)


def test_stops(generator) -> None:
    free = generator.generate([request(generator, "hello", (5,))])[0][0]
    assert len(free.token_ids) == 12 and free.finish_reason == "length"

    stop_id = free.token_ids[4]
    at_id = generator.generate([request(generator, "hello", (5,), stop_token_ids=(stop_id,))])[0][0]
    first = free.token_ids.index(stop_id)
    assert at_id.token_ids == free.token_ids[: first + 1]
    assert at_id.finish_reason == "stop"

    texts = [generator.policy.tokenizer.decode([token]) for token in free.token_ids]
    position = next(i for i in range(2, 11) if texts[i].isascii() and texts[i + 1].isascii())
    stop = texts[position] + texts[position + 1]
    at_string = generator.generate([request(generator, "hello", (5,), stop=(stop,))])[0][0]
    assert at_string.token_ids == free.token_ids[: position + 2]
    assert at_string.text == generator.policy.tokenizer.decode(free.token_ids[:position], skip_special_tokens=True)
    assert at_string.finish_reason == "stop"


def test_each_request_has_its_own_length(generator) -> None:
    asked = [request(generator, text, (3,), max_tokens=1 + 3 * i) for i, text in enumerate(TEXTS[:3])]
    assert [len(group[0].token_ids) for group in generator.generate(asked)] == [1, 4, 7]


@pytest.mark.parametrize(
    ("text", "max_tokens", "message"), [("", 4, "empty prompt"), ("hi", 600, "exceed the model's context")]
)
def test_impossible_requests_are_refused(generator, text: str, max_tokens: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        generator.generate([request(generator, text, max_tokens=max_tokens)])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampler_and_learner_agree(generator, as_groups, temperature: float) -> None:
    asked = [request(generator, text, (1, 2, 3), temperature=temperature) for text in TEXTS]
    groups = as_groups(asked, generator.generate(asked))
    batch = pack_groups(groups, [[0.0] * 3] * len(groups))
    optimizer = MasterOptimizer(generator.policy.trainable(), OptimizerConfig())
    learner = Learner(generator.policy, optimizer, micro_batch_tokens=100, temperature=temperature)
    difference_S = (learner.score(batch).logprobs_S - batch.sampler_logprobs_S).abs()
    assert difference_S.mean() < 1e-5
    assert difference_S.max() < 1e-4


@torch.no_grad()
def test_weights_that_change_between_two_tokens(tiny_policy, tiny_folder, monkeypatch) -> None:
    """The tokens before are those of the old weights; after it the new ones look at what the old ones have kept."""
    model = tiny_policy.model
    old = {name: weight.clone() for name, weight in model.state_dict().items()}
    new = {name: weight * 1.5 for name, weight in old.items()}
    calls, packed = [], []

    def take_over() -> int:
        calls.append(None)
        if len(calls) == 5:  # once to begin with, then before each of the first three decoding steps
            model.load_state_dict(new)
        return int(len(calls) >= 5)

    original = native.packed_linears

    def noted(module, **options):
        packed.append(float(model.state_dict()["model.norm.weight"][0]))
        return original(module, **options)

    monkeypatch.setattr(native, "packed_linears", noted)
    asked = request(NativeGenerator(tiny_policy, max_rows=8), TEXTS[1], (5, 6))
    unchanged = NativeGenerator(tiny_policy, max_rows=8).generate([asked])[0]
    packed.clear()
    changed = NativeGenerator(tiny_policy, max_rows=8, take_over=take_over).generate([asked])[0]
    assert packed == [float(old["model.norm.weight"][0]), float(new["model.norm.weight"][0])]
    naive = AutoModelForCausalLM.from_pretrained(tiny_folder, attn_implementation="eager")
    for before, after in zip(unchanged, changed, strict=True):
        assert before.versions == ()
        assert after.versions == ((0, 4), (1, 8))
        assert after.token_ids[:4] == before.token_ids[:4]
        assert after.sampling_logprobs[:4] == before.sampling_logprobs[:4]
        assert after.token_ids != before.token_ids
        ids = torch.tensor([[*asked.token_ids, *after.token_ids]])
        seen = len(asked.token_ids) + 3  # the fourth token is read by the new weights first
        naive.load_state_dict(old)
        cache = DynamicCache()
        naive(ids[:, :seen], cache=cache)
        naive.load_state_dict(new)
        logits = naive(ids[:, seen:-1], cache=cache).logits[0]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(after.token_ids[4:])[:, None])[:, 0]
        assert torch.tensor(after.sampling_logprobs[4:]) == pytest.approx(expected.numpy(), abs=1e-5)
        anew = naive(ids).logits[0, seen:-1].log_softmax(-1).gather(1, torch.tensor(after.token_ids[4:])[:, None])
        assert (anew[:, 0] - expected).abs().max() > 1e-2  # a cache computed anew would be another one
