"""Rewards that compare a completion's answer with the reference. A reward is `(completion, task) -> float`."""

import functools
import logging
import re
from decimal import Decimal
from typing import Any

from burnish.config.extras import requires_extra
from burnish.errors import DataError
from burnish.records import Completion, Task

# A minus sign belongs to the number unless something stands before it to be subtracted from: "7-3" ends in 3.
_NUMBER = re.compile(r"(?:(?<![0-9)])-)?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?")

_AMOUNT = r"-?[0-9][0-9,]*(?:\.[0-9]+)?"
# A number or a fraction, after a name that it is given (x = 3); math-verify has taken off signs of money and units.
_ONE_NUMBER = re.compile(
    rf"(?:[A-Za-z]\w*\s*=\s*)?(?:-?\\[dt]?frac\{{{_AMOUNT}\}}\{{{_AMOUNT}\}}|{_AMOUNT}(?:/{_AMOUNT})?)\s*(?:\\?%)?"
)

_LETTER = r"[\s*_$({\[]*(?:\\text\{)?\(?(?P<letter>[A-Z])(?![\w'])"
_STATED_LETTER = re.compile(rf"(?:(?i:\b(?:answer|option|choice)(?:\s+is|\s*:)):?|\\boxed\{{){_LETTER}")
_LETTER_AT_THE_BEGINNING = re.compile(rf"{_LETTER}[*_$)\]}}]*(?:[.:)]?\s*|[.:)].*)", re.DOTALL)
_MATHS_IS_MARKED = re.compile(r"\$|\\boxed|\\\(|\\\[")


def last_number(completion: Completion, task: Task) -> float:
    """1.0 if the last number in the completion equals the last number in the reference answer, else 0.0.

    So `42`, `$1,042.00` and GSM8K's `... #### 42` are references that work as they are.
    """
    given, wanted = _last_number_in(completion.text), _last_number_in(task.answer)
    return float(given is not None and given == wanted)


def exact_match(completion: Completion, task: Task) -> float:
    """1.0 if the completion is the reference answer, white space at the ends aside, else 0.0."""
    return float(completion.text.strip() == task.answer.strip())


def math_answer(completion: Completion, task: Task) -> float:
    r"""1.0 if the completion's answer equals the reference as mathematics, else 0.0, by the package math-verify.

    The reference is LaTeX (`\frac{1}{2}`, with or without `$` or `\boxed`) or a number, and may stand behind `####`.
    The answer is what the completion boxes, else its last formula or number. One that takes too long (`10^{10^{10}}`)
    is ended by the time limit of rewards: it has no score. Where the reference is a number the answer must be one too:
    it is no answer to 17 x 23 to say 17 x 23.

    Raises:
        ConfigError: math-verify is not installed.
        DataError: the reference is not mathematics.
    """
    wanted = task.answer.rpartition("####")[2].strip()
    parse, verify = _math_verify()
    reference = parse(wanted if _MATHS_IS_MARKED.search(wanted) else f"${wanted}$")
    if not reference:
        raise DataError(f"task {task.id}: answer {task.answer!r} is not mathematics: write LaTeX or a number")
    given = parse(completion.text)
    is_one_number = [_ONE_NUMBER.fullmatch(text.strip()) for text in given if isinstance(text, str)]
    if _ONE_NUMBER.fullmatch(wanted) and not any(is_one_number):
        return 0.0
    return float(verify(reference, given))


def multiple_choice(completion: Completion, task: Task) -> float:
    """1.0 if the completion chooses the letter of the reference answer, else 0.0.

    The choice is the last capital letter that is boxed or stated (`The answer is (B)`, `Option: B`); where there is
    none, the letter that the completion begins with (`B`, `(B)`, `B. Because ...`).

    Raises:
        DataError: the reference is not one letter from A to Z, with or without brackets.
    """
    wanted = task.answer.strip().strip("()[].")
    if not re.fullmatch(r"[A-Z]", wanted):
        raise DataError(f"task {task.id}: answer {task.answer!r} is not one capital letter")
    stated = list(_STATED_LETTER.finditer(completion.text))
    choice = stated[-1] if stated else _LETTER_AT_THE_BEGINNING.fullmatch(completion.text)
    return float(choice is not None and choice["letter"] == wanted)


def _math_verify() -> tuple[Any, Any]:
    """Its `parse` and `verify` without its time limits: they use SIGALRM, and would switch off the one of rewards.

    LaTeX goes through a grammar; what its parser gives to Python's `eval`, by way of sympy, is digits and operators.
    """
    with requires_extra("math", "math_answer needs math-verify"):
        import math_verify
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its limits are off
    parse = functools.partial(math_verify.parse, parsing_timeout=None)
    return parse, functools.partial(math_verify.verify, timeout_seconds=None)


def _last_number_in(text: str) -> Decimal | None:
    numbers = _NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))
    return Decimal(numbers[-1].replace(",", "")) if numbers else None
