r"""An environment of your own, with tools: the model looks up prices and fills a till before it answers. Here:

    burnish check environment environment:till data/orders.jsonl
    burnish train grpo --task.source data/orders.jsonl --task.num_held_out 8 --task.environment environment:till \
        --rollout.max_turns 4 --rollout.max_tokens 64

Tools are functions with type hints and a docstring, which the model reads. Those of an object share its state, and a
conversation has an object of its own. What a tool raises is told to the model, which may try again. An environment
without tools is a class of two methods, `reset` and `step`: docs/guides/environments.md.
"""

from burnish.environments.tools import ToolEnvironment, public_methods
from burnish.rewards.answers import last_number

PRICES = {"lamp": 9, "bell": 4, "lock": 15, "pump": 12}


class Till:
    """The till of one customer; its public methods are the tools."""

    def __init__(self) -> None:
        self._total = 0

    def price(self, item: str) -> int:
        """Look up what an item costs, in coins.

        Args:
            item: lamp, bell, lock or pump.
        """
        return PRICES[item]

    def put(self, item: str, count: int) -> int:
        """Put items into the till and learn what is to be paid so far, in coins.

        Args:
            item: lamp, bell, lock or pump.
            count: How many of it.
        """
        self._total += count * self.price(item)
        return self._total


def till() -> ToolEnvironment:
    """A conversation: it ends with the first answer that calls no tool, and that answer is scored."""
    return ToolEnvironment(public_methods(Till()), last_number)
