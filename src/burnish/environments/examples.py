"""Environments that ship: arithmetic with a calculator, and a game of guessing a number."""

from __future__ import annotations

import ast
import hashlib
import operator
import re
from collections.abc import Callable, Sequence

from burnish.environments.base import StepResult
from burnish.environments.tools import ToolEnvironment
from burnish.records import Completion, Message, Task
from burnish.rewards.answers import last_number

_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_LARGEST = 1e15
_GUESSES = 6


def calculate(expression: str) -> float:
    """Compute an expression of numbers, + - * / and brackets.

    Args:
        expression: The expression, say "(2 + 3) * 4".
    """
    value = _value(ast.parse(expression, mode="eval").body)
    if not abs(value) <= _LARGEST:
        raise ValueError("the result is too large")
    return value


class Calculator(ToolEnvironment):
    """A question of arithmetic with a calculator at hand; right if the answer's last number is the reference's."""

    def __init__(self) -> None:
        super().__init__([calculate], last_number)


class GuessTheNumber:
    """A number from 1 to 20 to be found in six guesses, with hints; it is drawn from the task's id.

    The reward is 1 for finding it, less a tenth for every guess after the first.
    """

    def __init__(self) -> None:
        self._secret = 0
        self._guesses = 0

    def reset(self, task: Task) -> Sequence[Message]:
        """See Environment."""
        self._secret = secret_of(task)
        rules = f"I think of a whole number from 1 to 20. You have {_GUESSES} guesses. Answer with a number only."
        *before, last = task.messages
        return (*before, Message(role=last.role, content=f"{last.content}\n\n{rules}"))

    def step(self, said: Completion) -> StepResult:
        """See Environment."""
        self._guesses += 1
        numbers = re.findall(r"[0-9]{1,3}", said.text)
        guess = int(numbers[0]) if numbers else None
        if guess == self._secret:
            return StepResult(reward=1.0 - 0.1 * (self._guesses - 1), done=True)
        if self._guesses == _GUESSES:
            return StepResult(done=True)
        hint = "That is no number." if guess is None else ("Higher." if guess < self._secret else "Lower.")
        return StepResult(messages=(Message(role="user", content=hint),))


def secret_of(task: Task) -> int:
    """The number to guess."""
    return 1 + hashlib.sha256(task.id.encode()).digest()[0] % 20


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError("only numbers, + - * / and brackets")
