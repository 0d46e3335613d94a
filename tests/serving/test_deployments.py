"""New weights beside those that serve: who gets them, what they may not touch, and how they end."""

import asyncio
import json
import math
import shutil
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from burnish.config.schema import ModelConfig
from burnish.config.serving import DeployConfig, EngineConfig
from burnish.errors import ModelError
from burnish.serving.answers import Answers
from burnish.serving.asking import ask_for
from burnish.serving.asks import Arm, EngineGoneError, Weights
from burnish.serving.deployments import Deployments
from burnish.serving.journal import Rated
from burnish.serving.loading import WeightLoader
from burnish.serving.native import native_samplers
from burnish.serving.openai import ChatRequest
from burnish.serving.parts import Parts
from burnish.serving.refusals import RefusedError

MakeParts = Callable[..., Parts]
LoadTiny = Callable[..., Weights]


def body(**settings: Any) -> ChatRequest:
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "temperature": 0.0}
    return ChatRequest.model_validate(asked | settings)


async def answered(parts: Parts, **settings: Any) -> Answers:
    asked = body(**settings)
    answers = await ask_for(parts, asked, asked.as_wish(), owner="ann")
    try:
        await answers.finish()
    except RefusedError:
        assert any(each.ending == "failed" for each in answers.all)
    return answers


async def begin(parts: Parts, weights: Weights, *, arm: Arm = "canary", version: int = 2, share: float = 0.5) -> None:
    await parts.deployments.start(replace(weights, arm=arm, version=version), "two", share, None)


def with_ends(weights: Weights, tokens: Iterable[int]) -> Weights:
    return replace(weights, policy=replace(weights.policy, stop_token_ids=tuple(tokens)))


def ends_at_once(weights: Weights) -> Weights:
    """Every token ends the answer."""
    return with_ends(weights, range(weights.policy.head.weight_VH.shape[0]))


def never_ends(weights: Weights) -> Weights:
    return with_ends(weights, ())


def fails(weights: Weights) -> Weights:
    def broken(*args: Any) -> None:
        raise ValueError("planted")

    weights.policy.model.get_input_embeddings().register_forward_hook(broken)
    return weights


async def until_over(parts: Parts, most: int, **settings: Any) -> int:
    """How many requests it took until nothing was tried any more."""
    for number in range(most):
        if parts.deployments.status("tiny")["trial"] is None:
            return number
        await answered(parts, **settings)
    return most


@pytest.fixture
def parts(make_parts: MakeParts) -> Parts:
    made = make_parts(min_answers=20, max_answers=60)
    made.service.engine.install(ends_at_once(made.service.weights("tiny")))
    return made


@pytest.fixture
def history(tmp_path: Path, parts: Parts) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """The parts' deployments write one; this reads it, which ends them."""
    file = tmp_path / "deployments.jsonl"
    parts.deployments._history = file

    def read() -> list[dict[str, Any]]:
        parts.deployments.close()
        return [json.loads(line) for line in file.read_text().splitlines()]

    yield read


def last_event(parts: Parts) -> dict[str, Any]:
    event: dict[str, Any] = parts.deployments.status("tiny")["events"][-1]
    return event


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_the_share_and_the_stickiness_of_a_canary(parts: Parts, load_tiny: LoadTiny, share: float) -> None:
    """Of 4,000 keys a share within four standard deviations; a key always gets the same answer."""
    assert parts.deployments.arm_for("tiny", "ann") == "stable"
    asyncio.run(begin(parts, load_tiny(2), share=share))
    keys = [f"user {number}" for number in range(4000)]
    first = [parts.deployments.arm_for("tiny", key) for key in keys]
    found = first.count("canary") / len(keys)
    assert abs(found - share) <= 4 * math.sqrt(share * (1 - share) / len(keys))
    assert [parts.deployments.arm_for("tiny", key) for key in keys] == first
    assert parts.deployments.arm_for("other", "user 1") == "stable"


def test_another_canary_has_other_users(parts: Parts, load_tiny: LoadTiny) -> None:
    keys = [f"user {number}" for number in range(400)]
    found = []
    for other in (False, True):
        asyncio.run(begin(parts, load_tiny(2, other=other)))
        found.append([parts.deployments.arm_for("tiny", key) for key in keys])
        parts.deployments.roll_back("tiny", "next")
    same = sum(a == b for a, b in zip(*found, strict=True))
    assert abs(same - 200) <= 4 * math.sqrt(100)  # independent: half agree


@pytest.mark.parametrize(("spoil", "measure"), [(never_ends, "answers that ended"), (fails, "answers that did not")])
def test_a_worse_canary_is_rolled_back(
    parts: Parts, load_tiny: LoadTiny, history: Any, spoil: Callable[[Weights], Weights], measure: str
) -> None:
    async def go() -> int:
        await begin(parts, spoil(load_tiny(2, other=True)))
        return await until_over(parts, 200)

    assert asyncio.run(go()) < 100
    began, ended = history()
    assert (began["event"], began["share"], began["registered"]) == ("canary began", 0.5, None)
    assert ended["event"] == "rolled back" and ended["reason"].startswith(measure) and ended["version"] == 2
    assert ended["answers"]["canary"] >= 10 and ended["measures"]["served"]["pairs"] <= ended["answers"]["canary"]
    assert parts.service.weights("tiny").version == 1 and parts.deployments.share("tiny") == 0
    assert not parts.service.engine.models("canary")


def test_an_equal_canary_is_promoted(make_parts: MakeParts, load_tiny: LoadTiny) -> None:
    parts = make_parts(min_answers=20, max_answers=3000, margin=0.5)
    parts.service.engine.install(ends_at_once(parts.service.weights("tiny")))

    async def go() -> None:
        await begin(parts, ends_at_once(load_tiny(2)))
        await until_over(parts, 300)

    asyncio.run(go())
    assert last_event(parts)["event"] == "promoted" and last_event(parts)["reason"] == "no measure is worse by 0.5"
    promoted = parts.service.weights("tiny")
    assert (promoted.version, promoted.arm) == (2, "stable")


def test_an_undecided_canary_is_promoted_with_its_reason(parts: Parts, load_tiny: LoadTiny) -> None:
    async def go() -> None:
        await begin(parts, ends_at_once(load_tiny(2)))
        await until_over(parts, 400)

    asyncio.run(go())
    assert last_event(parts)["reason"] == "nothing was shown in 60 answers"


def test_promotion_waits_where_it_is_not_automatic(make_parts: MakeParts, load_tiny: LoadTiny) -> None:
    parts = make_parts(min_answers=10, max_answers=10, is_automatic=False)

    async def go() -> None:
        await begin(parts, load_tiny(2))
        assert await until_over(parts, 60) == 60
        parts.deployments.promote("tiny", "root: it is good")

    asyncio.run(go())
    assert last_event(parts)["reason"] == "root: it is good"


def test_one_trial_at_a_time(parts: Parts, load_tiny: LoadTiny) -> None:
    asyncio.run(begin(parts, load_tiny(2)))
    with pytest.raises(RefusedError, match="other weights are being tried: promote them, or roll them back"):
        asyncio.run(begin(parts, load_tiny(3)))
    parts.deployments.roll_back("tiny", "enough")
    for end in (parts.deployments.promote, parts.deployments.roll_back):
        with pytest.raises(RefusedError, match="nothing is being tried"):
            end("tiny", "again")


def test_answers_under_way_end_with_the_weights_that_were_rolled_back(parts: Parts, load_tiny: LoadTiny) -> None:
    """And with the tokens that these weights alone would give."""

    async def go(rolls_back: bool) -> tuple[list[int], int, str]:
        await begin(parts, never_ends(load_tiny(2, other=True)), share=1.0)
        asked = body(max_tokens=100)
        answers = await ask_for(parts, asked, asked.as_wish(), owner="ann")
        async for _ in answers.events():
            if rolls_back and parts.deployments.status("tiny")["trial"]:
                parts.deployments.roll_back("tiny", "while it answers")
        if not rolls_back:
            parts.deployments.roll_back("tiny", "after")
        (answer,) = answers.all
        return answer.token_ids, answer.weights.version, str(answer.ending)

    quiet, cut = asyncio.run(go(False)), asyncio.run(go(True))
    assert quiet == cut and len(cut[0]) == 100 and cut[1] == 2
    stable = asyncio.run(answered(parts, max_tokens=100))
    assert stable.weights.version == 1 and stable.all[0].token_ids != cut[0]


def test_requests_from_before_the_trial_do_not_count(parts: Parts, load_tiny: LoadTiny) -> None:
    async def go() -> None:
        asked = body(max_tokens=60, ignore_eos=True)
        answers = await ask_for(parts, asked, asked.as_wish(), owner="ann")
        await begin(parts, load_tiny(2), share=1e-9)
        await answers.finish()
        assert parts.deployments.status("tiny")["trial"]["answers"]["stable"] == 0
        await answered(parts)
        assert parts.deployments.status("tiny")["trial"]["answers"]["stable"] == 1

    asyncio.run(go())


def test_a_user_who_stays_counts_once(parts: Parts, load_tiny: LoadTiny) -> None:
    """One user of each arm who asks a hundred times is one pair, however bad it goes for him."""

    async def go() -> dict[str, Any]:
        await begin(parts, never_ends(load_tiny(2, other=True)))
        users: dict[str, str] = {}
        for number in range(100):
            users.setdefault(parts.deployments.arm_for("tiny", f"ann u{number}"), f"u{number}")
        for user in users.values():
            for _ in range(50):
                await answered(parts, user=user)
        trial: dict[str, Any] = parts.deployments.status("tiny")["trial"]
        return trial

    trial = asyncio.run(go())
    assert trial["answers"]["canary"] == trial["answers"]["stable"] == 50
    assert trial["measures"]["finished"]["pairs"] == 1


def test_a_request_for_several_answers_counts_once(parts: Parts, load_tiny: LoadTiny) -> None:
    async def go() -> dict[str, Any]:
        await begin(parts, load_tiny(2))
        for _ in range(12):
            await answered(parts, n=4, temperature=1.0)
        trial: dict[str, Any] = parts.deployments.status("tiny")["trial"]
        return trial

    trial = asyncio.run(go())
    assert trial["answers"]["canary"] + trial["answers"]["stable"] == 48
    assert trial["measures"]["served"]["pairs"] <= 6


def test_answers_that_clients_give_up_are_slow_if_they_are(parts: Parts, load_tiny: LoadTiny, monkeypatch) -> None:
    """Cancelled before the first token and after its time: slow. Cancelled early: nothing is known. With its first
    token: as quick as that was.
    """

    def values(seconds: float, first: float | None) -> dict[str, bool]:
        async def cancelled() -> Answers:
            asked = body(max_tokens=100, ignore_eos=True)
            answers = await ask_for(parts, asked, asked.as_wish(), owner="ann")
            answers.close()
            return answers

        answers = asyncio.run(cancelled())
        answers.all[0].seconds, answers.all[0].first_seconds = seconds, first
        return parts.deployments._values(answers)

    assert values(6.0, None) == {"quick": False}
    assert values(0.1, None) == {}
    assert values(9.0, 1.0) == {"quick": True} and values(9.0, 5.1) == {"quick": False}


def rating(parts: Parts, number: int, arm: Arm, **changes: Any) -> Rated:
    weights = parts.service.engine.models(arm)["tiny"]
    facts = {"model": "tiny", "arm": arm, "fingerprint": weights.fingerprint, "unit": f"unit {number}"}
    return Rated(**(facts | {"asked": math.inf} | changes))


def test_ratings_roll_back(parts: Parts, load_tiny: LoadTiny) -> None:
    asyncio.run(begin(parts, load_tiny(2, other=True)))
    for number in range(10):
        parts.deployments.rated(rating(parts, number, "stable"), is_good=True)
        parts.deployments.rated(rating(parts, -number - 1, "canary"), is_good=False)
    assert last_event(parts)["event"] == "rolled back"
    assert last_event(parts)["reason"].startswith("ratings that are good: 0.000 of the canary's against 1.000")


@pytest.mark.parametrize(
    "changes",
    [{"unit": "always the same"}, {"asked": 0.0}, {"fingerprint": "of another server's canary"}, {"model": "other"}],
    ids=str,
)
def test_ratings_that_do_not_count(parts: Parts, load_tiny: LoadTiny, changes: dict[str, Any]) -> None:
    """One person's again and again, those of answers from before, those of weights that are not these."""
    asyncio.run(begin(parts, load_tiny(2, other=True)))
    for number in range(100):
        parts.deployments.rated(rating(parts, number, "stable"), is_good=True)
        parts.deployments.rated(rating(parts, -number - 1, "canary", **changes), is_good=False)
    assert parts.deployments.status("tiny")["trial"]["measures"]["liked"]["pairs"] <= 1


def test_a_shadow_touches_no_answer(parts: Parts, load_tiny: LoadTiny) -> None:
    """The same tokens, texts and log-probabilities, bit by bit, with it and without; and it was asked."""

    async def ask_all() -> list[tuple[Any, ...]]:
        found = []
        for number in range(8):
            answers = await answered(parts, seed=number, temperature=1.0, max_tokens=12, ignore_eos=True)
            found += [(each.token_ids, each.text, each.logprobs, each.ending) for each in answers.all]
            assert {each.weights.arm for each in answers.all} == {"stable"}
        return found

    async def with_shadow() -> tuple[list[tuple[Any, ...]], dict[str, Any]]:
        await begin(parts, load_tiny(2, other=True), arm="shadow", share=1.0)
        found = await ask_all()
        await asyncio.gather(*parts.deployments._shadowing)
        trial: dict[str, Any] = parts.deployments.status("tiny")["trial"]
        return found, trial

    asyncio.run(ask_all())  # so that the prompt's keys are kept in both: a prompt that is read anew has other last bits
    without = asyncio.run(ask_all())
    found, trial = asyncio.run(with_shadow())
    assert found == without
    assert trial["answers"] == {"stable": 8, "canary": 0, "shadow": 8}
    assert trial["compared"]["equal"] < 0.5 and trial["compared"]["shadow_tokens"] == 12


def test_a_shadow_of_the_same_weights_says_the_same(parts: Parts, load_tiny: LoadTiny) -> None:
    """Without a seed of the client's, too: both draw alike."""

    async def go() -> dict[str, Any]:
        await begin(parts, load_tiny(2), arm="shadow", share=1.0)
        for _ in range(4):
            await answered(parts, temperature=1.0, max_tokens=12, ignore_eos=True, n=2)
            await asyncio.gather(*parts.deployments._shadowing)
        compared: dict[str, Any] = parts.deployments.status("tiny")["trial"]["compared"]
        return compared

    compared = asyncio.run(go())
    assert compared["answers"] == 8 and compared["equal"] == 1 and compared["failed"] == 0


def test_a_shadow_that_fails_is_counted_and_nothing_else(parts: Parts, load_tiny: LoadTiny) -> None:
    async def go() -> dict[str, Any]:
        await begin(parts, fails(load_tiny(2, other=True)), arm="shadow", share=1.0)
        for _ in range(3):
            assert (await answered(parts)).all[0].ending in ("stop", "length")
        await asyncio.gather(*parts.deployments._shadowing)
        compared: dict[str, Any] = parts.deployments.status("tiny")["trial"]["compared"]
        return compared

    assert asyncio.run(go()) == {"answers": 0, "failed": 3}


def test_a_shadow_steps_back_where_there_is_no_room(make_parts: MakeParts, make_engine: Any, load_tiny: Any) -> None:
    """More than half of the rows are taken: it is not asked."""
    parts = make_parts(make_engine(max_rows=4))

    async def go() -> int:
        await begin(parts, load_tiny(2), arm="shadow", share=1.0)
        await answered(parts, n=2)
        assert not parts.deployments._shadowing
        await answered(parts, n=1)
        await asyncio.gather(*parts.deployments._shadowing)
        count: int = parts.deployments.status("tiny")["trial"]["answers"]["shadow"]
        return count

    assert asyncio.run(go()) == 1


def test_a_history_that_cannot_be_written_changes_no_decision(
    make_parts: MakeParts, load_tiny: LoadTiny, tmp_path: Path, caplog
) -> None:
    parts = make_parts()
    deployments = Deployments(parts.service, DeployConfig(), tmp_path / "none" / "deployments.jsonl")
    weights = replace(load_tiny(2), arm="canary")
    asyncio.run(deployments.start(weights, "two", 0.5, None))
    deployments.promote("tiny", "as told")
    deployments.close()
    assert parts.service.weights("tiny").version == 2
    assert "history of deployments could not be written" in caplog.text


@pytest.mark.parametrize("arm", ["canary", "shadow"])
def test_what_can_answer_no_more_is_rolled_back(
    parts: Parts, load_tiny: LoadTiny, arm: Arm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a request is given to it, and instead of being promoted; what serves goes on."""

    def dead() -> None:
        raise EngineGoneError("planted")

    engine = parts.service.engine
    for number, ends_it in enumerate(("asked", "promoted")):
        asyncio.run(begin(parts, load_tiny(2), arm=arm, version=2 + number, share=1.0))
        monkeypatch.setattr(engine._current["tiny", arm].sampler, "check_alive", dead)
        if ends_it == "asked":
            assert asyncio.run(answered(parts)).all[0].weights.arm == "stable"
        else:
            with pytest.raises(RefusedError, match="tiny: what was tried can answer no more, and is rolled back"):
                parts.deployments.promote("tiny", "as told")
        assert not engine.models(arm) and parts.service.weights("tiny").version == 1
        told = last_event(parts)
        assert (told["event"], told["reason"], told["version"]) == ("rolled back", "planted", 2 + number)
    assert asyncio.run(answered(parts)).all[0].ending == "stop"


def test_the_mismatch_of_an_arm_that_is_gone_is_not_told(parts: Parts, load_tiny: LoadTiny) -> None:
    asyncio.run(begin(parts, load_tiny(2)))
    series = 'burnish_serve_mismatch{arm="canary",model="tiny"}'
    assert series in parts.metrics.exporter.text().decode()
    parts.deployments.roll_back("tiny", "as told")
    assert series not in parts.metrics.exporter.text().decode()


def test_whoever_listens_and_fails_costs_nobody_an_answer(parts: Parts, caplog) -> None:
    def broken(each: Any) -> None:
        raise OSError("no space left")

    parts.service.on_answered.insert(0, broken)
    answers: Awaitable[Answers] = answered(parts)
    assert asyncio.run(answers).all[0].ending == "stop"
    assert "somebody who listens to answers failed" in caplog.text


def test_weights_that_serve_otherwise_than_they_were_trained_are_refused(
    make_parts: MakeParts, make_engine: Any, load_tiny: LoadTiny, tiny_folder: Path, tmp_path: Path, monkeypatch
) -> None:
    """A cache that forgets where its tokens stand: what a wrong kernel or mask would do. What serves goes on."""
    from burnish.serving import cache
    from burnish.serving.parity import served_mismatch

    parts = make_parts(make_engine(native_samplers(EngineConfig(max_rows=4))))
    assert parts.service.engine.mismatches()["tiny", "stable"] < 1e-4
    policy = load_tiny(2).policy
    assert served_mismatch(policy, max_rows=4) < 1e-4
    forward = type(policy).hidden_states

    def off_by_one(self: Any, tokens: Any, positions: Any, attention: Any) -> Any:
        return forward(self, tokens, positions + isinstance(attention, cache.RowCache) * (positions > 5), attention)

    monkeypatch.setattr(type(policy), "hidden_states", off_by_one)
    with pytest.raises(ModelError, match=r"differ from the learner's by .* nats .* rounding explains 0\.001"):
        served_mismatch(policy, max_rows=4)
    shutil.copytree(tiny_folder, tmp_path / "weights" / "two")
    config = ModelConfig(path=str(tiny_folder), compute_dtype="float32")
    loader = WeightLoader(parts.service, parts.metrics, config, tmp_path / "weights")
    with pytest.raises(RefusedError, match=r"differ from the learner's .*; version 1 goes on"):
        asyncio.run(loader.swap("tiny", "two"))
    monkeypatch.undo()
    assert asyncio.run(answered(parts)).weights.version == 1
    assert asyncio.run(loader.swap("tiny", "two")).version == 2


def test_a_version_is_used_once(parts: Parts, tiny_folder: Path, tmp_path: Path) -> None:
    """Not again after a rollback, a refusal, or a promotion."""
    shutil.copytree(tiny_folder, tmp_path / "weights" / "two")
    config = ModelConfig(path=str(tiny_folder), compute_dtype="float32")
    loader = WeightLoader(parts.service, parts.metrics, config, tmp_path / "weights")

    async def tried() -> int:
        async with loader.load("tiny", "two", "canary") as weights:
            await parts.deployments.start(weights, "two", 0.5, None)
        return weights.version

    async def go() -> list[int]:
        found = [await tried()]
        parts.deployments.roll_back("tiny", "no")
        found.append((await loader.swap("tiny", "two")).version)
        with pytest.raises(RefusedError):
            await loader.swap("tiny", "none")
        found.append(await tried())
        parts.deployments.promote("tiny", "yes")
        found.append(await tried())
        return found

    assert asyncio.run(go()) == [2, 3, 4, 5]
    assert parts.service.weights("tiny").version == 4
