"""Text environments of gymnasium: those whose observation and action spaces are `Text`.

Name a function that makes one as task.environment:

    def wordle():
        return GymnasiumEnvironment("my_games/Wordle-v0")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from burnish.config.extras import requires_extra
from burnish.environments.base import StepResult
from burnish.errors import ConfigError
from burnish.records import Completion, Message, Task
from burnish.reproducibility.seeds import seed_for


class GymnasiumEnvironment:
    """A conversation with `gymnasium.make(env_id, **options)`.

    It begins with the task's messages and the first observation after them. The environment is seeded by the task's
    id, so that a task is one game; a task's field `options` goes to its reset. What the model says, white space at the
    ends aside, is the action; where that is no member of the action space the model is told, and the game waits.

    Raises:
        ConfigError: gymnasium is not installed, knows no such environment, or its spaces are not of text.
    """

    def __init__(self, env_id: str, **options: Any) -> None:
        with requires_extra("gymnasium", "GymnasiumEnvironment needs gymnasium"):
            import gymnasium
        try:
            self._env = gymnasium.make(env_id, **options)
        except gymnasium.error.Error as error:
            raise ConfigError(f"gymnasium cannot make {env_id!r}: {error}") from error
        for name in ("observation_space", "action_space"):
            space = getattr(self._env, name)
            if not isinstance(space, gymnasium.spaces.Text):
                raise ConfigError(f"{env_id}: its {name} is {space}, and must be Text; wrap it to say and read words")

    def reset(self, task: Task) -> Sequence[Message]:
        """See Environment."""
        seed = seed_for(0, "gymnasium", task.id) % 2**31
        observation, _ = self._env.reset(seed=seed, options=task.extra.get("options"))
        *before, last = task.messages
        return (*before, replace(last, content=f"{last.content}\n\n{observation}"))

    def step(self, said: Completion) -> StepResult:
        """See Environment."""
        action = said.text.strip()
        if not self._env.action_space.contains(action):
            return StepResult(messages=(_user(f"That is no action. Actions are {self._env.action_space}."),))
        observation, reward, terminated, truncated, _ = self._env.step(action)
        return StepResult(messages=(_user(str(observation)),), reward=float(reward), done=terminated or truncated)

    def close(self) -> None:
        """See Environment."""
        self._env.close()


def _user(text: str) -> Message:
    return Message(role="user", content=text)
