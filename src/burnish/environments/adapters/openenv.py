"""Environments that an OpenEnv server runs, reached over its web socket.

Name a function that makes one as task.environment:

    def coding():
        return OpenEnvEnvironment("http://localhost:8000", to_action=lambda text: {"code": text})
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from burnish.config.extras import requires_extra
from burnish.environments.base import StepResult
from burnish.records import Completion, Message, Task
from burnish.reproducibility.seeds import seed_for


class OpenEnvEnvironment:
    """A conversation with one session of the server at `url`, which must allow as many sessions
    as a step has rollouts, or as questions are held out, whichever is more.

    It begins with the task's messages and the first observation after them. The session is seeded by the task's id; the
    fields of a task's `reset` go along. `to_action` makes the server's action of what the model said, and `to_text`
    says an observation in words. A session that fails is a fault of its own conversation.

    Raises:
        ConfigError: openenv-core is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        to_action: Callable[[str], dict[str, Any]] = lambda text: {"message": text},
        to_text: Callable[[Mapping[str, Any]], str] = lambda seen: json.dumps(seen, ensure_ascii=False),
    ) -> None:
        with requires_extra("openenv", "OpenEnvEnvironment needs openenv-core"):
            from openenv.core import GenericEnvClient
        self._client = GenericEnvClient(base_url=url)
        self._to_action = to_action
        self._to_text = to_text

    async def reset(self, task: Task) -> Sequence[Message]:
        """See Environment."""
        seed = seed_for(0, "openenv", task.id) % 2**31
        seen = await self._client.reset(seed=seed, **task.extra.get("reset", {}))
        *before, last = task.messages
        return (*before, replace(last, content=f"{last.content}\n\n{self._to_text(seen.observation)}"))

    async def step(self, said: Completion) -> StepResult:
        """See Environment."""
        seen = await self._client.step(self._to_action(said.text))
        answer = Message(role="user", content=self._to_text(seen.observation))
        return StepResult(messages=(answer,), reward=float(seen.reward or 0.0), done=bool(seen.done))

    async def close(self) -> None:
        """See Environment."""
        await self._client.close()
