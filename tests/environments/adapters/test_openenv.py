"""With the real openenv-core: a server in a process of its own, reached over its web socket."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from burnish.data.chat import Chat
from burnish.environments.adapters.openenv import OpenEnvEnvironment
from burnish.models.tiny import make_byte_tokenizer
from burnish.records import Message, SamplingSettings, Task
from burnish.rewards.scoring import Score, ScoreFailure
from burnish.rollout.conversations import Conversations
from burnish.rollout.generators.scripted import ScriptedGenerator

pytestmark = pytest.mark.slow
TOKENIZER = make_byte_tokenizer()
SAMPLING = SamplingSettings(max_tokens=20, stop_token_ids=(2,))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, str(Path(__file__).with_name("openenv_server.py")), str(port)])
    try:
        deadline = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None and time.monotonic() < deadline, "the server did not start"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(timeout=10)
        finally:
            server.kill()


def conversations(url: str) -> Conversations:
    def make() -> OpenEnvEnvironment:
        return OpenEnvEnvironment(
            url, to_action=lambda text: {"number": int(text)}, to_text=lambda seen: str(seen["said"])
        )

    chat = Chat(tokenizer=TOKENIZER, stop_token_ids=(2,))
    return Conversations(make=make, chat=chat, timeout_seconds=20, max_turns=4, context_length=2048, max_retries=0)


def task(name: str, **extra) -> Task:
    return Task(id=name, messages=(Message(role="user", content="Play."),), answer="", extra=extra)


def test_sessions_are_played_side_by_side(url: str) -> None:
    play = conversations(url)
    prompts = [play.first_prompt(task(f"t{index}"), max_tokens=20) for index in range(12)]
    assert "Play.\n\nwhich of 0, 1, 2?" in prompts[0].text
    generator = ScriptedGenerator(TOKENIZER, lambda text, seed: str(text.count("no<|im_end|>")))
    episodes = [each for (each,) in play(generator.generate, prompts, [(1,)] * 12, SAMPLING)]
    assert [episode.score for episode in episodes] == [Score(1.0, {})] * 12
    assert {len(episode.turns) for episode in episodes} == {1, 2, 3}  # seeded by the task's id


def test_a_tasks_fields_reach_the_reset_and_a_bad_action_costs_its_session(url: str) -> None:
    play = conversations(url)
    prompt = play.first_prompt(task("t", reset={"secret": 7}), max_tokens=20)
    generator = ScriptedGenerator(TOKENIZER, lambda text, seed: "7" if seed == 1 else "seven")
    ((right, wrong),) = play(generator.generate, [prompt], [(1, 2)], SAMPLING)
    assert right.score == Score(1.0, {})
    assert isinstance(wrong.score, ScoreFailure) and "ValueError" in wrong.score.reason


def test_no_server_is_one_plain_failure() -> None:
    with pytest.raises(Exception, match="cannot begin task t"):
        conversations("http://127.0.0.1:9").first_prompt(task("t"), max_tokens=20)
