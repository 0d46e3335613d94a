import asyncio
import sys
import time

import numpy as np
import pytest

from burnish.errors import ConfigError, DataError
from burnish.records import Completion, Message, Task
from burnish.rewards.answers import exact_match, last_number, math_answer, multiple_choice
from burnish.rewards.scoring import Score, ScoreFailure, load_reward, score_all


def completion(text: str) -> Completion:
    return Completion(token_ids=(1,), text=text, sampling_logprobs=(0.0,), model_logprobs=(0.0,), finish_reason="stop")


def task(answer: str) -> Task:
    return Task(id="t", messages=(Message(role="user", content="q"),), answer=answer)


@pytest.mark.parametrize(
    ("text", "answer", "reward"),
    [
        ("3 + 4 = 7", "7", 1.0),
        ("The answer is 7.", "7", 1.0),
        ("7 - 9 = -2", "-2", 1.0),
        ("7 - 9 = 2", "-2", 0.0),
        ("so 10-3", "3", 1.0),
        ("$1,042.00", "1042", 1.0),
        ("It is 72.", "Natalia sold 48/2 = <<48/2=24>>24.\n#### 72", 1.0),
        ("7 or 8", "7", 0.0),
        ("seven", "7", 0.0),
        ("", "7", 0.0),
        ("0.50", ".5", 0.0),  # a reference is read like an answer: ".5" has the number 5
        ("1,2", "2", 1.0),
        ("(4)-2", "2", 1.0),
        ("3 - 8 = \N{MINUS SIGN}5", "5", 0.0),
        ("3 - 8 = \N{MINUS SIGN}5", "-5", 1.0),
    ],
)
def test_last_number(text: str, answer: str, reward: float) -> None:
    assert last_number(completion(text), task(answer)) == reward


def test_exact_match() -> None:
    assert exact_match(completion(" yes\n"), task("yes")) == 1.0
    assert exact_match(completion("Yes"), task("yes")) == 0.0


@pytest.mark.parametrize(
    ("text", "answer", "reward"),
    [
        (r"So it is $\boxed{\frac{2}{4}}$.", r"\frac12", 1.0),
        (r"So it is $\boxed{\frac{2}{4}}$.", r"$\frac12$", 1.0),
        (r"So it is $\boxed{\frac{2}{4}}$.", r"Half of it: \boxed{1/2}", 1.0),
        ("The answer is 0.5", r"\frac{1}{2}", 1.0),
        ("The answer is 0.51", r"\frac{1}{2}", 0.0),
        ("I think 4, no, the answer is 72.", "He has 80-8=<<80-8=72>>72.\n#### 72", 1.0),
        ("$1042", "1,042", 1.0),
        (r"$2\sqrt{2}$", r"\sqrt{8}", 1.0),
        (r"$x + 1$", "1+x", 1.0),
        (r"$x + 1$", "1+y", 0.0),
        (r"$\{2, 1\}$", r"\{1,2\}", 1.0),
        (r"$(2, 1)$", "(1,2)", 0.0),
        (r"\boxed{2} or \boxed{3}", "2", 0.0),
        ("no idea", "2", 0.0),
        ("", "2", 0.0),
        (r"\boxed{391}", "391", 1.0),
        (r"$x = 391\text{ km}$", "391", 1.0),
        (r"\boxed{17 \times 23}", "391", 0.0),
        ("What is 17*23? It is 17*23", "391", 0.0),
        (r"\boxed{\max(4, 5)}", "5", 0.0),
        (r"\boxed{1=2}", "2", 0.0),
        ("__import__('os').abort()", "2", 0.0),
        (r"$\boxed{__import__('os').abort()}$", "2", 0.0),
    ],
)
def test_math_answer(text: str, answer: str, reward: float) -> None:
    pytest.importorskip("math_verify", reason="math-verify is in the extra `math`")
    assert math_answer(completion(text), task(answer)) == reward


def test_a_reference_that_is_no_mathematics() -> None:
    pytest.importorskip("math_verify", reason="math-verify is in the extra `math`")
    with pytest.raises(DataError, match="is not mathematics"):
        math_answer(completion("2"), task("$$"))


@pytest.mark.parametrize("text", ["$10^{10^{10}}$", "9**9**9**9", r"$\sum_{i=1}^{10^{12}} i^i$"])
def test_the_time_limit_of_rewards_ends_math_answer(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("math_verify", reason="math-verify is in the extra `math`")
    math_answer(completion("1"), task("2"))  # loads sympy
    began = time.monotonic()
    scores = score_all(
        math_answer, [(completion(text), task("2^1")), (completion("2"), task("2^1"))], timeout_seconds=0.3
    )
    assert scores == [ScoreFailure("no result within 0.3 s"), Score(1.0)]
    assert time.monotonic() - began < 3
    assert capfd.readouterr().err == ""


def test_math_answer_without_math_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ConfigError, match=r"burnish\[math\]"):
        math_answer(completion("2"), task("2"))


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("B", "B"),
        (" (B)\n", "B"),
        ("**B**", "B"),
        ("B. Because it is.", "B"),
        ("(B) Paris", "B"),
        ("The answer is (B).", "B"),
        ("The correct answer is **B) Paris**, not A.", "B"),
        ("Answer: B", "B"),
        ("answer is: B", "B"),
        ("Option: B", "B"),
        (r"So $\boxed{B}$", "B"),
        (r"So \boxed{\text{(B)}}", "B"),
        ("The answer is A. No, the answer is B.", "B"),
        ("A cat", None),
        ("B or C", None),
        ("B's", None),
        ("BC", None),
        ("b", None),
        ("The answer is Bern.", None),
        ("", None),
    ],
)
def test_multiple_choice(text: str, choice: str | None) -> None:
    for letter in "ABC":
        assert multiple_choice(completion(text), task(letter)) == float(letter == choice)
    assert multiple_choice(completion(text), task(" (B)")) == float(choice == "B")


@pytest.mark.parametrize("answer", ["", "AB", "b", "1"])
def test_a_reference_that_is_no_letter(answer: str) -> None:
    with pytest.raises(DataError, match="not one capital letter"):
        multiple_choice(completion("B"), task(answer))


def test_components_are_summed() -> None:
    scores = score_all(lambda c, t: {"right": 1, "short": 0.25}, [(completion("x"), task("1"))], timeout_seconds=1)
    assert scores == [Score(1.25, {"right": 1.0, "short": 0.25})]


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("value", [None, "1", float("nan"), {"a": "b"}, {"a": float("inf")}])
def test_values_that_are_no_numbers_fail_alone(value, is_async: bool) -> None:
    values = iter([1.0, value, np.float32(0.5)])

    async def judge(c: Completion, t: Task):
        return next(values)

    pairs = [(completion("x"), task("1"))] * 3
    scores = score_all(judge if is_async else lambda c, t: next(values), pairs, timeout_seconds=1)
    assert [type(score) for score in scores] == [Score, ScoreFailure, Score]
    assert scores[2] == Score(0.5)


def test_a_slow_thread_of_one_async_reward_costs_no_other() -> None:
    async def reward(completion, task) -> float:
        if completion.text == "slow":
            await asyncio.to_thread(time.sleep, 2)
        return 1.0

    pairs = [(completion(text), task("")) for text in ("a", "slow", "b")]
    began = time.monotonic()
    scores = score_all(reward, pairs, timeout_seconds=0.3)
    assert scores == [Score(1.0), ScoreFailure("no result within 0.3 s"), Score(1.0)]
    assert time.monotonic() - began < 1.5


@pytest.mark.parametrize("error", [SystemExit, asyncio.CancelledError, GeneratorExit], ids=lambda error: error.__name__)
def test_no_exception_of_a_reward_ends_the_run(error) -> None:
    def plain(completion, task) -> float:
        raise error("out")

    async def coroutine(completion, task) -> float:
        raise error("out")

    for reward in (plain, coroutine):
        assert score_all(reward, [(completion("a"), task(""))], timeout_seconds=1) == [
            ScoreFailure(f"{error.__name__}: out")
        ]


def test_an_async_reward_that_blocks_is_ended() -> None:
    async def judge(c: Completion, t: Task) -> float:
        time.sleep(0.6 if c.text == "block" else 0)
        return 1.0

    pairs = [(completion(text), task("1")) for text in ("x", "block", "y")]
    scores = score_all(judge, pairs, timeout_seconds=0.2)
    assert isinstance(scores[1], ScoreFailure)
    assert scores[0] == Score(1.0)


def test_an_endless_reward_is_interrupted() -> None:
    def endless(c: Completion, t: Task) -> float:
        while c.text == "loop":
            try:
                len(c.text)
            except Exception:
                continue
        return 1.0

    began = time.monotonic()
    pairs = [(completion("loop"), task("1")), (completion("x"), task("1"))]
    failed, scored = score_all(endless, pairs, timeout_seconds=0.1)
    assert failed == ScoreFailure("no result within 0.1 s")
    assert scored == Score(1.0)
    assert time.monotonic() - began < 5


def test_coroutines_run_at_once_and_fail_alone() -> None:
    running, most = 0, 0

    async def judge(c: Completion, t: Task) -> float:
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        await asyncio.sleep(60 if c.text == "slow" else 0.05)
        running -= 1
        if c.text == "bad":
            raise RuntimeError("no verdict")
        return 0.5

    pairs = [(completion(text), task("1")) for text in ("a", "bad", "slow", "b")]
    scores = score_all(judge, pairs, timeout_seconds=1)
    assert scores[0] == scores[3] == Score(0.5)
    assert scores[1] == ScoreFailure("RuntimeError: no verdict")
    assert scores[2] == ScoreFailure("no result within 1 s")
    assert most == 4


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("burnish.rewards.answers", "package.module:name"),
        ("burnish.rewards.nothing:f", "cannot import"),
        ("burnish.rewards.answers:nothing", "cannot import"),
        ("burnish.rewards.scoring:Score", None),
        ("os:getcwd", "must take"),
        ("builtins:max", "must take"),
        (".x:f", "must take|cannot import"),
    ],
)
def test_load_reward(path: str, message: str | None) -> None:
    if message is None:
        assert callable(load_reward(path))
        return
    with pytest.raises(ConfigError, match=message):
        load_reward(path)


def test_a_reward_module_that_is_broken(tmp_path, monkeypatch) -> None:
    (tmp_path / "broken_rewards.py").write_text("def score(completion, task)\n    return 1\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="cannot import 'broken_rewards:score': SyntaxError"):
        load_reward("broken_rewards:score")


def test_load_reward_from_the_working_directory(tmp_path, monkeypatch) -> None:
    (tmp_path / "my_own_rewards.py").write_text("def score(completion, task):\n    return len(completion.text)\n")
    monkeypatch.chdir(tmp_path)
    assert load_reward("my_own_rewards:score")(completion("four"), task("")) == 4
