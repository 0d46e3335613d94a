"""An OpenEnv server, run by test_openenv.py: find the seeded number from 0 to 2."""

import random
import sys

import uvicorn
from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app


class Guess(Action):
    number: int


class Heard(Observation):
    said: str = ""


class Game(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def reset(self, seed=None, episode_id=None, **kwargs):
        self.secret = kwargs.get("secret", random.Random(seed).randrange(3))
        return Heard(said="which of 0, 1, 2?")

    def step(self, action, timeout_s=None, **kwargs):
        right = action.number == self.secret
        return Heard(said="right" if right else "no", reward=float(right), done=right)

    @property
    def state(self):
        return State()


if __name__ == "__main__":
    app = create_fastapi_app(Game, Guess, Heard, max_concurrent_envs=16)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="critical")
