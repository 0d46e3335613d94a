"""A prompt's own log-probabilities: plain transformers says the same, and OpenAI's and lm-eval's clients read them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from burnish.serving.asks import PromptRead, Weights
from burnish.serving.engine import Engine

from .conftest import Heard, MakeEngine, ask, submit, wait_for
from .test_rest import Server, ended, started

TOKENS = st.lists(st.integers(3, 255), min_size=1, max_size=150)


@pytest.fixture(scope="module")
def plain(load_tiny: Callable[..., Weights]) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(load_tiny().policy.source, dtype=torch.float32)


def expected(plain: PreTrainedModel, prompt: list[int]) -> Tensor:
    """Log-probabilities [tokens - 1, V] of all that may follow each of a prompt's tokens but the last."""
    with torch.no_grad():
        logprobs_TV: Tensor = plain(torch.tensor([prompt])).logits[0, :-1].log_softmax(-1)
    return logprobs_TV


def heard_of(engine: Engine, prompts: list[list[int]], **asked: Any) -> list[Heard]:
    heard = [Heard() for _ in prompts]
    submit(engine, [ask(tuple(prompt), each, **asked) for prompt, each in zip(prompts, heard, strict=True)])
    wait_for(lambda: all(each.is_over for each in heard))
    return heard


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompts=st.lists(TOKENS, min_size=1, max_size=4), num_top=st.integers(0, 3), max_tokens=st.integers(0, 3))
def test_a_prompts_log_probabilities_are_the_models(
    make_engine: MakeEngine, plain: PreTrainedModel, prompts: list[list[int]], num_top: int, max_tokens: int
) -> None:
    """Of several at once, read in pieces; the answer is the one without them."""
    engine = make_engine(prefill_tokens=16, max_rows=3)
    asked = {"num_top": num_top, "max_tokens": max_tokens}
    for prompt, heard in zip(prompts, heard_of(engine, prompts, tells_prompt=True, **asked), strict=True):
        read = heard.events[0]
        assert isinstance(read, PromptRead) and heard.done is not None and heard.done.reason == "length"
        logprobs_TV = expected(plain, prompt)
        targets = torch.tensor(prompt[1:], dtype=torch.long)
        assert read.logprobs == pytest.approx(logprobs_TV.gather(1, targets[:, None])[:, 0].tolist(), abs=1e-4)
        for top, row_V in zip(read.tops, logprobs_TV, strict=True):
            assert [value for _, value in top] == pytest.approx(row_V.topk(num_top).values.tolist(), abs=1e-4)
            assert [value for _, value in top] == pytest.approx([float(row_V[each]) for each, _ in top], abs=1e-4)
        if max_tokens:
            assert heard.token_ids == heard_of(engine, [prompt], max_tokens=max_tokens)[0].token_ids
        else:
            assert heard.token_ids == [] and heard.text == ""


def test_a_prompt_that_was_read_before_is_read_again(make_engine: MakeEngine, plain: PreTrainedModel) -> None:
    engine, prompt = make_engine(prefill_tokens=16), list(range(3, 83))
    heard_of(engine, [prompt])
    shared = tuple(prompt)
    heard = [Heard() for _ in range(2)]
    submit(engine, [ask(shared, each, tells_prompt=each is heard[1]) for each in heard])
    wait_for(lambda: all(each.is_over for each in heard))
    assert [each.done.cached_tokens for each in heard if each.done] == [64, 0]
    assert isinstance(heard[1].events[0], PromptRead) and not isinstance(heard[0].events[0], PromptRead)
    wanted = expected(plain, prompt).gather(1, torch.tensor(prompt[1:])[:, None])[:, 0].tolist()
    assert heard[1].events[0].logprobs == pytest.approx(wanted, abs=1e-4)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Iterator[Server]:
    made = started(tmp_path_factory.mktemp("served"), tiny_folder, "--limits.echo_tokens", "40")
    yield made
    assert "Traceback" not in ended(made)


def test_openais_client_reads_the_prompt_back(
    server: Server, plain: PreTrainedModel, load_tiny: Callable[..., Weights]
) -> None:
    text = "One two, three é"
    tokenizer = load_tiny().policy.tokenizer
    ids = tokenizer(text)["input_ids"]
    asked: dict[str, Any] = {"model": "tiny", "temperature": 0, "logprobs": 1}
    alone = server.client.completions.create(prompt=text, max_tokens=3, **asked)
    for prompt in (text, ids):
        both = server.client.completions.create(prompt=prompt, max_tokens=3, echo=True, n=2, **asked)
        for choice in both.choices:
            assert choice.text == text + alone.choices[0].text
            logprobs, own = choice.logprobs, alone.choices[0].logprobs
            assert logprobs is not None and own is not None and logprobs.token_logprobs is not None
            assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
            wanted = expected(plain, ids).gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
            assert logprobs.token_logprobs[1 : len(ids)] == pytest.approx(wanted, abs=1e-4)
            assert logprobs.token_logprobs[len(ids) :] == pytest.approx(own.token_logprobs, abs=1e-4)
            assert logprobs.tokens == [tokenizer.decode([each]) for each in ids] + own.tokens
            lengths = [len(token) for token in logprobs.tokens]
            assert logprobs.text_offset == [sum(lengths[:place]) for place in range(len(lengths))]
            for value, top in zip(logprobs.token_logprobs[1:], logprobs.top_logprobs[1:], strict=True):
                assert value <= max(top.values()) + 1e-6
        assert both.usage is not None and both.usage.completion_tokens == 6


def test_the_prompt_alone(server: Server) -> None:
    answer = server.client.completions.create(model="tiny", prompt=["One", "Two"], echo=True, max_tokens=0, logprobs=0)
    assert [choice.text for choice in answer.choices] == ["One", "Two"]
    assert answer.usage is not None and answer.usage.completion_tokens == 0
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    plain = server.client.completions.create(model="tiny", prompt="One", echo=True, max_tokens=2, temperature=0)
    assert plain.choices[0].text.startswith("One") and plain.choices[0].logprobs is None


@pytest.mark.parametrize("logprobs", [None, 2])
def test_a_stream_begins_with_the_prompt(server: Server, logprobs: int | None) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": ["One", "Two"], "n": 2, "max_tokens": 3, "temperature": 0}
    asked |= {"echo": True, "extra_body": {"ignore_eos": True}} | ({} if logprobs is None else {"logprobs": logprobs})
    whole = server.client.completions.create(**asked)
    pieces = list(server.client.completions.create(**asked, stream=True))
    for choice in whole.choices:
        own = [each.choices[0] for each in pieces if each.choices[0].index == choice.index]
        assert own[0].text == ("One", "Two")[choice.index // 2]
        assert "".join(each.text for each in own) == choice.text
        if logprobs is not None:
            assert choice.logprobs is not None
            for name in ("tokens", "token_logprobs", "text_offset"):
                said = [value for each in own if each.logprobs for value in getattr(each.logprobs, name)]
                assert said == (getattr(choice.logprobs, name) if name != "token_logprobs" else said)


def test_what_may_not_be_echoed(server: Server) -> None:
    body = {"model": "tiny", "prompt": [[5] * 21], "max_tokens": 0, "echo": True, "logprobs": 0}
    assert server.request("/v1/completions", body)[0] == 200
    for change, parameter in (
        ({"n": 2}, "echo"),
        ({"prompt": [[5] * 41]}, "echo"),
        ({"echo": False}, "max_tokens"),
        ({"echo": None}, "max_tokens"),
        ({"echo": "yes"}, "echo"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"suffix": "x"}, "suffix"),
    ):
        status, found, _ = server.request("/v1/completions", body | change)
        assert (status, found["error"]["param"]) == (400, parameter), json.dumps(found)
    without = {"model": "tiny", "prompt": [[5] * 100], "max_tokens": 0, "echo": True}
    assert server.request("/v1/completions", without)[0] == 200  # nothing is told of the prompt
    whole_context = {"model": "tiny", "prompt": [[5] * 512], "max_tokens": 0, "echo": True}
    assert server.request("/v1/completions", whole_context)[0] == 200
    with pytest.raises(openai.BadRequestError, match="context"):
        server.client.completions.create(model="tiny", prompt=[5] * 512, max_tokens=1, echo=True)
