"""What an environment is: it says how a conversation begins, and answers what the model says.

An environment is a class of two methods; one instance lives for one conversation.

    class Echo:
        def reset(self, task):
            return task.messages

        def step(self, said):
            return StepResult(messages=(Message(role="user", content=said.text),), reward=0.0, done=False)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from burnish.config.imports import check_arguments, import_object
from burnish.records import Completion, Message, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What the environment makes of a turn: what it answers, the turn's reward, and whether the conversation ends.

    The rewards of the turns add up to that of the rollout; named numbers are summed by name too.
    """

    messages: tuple[Message, ...] = ()
    reward: float | Mapping[str, float] = 0.0
    done: bool = False


class Environment(Protocol):
    """One conversation. Either method may be a coroutine function: those of a step's conversations then wait together.

    Three things may be there beside the methods: `tools`, JSON schemas of functions, which the chat template shows;
    `close()`, plain or a coroutine function, which is called when the conversation is over; and `best_reward`, what a
    perfect conversation is worth where that is not 1, for `check_environment`.
    """

    def reset(self, task: Task) -> Sequence[Message] | Awaitable[Sequence[Message]]:
        """The messages to ask with; a function of the task alone."""
        ...

    def step(self, said: Completion) -> StepResult | Awaitable[StepResult]:
        """Answer a turn of the model."""
        ...


MakeEnvironment = Callable[[], Environment]


def load_environment(path: str) -> MakeEnvironment:
    """A class, or a function without arguments, by `package.module:name`, that makes an environment.

    Raises:
        ConfigError: there is no such thing, or what it makes has no `reset` and `step`.
    """
    make: MakeEnvironment = import_object(path, "task.environment")
    check_arguments(make, path, "task.environment", ())
    environment = make()
    for method, argument in (("reset", "task"), ("step", "said")):
        check_arguments(getattr(environment, method, None), f"{path}.{method}", "task.environment", (argument,))
    return make


def tools_of(environment: Environment) -> Sequence[Mapping[str, Any]] | None:
    """The schemas of an environment's tools; None where it has none."""
    return getattr(environment, "tools", None)
