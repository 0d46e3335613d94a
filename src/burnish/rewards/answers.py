"""Rewards that compare a completion's answer with the reference. A reward is `(completion, task) -> float`."""

import re
from decimal import Decimal

from burnish.records import Completion, Task

# A minus sign belongs to the number unless something stands before it to be subtracted from: "7-3" ends in 3.
_NUMBER = re.compile(r"(?:(?<![0-9)])-)?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?")


def last_number(completion: Completion, task: Task) -> float:
    """1.0 if the last number in the completion equals the last number in the reference answer, else 0.0.

    So `42`, `$1,042.00` and GSM8K's `... #### 42` are references that work as they are.
    """
    given, wanted = _last_number_in(completion.text), _last_number_in(task.answer)
    return float(given is not None and given == wanted)


def exact_match(completion: Completion, task: Task) -> float:
    """1.0 if the completion is the reference answer, white space at the ends aside, else 0.0."""
    return float(completion.text.strip() == task.answer.strip())


def _last_number_in(text: str) -> Decimal | None:
    numbers = _NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))
    return Decimal(numbers[-1].replace(",", "")) if numbers else None
