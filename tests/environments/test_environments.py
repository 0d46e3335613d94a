import json
import time
from dataclasses import replace

import pytest

from burnish.algorithms.asking import rollout_metrics
from burnish.data.chat import Chat
from burnish.data.packing import example_of, pack, pack_groups
from burnish.environments.base import StepResult, load_environment
from burnish.environments.examples import Calculator, GuessTheNumber, calculate
from burnish.environments.tools import ToolEnvironment, with_described_tools
from burnish.errors import ConfigError
from burnish.models.tiny import make_byte_tokenizer
from burnish.records import Completion, Message, Prompt, Rollout, RolloutGroup, SamplingSettings, Task
from burnish.rewards.check import as_completion
from burnish.rewards.scoring import Score, ScoreFailure
from burnish.rollout.collect import Collected
from burnish.rollout.conversations import Conversations
from burnish.rollout.generators.scripted import ScriptedGenerator

TOKENIZER = make_byte_tokenizer()
CHAT = Chat(tokenizer=TOKENIZER, stop_token_ids=(2,))
SAMPLING = SamplingSettings(max_tokens=100, stop_token_ids=(2,))


def task(name: str = "t", question: str = "start", answer: str = "42") -> Task:
    return Task(id=name, messages=(Message(role="user", content=question),), answer=answer)


def prompt(of: Task) -> Prompt:
    text = CHAT.render([{"role": "user", "content": of.messages[-1].content}], asks=True)
    return Prompt(task=of, text=text, token_ids=tuple(CHAT.prompt_ids(text)))


class Counting:
    """Asks for the next number; a point for each right one, over after three."""

    def __init__(self) -> None:
        self.next = 1

    def reset(self, task):
        return task.messages

    def step(self, said: Completion) -> StepResult:
        right = float(said.text.strip() == str(self.next))
        self.next += 1
        answer = Message(role="user", content=f"now {self.next}")
        return StepResult(messages=(answer,), reward={"right": right}, done=self.next == 4)


def play(make, script, *, seeds=((1, 2),), prompts=None, **changes):
    settings = {"timeout_seconds": 5, "max_retries": 0, "max_turns": 8, "context_length": 1024, **changes}
    generator = ScriptedGenerator(TOKENIZER, script)
    return Conversations(make=make, chat=CHAT, **settings)(
        generator.generate, prompts or [prompt(task())], seeds, SAMPLING
    )


def last_turn(text: str) -> str:
    return text.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]


def count_on(text: str, seed: int) -> str:
    asked = last_turn(text)
    return asked.removeprefix("now ") if asked.startswith("now ") else "1"


def test_a_conversation_token_by_token() -> None:
    (episodes,) = play(Counting, count_on)
    for episode in episodes:
        assert episode.score == Score(3.0, {"right": 3.0})
        whole = TOKENIZER.decode([*prompt(task()).token_ids, *episode.completion.token_ids])
        turns = [
            {"role": "user", "content": "start"},
            {"role": "assistant", "content": "1"},
            {"role": "user", "content": "now 2"},
            {"role": "assistant", "content": "2"},
            {"role": "user", "content": "now 3"},
            {"role": "assistant", "content": "3"},
        ]
        # what the model is trained on is what the template would write of the whole conversation
        assert whole == TOKENIZER.apply_chat_template(turns, tokenize=False).removesuffix("\n")
        observed = [TOKENIZER.decode(episode.completion.token_ids[start:end]) for start, end in episode.observed]
        assert observed == [f"\n<|im_start|>user\nnow {number}<|im_end|>\n<|im_start|>assistant\n" for number in (2, 3)]


def test_what_the_environment_says_is_never_scored() -> None:
    ((episode, _),) = play(Counting, count_on)
    rollout = Rollout(completion=episode.completion, reward=3.0, observed=episode.observed)
    group = RolloutGroup(id=0, prompt=prompt(task()), rollouts=(rollout,), weight_version=0)
    batch = pack([example_of(group)])
    assert TOKENIZER.decode(batch.target_ids_S.tolist()) == "1<|im_end|>2<|im_end|>3<|im_end|>"
    assert len(batch.token_ids_T) == len(group.prompt.token_ids) + len(episode.completion.token_ids)
    for predictor, target in zip(batch.predictor_S.tolist(), batch.target_ids_S.tolist(), strict=True):
        assert batch.token_ids_T[predictor + 1] == target


def test_every_turn_keeps_the_versions_that_sampled_it() -> None:
    scripted = ScriptedGenerator(TOKENIZER, count_on)
    asked = []

    def sample(requests):  # the weights change after the first token of a turn
        asked.append(len(requests))
        first = len(asked)
        return [
            tuple(replace(each, versions=((first, 1), (first + 1, len(each.token_ids) - 1))) for each in group)
            for group in scripted.generate(requests)
        ]

    limits = {"timeout_seconds": 5, "max_retries": 0, "max_turns": 8, "context_length": 1024}
    (((episode,),)) = Conversations(make=Counting, chat=CHAT, **limits)(sample, [prompt(task())], ((1,),), SAMPLING)
    rollout = Rollout(completion=episode.completion, reward=3.0, observed=episode.observed)
    group = RolloutGroup(id=0, prompt=prompt(task()), rollouts=(rollout,), weight_version=0)
    # each turn is a digit and an end token; the environment's tokens between them are not scored
    assert pack_groups([group], [[0.0]]).version_S.tolist() == [1, 2, 2, 3, 3, 4]
    collected = Collected(groups=(group,), failures=(), learner_version=5)
    measured = rollout_metrics(collected)
    assert (measured["staleness_mean"], measured["staleness_max"]) == (2.5, 4)


def test_a_turn_that_is_cut_off_ends_the_conversation() -> None:
    ((episode,),) = play(Counting, lambda text, seed: "x" * 200, seeds=((1,),))
    assert episode.completion.finish_reason == "length" and episode.observed == ()
    assert episode.score == Score(0.0, {"right": 0.0})


def test_turns_and_context_are_bounded() -> None:
    ((episode,),) = play(Counting, count_on, seeds=((1,),), max_turns=2)
    assert len(episode.observed) == 1 and episode.score == Score(2.0, {"right": 2.0})
    used = len(prompt(task()).token_ids)
    ((episode,),) = play(Counting, count_on, seeds=((1,),), context_length=used + 2 + 100)
    assert episode.observed == () and episode.completion.finish_reason == "length"


class Faulty(Counting):
    def step(self, said: Completion) -> StepResult:
        if said.text == "raise":
            raise ValueError("cannot go on")
        if said.text == "sleep":
            time.sleep(5)
        if said.text == "nothing":
            return None  # type: ignore[return-value]
        if said.text == "nan":
            return StepResult(reward=float("nan"))
        return super().step(said)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("raise", "ValueError: cannot go on"),
        ("sleep", "the environment took longer than 0.2 s"),
        ("nothing", "step must return a StepResult, got NoneType"),
        ("nan", "a reward must be a finite number"),
    ],
)
def test_one_fault_costs_one_conversation(said: str, reason: str) -> None:
    def script(text: str, seed: int) -> str:
        return said if seed == 7 else count_on(text, seed)

    ((bad, good),) = play(Faulty, script, seeds=((7, 8),), timeout_seconds=0.2)
    assert isinstance(bad.score, ScoreFailure) and reason in bad.score.reason
    assert good.score == Score(3.0, {"right": 3.0})


def test_neighbours_change_nothing() -> None:
    def script(text: str, seed: int) -> str:
        return str(seed % 1000)

    prompts = [prompt(task(name, question)) for name, question in (("a", "one"), ("b", "two"))]
    together = play(Counting, script, prompts=prompts, seeds=((1, 2), (3, 4)))
    alone = [play(Counting, script, prompts=[each], seeds=(own,))[0] for each, own in zip(prompts, ((1, 2), (3, 4)))]  # noqa: B905
    assert together == alone


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    if a == 13:
        raise RuntimeError("unlucky")
    if a == 99:
        time.sleep(5)
    return a + b


def tool_environment() -> ToolEnvironment:
    environment = ToolEnvironment([add], lambda said, task: float(task.answer in said.text), call_timeout_seconds=0.2)
    environment.reset(task())
    return environment


def call(name: str, **arguments: object) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        (call("add", a=40, b=2), "42"),
        (call("add", a="40", b=2), "42"),
        (call("add", a="forty", b=2), "error: add: a: Input should be a valid integer"),
        (call("add", a=1), "error: add: b: Missing required argument"),
        (call("add", a=13, b=1), "error: add: RuntimeError: unlucky"),
        (call("add", a=99, b=1), "error: add took longer than 0.2 s"),
        (call("subtract", a=1, b=1), "error: there is no tool 'subtract'; there are add"),
        ("<tool_call>add(1, 2)</tool_call>", "error: a call must be"),
        ('<tool_call>{"name": "add", "arguments": [1]}</tool_call>', "error: arguments must be an object"),
        ("<tool_call>[1]", "error: a call must be"),
    ],
)
def test_calls_and_faults_are_answered(said: str, heard: str) -> None:
    result = tool_environment().step(as_completion(said))
    assert not result.done
    (message,) = result.messages
    assert message.role == "tool" and message.content.startswith(heard)


def test_an_answer_without_a_call_is_scored() -> None:
    assert tool_environment().step(as_completion("It is 42.")) == StepResult(reward=1.0, done=True)
    two = tool_environment().step(as_completion(call("add", a=1, b=1) + call("add", a=2, b=2)))
    assert [message.content for message in two.messages] == ["2", "4"]


def test_a_tool_needs_hints_and_words() -> None:
    with pytest.raises(ConfigError, match="tool bare"):

        def bare(a):
            return a

        ToolEnvironment([bare], lambda said, task: 0.0)


def test_tools_are_described_where_the_template_does_not_show_them() -> None:
    first, second = with_described_tools(task().messages, tool_environment().tools)
    assert first.role == "system" and '"add"' in first.content and "<tool_call>" in first.content
    assert second.content == "start"


def test_the_calculator() -> None:
    assert calculate("(2 + 3) * -4 / 2") == -10
    for wrong in ("__import__('os')", "2 ** 9999999", "'a' * 9", "1e15 * 10", "x"):
        with pytest.raises((ValueError, SyntaxError)):
            calculate(wrong)

    def script(text: str, seed: int) -> str:
        return "The answer is 42." if "tool" in text else call("calculate", expression="6 * 7")

    ((episode,),) = play(Calculator, script, seeds=((1,),))
    assert episode.score == Score(1.0)
    assert "42" in episode.completion.text and len(episode.observed) == 1


def test_guessing_by_halves_finds_the_number() -> None:
    for name in "abcdef":
        game = GuessTheNumber()
        game.reset(task(name))
        low, high, reward = 1, 20, 0.0
        for _ in range(6):
            guess = (low + high) // 2
            result = game.step(as_completion(str(guess)))
            if result.done:
                reward = result.reward
                break
            low, high = (guess + 1, high) if "Higher" in result.messages[0].content else (low, guess - 1)
        assert reward >= 0.5
    assert "no number" in GuessTheNumber().step(as_completion("hm")).messages[0].content


def test_loading() -> None:
    assert load_environment("burnish.environments.examples:GuessTheNumber") is GuessTheNumber
    with pytest.raises(ConfigError, match=r"task\.environment: .*calculate' must take \(\)"):
        load_environment("burnish.environments.examples:calculate")
    with pytest.raises(ConfigError, match=r"task\.environment: 'pathlib:Path.reset' must take \(task\)"):
        load_environment("pathlib:Path")
