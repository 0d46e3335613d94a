"""With the real gymnasium: a word game of text spaces, played by the engine of conversations."""

import gymnasium
import pytest

from burnish.data.chat import Chat
from burnish.environments.adapters.gymnasium import GymnasiumEnvironment
from burnish.environments.check import check_environment
from burnish.errors import ConfigError
from burnish.models.tiny import make_byte_tokenizer
from burnish.records import Message, SamplingSettings, Task
from burnish.rewards.check import as_completion
from burnish.rewards.scoring import Score
from burnish.rollout.conversations import Conversations
from burnish.rollout.generators.scripted import ScriptedGenerator

LETTERS = frozenset("abc")


class Letter(gymnasium.Env):
    """Find the letter, of three, that the seed has chosen."""

    observation_space = gymnasium.spaces.Text(100, charset=frozenset("abcdefghijklmnopqrstuvwxyz ?"))
    action_space = gymnasium.spaces.Text(1, charset=LETTERS)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        letters = (options or {}).get("letters", "abc")
        self.secret = letters[int(self.np_random.integers(len(letters)))]
        return f"which of {letters}?", {}

    def step(self, action):
        right = action == self.secret
        return "right" if right else "no", float(right), right, False, {}


gymnasium.register("burnish_tests/Letter-v0", entry_point=Letter, max_episode_steps=5)


def letter() -> GymnasiumEnvironment:
    return GymnasiumEnvironment("burnish_tests/Letter-v0")


def task(name: str, **extra) -> Task:
    return Task(id=name, messages=(Message(role="user", content="Play."),), answer="", extra=extra)


def test_a_game_is_played_to_its_end() -> None:
    tokenizer = make_byte_tokenizer()
    chat = Chat(tokenizer=tokenizer, stop_token_ids=(2,))
    play = Conversations(make=letter, chat=chat, timeout_seconds=5, max_turns=8, context_length=2048)
    prompts = [play.first_prompt(task(f"t{index}"), max_tokens=20) for index in range(6)]
    assert "Play.\n\nwhich of abc?" in prompts[0].text

    def in_order(text: str, seed: int) -> str:
        return "abc"[text.count("no<|im_end|>")] + "\n"

    generator = ScriptedGenerator(tokenizer, in_order)
    sampling = SamplingSettings(max_tokens=20, stop_token_ids=(2,))
    episodes = [each for (each,) in play(generator.generate, prompts, [(1,)] * 6, sampling)]
    assert [episode.score for episode in episodes] == [Score(1.0, {})] * 6
    assert {len(episode.turns) for episode in episodes} == {1, 2, 3}  # by the task's id


def test_a_word_that_is_no_action_is_answered() -> None:
    env = letter()
    env.reset(task("t", options={"letters": "b"}))
    told = env.step(as_completion("I think it is b"))
    assert not told.done and told.messages[0].content.startswith("That is no action")
    assert env.step(as_completion("b")).reward == 1.0


def test_gymnasiums_own_limit_ends_it() -> None:
    env = letter()
    env.reset(task("t", options={"letters": "b"}))
    assert [env.step(as_completion("a")).done for _ in range(5)] == [False] * 4 + [True]


def test_check_environment_passes() -> None:
    def in_turn(task, messages) -> str:
        return "abc"[len(messages) // 2]

    assert check_environment(letter, [task("one"), task("two")], in_turn) == []


@pytest.mark.parametrize(
    ("env_id", "message"), [("CartPole-v1", "must be Text"), ("none/Such-v0", "cannot make 'none/Such-v0'")]
)
def test_what_is_not_text_is_refused(env_id: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GymnasiumEnvironment(env_id)
