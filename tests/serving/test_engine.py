"""The engine against the native generator, and what must hold whatever is asked."""

import threading
import time
from collections.abc import Callable

import pytest
import torch

from burnish.models.policy import Policy
from burnish.records import GenerationRequest, SamplingSettings
from burnish.rollout.generators.native import NativeGenerator
from burnish.serving.asks import Done, EngineGoneError, Event, QueueFullError, Token, Weights
from burnish.serving.cache import Prefix, RowCache
from burnish.serving.engine import Engine
from burnish.serving.native import NativeSampler
from burnish.serving.prefixes import PrefixStore

from .conftest import Heard, MakeEngine, ask, submit, wait_for

LENGTHS = (3, 40, 7, 130, 1, 25, 260, 12)


def prompts(count: int = len(LENGTHS)) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(5)
    return [tuple(torch.randint(3, 200, (length,), generator=generator).tolist()) for length in LENGTHS[:count]]


def offline(policy: Policy, prompt: tuple[int, ...], seed: int, **sampling: object) -> list[int]:
    settings = SamplingSettings(**({"temperature": 0.0} | sampling))  # type: ignore[arg-type]  # a test's own words
    request = GenerationRequest(token_ids=prompt, sampling=settings, seeds=(seed,))
    (((completion),),) = NativeGenerator(policy, max_rows=1).generate([request])
    return list(completion.token_ids)


def answers(engine: Engine, asked: list[tuple[tuple[int, ...], dict]]) -> list[Heard]:
    """All asked at once, until all are over."""
    heard = [Heard() for _ in asked]
    for (prompt, settings), each in zip(asked, heard, strict=True):
        submit(engine, [ask(prompt, each, **settings)])
    wait_for(lambda: all(each.is_over for each in heard))
    return heard


@pytest.mark.parametrize("prefill_tokens", [16, 1000])
def test_answers_are_those_of_the_native_generator(
    make_engine: MakeEngine, load_tiny: Callable[..., Weights], prefill_tokens: int
) -> None:
    """Each with its own settings, in a batch of others that come and go, prompts read in pieces, rows that grow."""
    engine, policy = make_engine(prefill_tokens=prefill_tokens, max_rows=3), load_tiny().policy
    own = [
        {"max_tokens": 5},
        {"max_tokens": 20, "temperature": 1.0, "seed": 3},
        {"max_tokens": 9, "temperature": 0.7, "top_k": 5, "seed": 4},
        {"max_tokens": 140, "temperature": 1.3, "top_p": 0.8, "seed": 9},
        {"max_tokens": 30},
        {"max_tokens": 1, "temperature": 1.0, "min_p": 0.1, "seed": 1},
        {"max_tokens": 12},
        {"max_tokens": 300, "temperature": 1.0, "seed": 2},
    ]
    for heard, prompt, settings in zip(
        answers(engine, list(zip(prompts(), own, strict=True))), prompts(), own, strict=True
    ):
        expected = offline(policy, prompt, **({"seed": 0} | settings))  # type: ignore[arg-type]  # as above
        assert heard.token_ids == expected
        assert heard.text == policy.tokenizer.decode(expected, skip_special_tokens=True)
    assert engine.num_running == engine.num_waiting == 0


def test_log_probabilities_are_the_models_own(make_engine: MakeEngine, load_tiny: Callable[..., Weights]) -> None:
    """Also where what is drawn from is another distribution."""
    policy, prompt = load_tiny().policy, prompts()[1]
    settings = {"max_tokens": 6, "temperature": 0.5, "seed": 3, "num_top": 4, "logit_bias": {7: 3.0, 9: -100.0}}
    (heard,) = answers(make_engine(), [(prompt, settings)])
    ids = torch.tensor([[*prompt, *heard.token_ids]])
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(policy.source, dtype=torch.float32)
    with torch.no_grad():
        logprobs_TV = plain(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    tokens = [event for event in heard.events if isinstance(event, Token)]
    for row_V, token in zip(logprobs_TV, tokens, strict=True):
        assert token.logprob == pytest.approx(float(row_V[token.id]), abs=1e-5)
        top = row_V.topk(4)
        assert [each for each, _ in token.top] == top.indices.tolist()
        assert [value for _, value in token.top] == pytest.approx(top.values.tolist(), abs=1e-5)


def test_a_bias_and_penalties_change_what_is_said(make_engine: MakeEngine) -> None:
    """The tiny model's logits are within 2 of each other."""
    bias = {42: 90.0, 43: 87.0}
    biased, present, frequent = answers(
        make_engine(),
        [
            (prompts()[0], {"max_tokens": 12, "logit_bias": bias}),
            (prompts()[0], {"max_tokens": 12, "logit_bias": {42: 90.0, 43: 88.0}, "presence_penalty": 2.0}),
            (prompts()[0], {"max_tokens": 12, "logit_bias": bias, "frequency_penalty": 1.0}),
        ],
    )
    assert biased.token_ids == [42] * 12
    assert present.token_ids[0] == 42 and set(present.token_ids) == {42, 43}
    assert frequent.token_ids[0] == 42 and frequent.token_ids.count(43) >= 3


def test_a_prompt_that_begins_alike_is_not_read_again(
    make_engine: MakeEngine, load_tiny: Callable[..., Weights]
) -> None:
    engine, policy, shared = make_engine(), load_tiny().policy, prompts()[3]
    first, second = (*shared, 5, 6, 7), (*shared, 9)
    (before,) = answers(engine, [(first, {})])
    after, same = answers(engine, [(second, {}), (first, {})])
    assert (before.done.cached_tokens, after.done.cached_tokens, same.done.cached_tokens) == (0, 128, 128)
    assert after.token_ids == offline(policy, second, 0, max_tokens=8)
    assert same.token_ids == before.token_ids


def test_several_answers_to_one_prompt_read_it_once(make_engine: MakeEngine) -> None:
    engine, prompt = make_engine(), prompts()[3]
    heard = [Heard() for _ in range(4)]
    submit(engine, [ask(prompt, each, temperature=1.0, seed=n) for n, each in enumerate(heard)])
    wait_for(lambda: all(each.is_over for each in heard))
    assert sorted(each.done.cached_tokens for each in heard) == [0, 128, 128, 128]
    assert len({tuple(each.token_ids) for each in heard}) == 4


def test_prefixes_are_forgotten_when_there_is_no_room(make_engine: MakeEngine) -> None:
    for num_bytes in (0, 1000):
        engine = make_engine(prefix_bytes=num_bytes)
        for _ in range(2):
            (heard,) = answers(engine, [(prompts()[3], {})])
            assert heard.done.cached_tokens == 0


def test_new_weights_take_what_is_asked_from_then_on(
    make_engine: MakeEngine, load_tiny: Callable[..., Weights]
) -> None:
    """While answers are under way: each is whole, and of the version that it was asked of; equal prompts too."""
    engine, prompt = make_engine(max_rows=2), prompts()[3]
    versions = {1: load_tiny(1), 2: load_tiny(2, other=True), 3: load_tiny(3)}
    expected = {n: offline(each.policy, prompt, 0, max_tokens=25) for n, each in versions.items()}
    assert expected[1] == expected[3] != expected[2]
    heard: list[tuple[int, Heard]] = []
    for version in (1, 2, 3):
        if version > 1:
            engine.install(versions[version])
        for _ in range(3):
            each = Heard()
            weights, _ = submit(engine, [ask(prompt, each, max_tokens=25)])
            heard.append((weights.version, each))
    wait_for(lambda: all(each.is_over for _, each in heard))
    assert [version for version, _ in heard] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    for version, each in heard:
        assert each.token_ids == expected[version]
    wait_for(lambda: len(engine._served) == 1)  # the old ones are let go
    assert engine.models()["tiny"].version == 3


def test_an_answer_that_nobody_waits_for_ends(make_engine: MakeEngine) -> None:
    engine = make_engine(max_rows=1)
    running, waiting, third = Heard(), Heard(), Heard()
    _, stop_running = submit(engine, [ask(prompts()[0], running, max_tokens=900)])
    _, stop_waiting = submit(engine, [ask(prompts()[0], waiting)])
    wait_for(lambda: len(running.events) > 3)
    stop_waiting()
    stop_running()
    submit(engine, [ask(prompts()[0], third)])
    wait_for(lambda: third.is_over)
    assert not running.is_over and not waiting.events
    assert engine.num_running == engine.num_waiting == 0
    stop_running()  # once more does no harm


def test_nobody_takes_all_turns(make_engine: MakeEngine) -> None:
    engine = make_engine(max_rows=1)
    order: list[str] = []

    class Noted(Heard):
        def __init__(self, owner: str) -> None:
            super().__init__()
            self.owner = owner

        def __call__(self, event: Event) -> None:
            super().__call__(event)
            if isinstance(event, Done):
                order.append(self.owner)

    first, many, one = Noted("first"), [Noted("many") for _ in range(10)], Noted("one")
    submit(engine, [ask(prompts()[0], first, max_tokens=300)])  # meanwhile the others queue
    submit(engine, [ask(prompts()[0], each, owner="many") for each in many])
    submit(engine, [ask(prompts()[0], one, owner="one")])
    wait_for(lambda: len(order) == 12)
    assert order[:3] == ["first", "many", "one"]


def test_who_comes_when_all_places_are_taken_is_refused(make_engine: MakeEngine) -> None:
    engine = make_engine(max_rows=1, max_waiting=1)
    heard = [Heard() for _ in range(4)]
    cancels = [submit(engine, [ask(prompts()[0], each, max_tokens=900)])[1] for each in heard[:1]]
    wait_for(lambda: engine.num_running == 1)
    cancels += [submit(engine, [ask(prompts()[0], heard[1])])[1]]
    with pytest.raises(QueueFullError, match="1 answers wait already, and 1 may"):
        submit(engine, [ask(prompts()[0], each) for each in heard[2:]])
    with pytest.raises(KeyError), engine.lease("other"):
        pass
    cancels.pop()()
    wait_for(lambda: engine.num_left == 1)
    with pytest.raises(QueueFullError, match="1 answers are yours already, and 1 may be"):
        submit(engine, [ask(prompts()[0], heard[2])], max_of_owner=1)
    for cancel in cancels:
        cancel()


def test_an_answer_has_a_deadline(make_engine: MakeEngine) -> None:
    """Whoever waits has one too."""
    engine, long, late, waiting = make_engine(max_rows=1), Heard(), Heard(), Heard()
    submit(engine, [ask(prompts()[0], late, max_tokens=900, deadline=0.0)])
    wait_for(lambda: late.is_over)
    _, cancel = submit(engine, [ask(prompts()[0], long, max_tokens=900)])
    submit(engine, [ask(prompts()[0], waiting, deadline=time.monotonic() + 0.05)])
    wait_for(lambda: waiting.is_over)
    assert not long.is_over and not waiting.token_ids
    assert all(isinstance(each.failure, TimeoutError) for each in (late, waiting))
    cancel()


def test_a_fault_is_that_of_its_own_answer(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    good = Heard()

    class Broken(Heard):
        def __call__(self, event: object) -> None:
            super().__call__(event)  # type: ignore[arg-type]  # whatever comes
            if len(self.events) == 2:
                raise ValueError("the listener is broken")

    broken = Broken()
    submit(engine, [ask(prompts()[0], broken), ask(prompts()[1], good)])
    wait_for(lambda: good.is_over and broken.is_over)
    assert str(broken.failure) == "the answer failed; the server's log says how" and good.done is not None
    hidden, failures = (
        Policy.hidden_states,
        iter([RuntimeError("the kernel is broken"), RuntimeError("can't allocate memory")]),
    )

    def breaks(policy: Policy, *arguments: object) -> torch.Tensor:
        if (error := next(failures, None)) is not None:
            raise error
        return hidden(policy, *arguments)  # type: ignore[arg-type]  # as they are

    monkeypatch.setattr(Policy, "hidden_states", breaks)
    for expected in ("the answer failed; the server's log says how", "out of memory: lower engine.cache_tokens", None):
        (heard,) = answers(engine, [(prompts()[0], {})])
        assert (expected is None) == (heard.failure is None)
        assert expected is None or expected in str(heard.failure)
    assert engine.is_alive


def test_many_threads_ask_and_leave(make_engine: MakeEngine) -> None:
    engine = make_engine(max_rows=4, max_waiting=1000)
    whole = offline(engine.models()["tiny"].policy, prompts()[2], 0, max_tokens=6)
    kept: list[Heard] = []

    def client(number: int) -> None:
        for turn in range(12):
            heard = Heard()
            _, cancel = submit(engine, [ask(prompts()[2], heard, max_tokens=6, owner=str(number))])
            if (turn + number) % 3 == 0:
                cancel()
            else:
                kept.append(heard)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(20)
    wait_for(lambda: all(each.is_over for each in kept))
    assert all(each.token_ids == whole for each in kept) and len(kept) == 48
    wait_for(lambda: engine.num_running == engine.num_waiting == 0)
    (served,) = engine._served
    assert served.num_bound == 0
    assert isinstance(served.sampler, NativeSampler) and served.sampler.cache.num_bytes == 0


def test_what_is_in_the_making_fails_when_the_engine_stops(make_engine: MakeEngine) -> None:
    engine = make_engine(max_rows=1)
    heard = [Heard(), Heard()]
    for each in heard:
        submit(engine, [ask(prompts()[0], each, max_tokens=900)])
    wait_for(lambda: bool(heard[0].events))
    engine.stop(10)
    assert all("the server stops" in str(each.failure) for each in heard)


def test_an_answer_that_cannot_be_begun_fails_alone(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    original, failures = RowCache.open, iter([RuntimeError("can't allocate memory")])

    def opened(cache: RowCache, num_tokens: int) -> object:
        if (error := next(failures, None)) is not None:
            raise error
        return original(cache, num_tokens)

    monkeypatch.setattr(RowCache, "open", opened)
    first, second = answers(engine, [(prompts()[0], {}), (prompts()[0], {})])
    assert str(first.failure) == "out of memory: lower engine.cache_tokens" and second.done is not None
    assert engine.num_left == 0


def test_nobody_waits_for_an_engine_that_is_gone(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, running = make_engine(max_rows=1), Heard()
    submit(engine, [ask(prompts()[0], running, max_tokens=900)])
    wait_for(lambda: bool(running.events))

    def breaks() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    monkeypatch.setattr(engine, "_late", breaks)
    wait_for(lambda: running.is_over and not engine.is_alive)
    assert isinstance(running.failure, EngineGoneError)
    with pytest.raises(EngineGoneError):
        submit(engine, [ask(prompts()[0], Heard())])


def test_answers_begin_while_there_is_room_for_their_tokens(make_engine: MakeEngine) -> None:
    engine, most = make_engine(cache_tokens=100), 0
    heard = [Heard() for _ in range(6)]
    for each in heard:
        submit(engine, [ask(prompts()[2], each, max_tokens=40)])  # 47 with their prompt
    while not all(each.is_over for each in heard):
        most = max(most, engine.num_running)
        time.sleep(0.001)
    assert most == 2
    (alone,) = answers(engine, [(prompts()[3], {})])  # larger than all the room, but alone
    assert alone.done is not None


def test_one_owner_does_not_begin_with_what_another_asked(make_engine: MakeEngine) -> None:
    engine = make_engine()
    found = [answers(engine, [(prompts()[3], {"owner": owner})])[0].done for owner in ("ann", "bo", "ann")]
    assert [each.cached_tokens for each in found if each is not None] == [0, 0, 128]


def test_what_is_forgotten_is_kept_again_when_it_is_asked_again() -> None:
    """And what two prompts share is not forgotten with one of them."""
    shared, size = tuple(range(16)), 16

    def prefix(num_tokens: int) -> Prefix:
        return Prefix({0: torch.zeros(1, 1, num_tokens)}, {0: torch.zeros(1, num_tokens, 1)})

    a, b, c = (*shared, *[1] * size), (*shared, *[2] * size), tuple([3] * 2 * size)
    store = PrefixStore(2 * prefix(32).num_bytes)
    for each in (a, b):
        assert store.wants("", each) == 32
        store.keep("", each, prefix(32))
    assert store.find("", (*a, 9))[1] == 32
    store.keep("", c, prefix(32))  # b goes
    assert store.find("", (*b, 9))[1] == 16 and store.wants("", b) == 32
    assert store.find("", (*a, 9))[1] == 32 and store.wants("", a) == 0
