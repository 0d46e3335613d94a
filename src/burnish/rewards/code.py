r"""A reward for code: the share of a row's tests that the completion's program passes, run in `sandbox.py`.

The row's field `tests` is a list, either of Python statements about what the program defines (MBPP, HumanEval)

    {"prompt": ..., "answer": "", "tests": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"]}

or of inputs with the output the program must print for them (competitions), compared without white space at line ends

    {"prompt": ..., "answer": "", "tests": [{"input": "1 2\n", "output": "3\n"}]}

MBPP's field `test_setup_code` is run before each statement.

Why a pass cannot be faked: expected outputs stay in this process, and statements run in another sandbox than the
program (`code_exchange.py`), which sends back plain data. The program can exit, patch Python, print or overload what it
likes: it changes nothing where the comparison is made, and does not see it. What remains possible:

- to return the right values without solving the task, when the tests are few and known: keep some for evaluation;
- where a statement uses a helper that it neither imports nor defines and that is not Python's, to bring a false one.

What statements cannot check: arguments that are functions or objects of the test, and equality of results that are not
plain data (arrays, decimals, instances): a right program fails there, or the row is refused when the test is at fault.
"""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from burnish.errors import DataError
from burnish.records import Completion, Task
from burnish.rewards import code_exchange
from burnish.rewards.sandbox import Limits, run_python, start_python

_PYTHON_FENCES = ("python", "python3", "py")
_START_SECONDS = 2.0  # for two interpreters to start on a busy machine

# Together below the 10 seconds of `task.reward_timeout_seconds`, so that an endless program is scored, as wrong.
SECONDS_PER_TEST = 3.0
TOTAL_SECONDS = 8.0


def code_tests(completion: Completion, task: Task) -> float:
    """The share of the row's tests that the completion's code passes; each test counts for itself.

    A test has 3 seconds, all together 8; those that there was no time for have failed.

    Raises:
        DataError: the row has no tests of the form above.
        ConfigError: this machine cannot confine the code.
    """
    passed = passed_tests(extract_code(completion.text), task)
    return sum(passed) / len(passed)


def code_tests_unconfined(completion: Completion, task: Task) -> float:
    """As `code_tests`, where the machine cannot confine code: what it lacks is not guaranteed (see `sandbox.py`)."""
    passed = passed_tests(extract_code(completion.text), task, require_confinement=False)
    return sum(passed) / len(passed)


def extract_code(text: str) -> str:
    """The last fenced block marked as Python, else the last fenced block, else the whole text.

    A block that the text ends before closing counts.
    """
    blocks: list[tuple[str, list[str]]] = []
    fence = ""
    for line in text.splitlines():
        stripped = line.strip()
        ticks = stripped[: len(stripped) - len(stripped.lstrip("`"))]
        if not fence and len(ticks) >= 3 and "`" not in stripped[len(ticks) :]:
            fence = ticks
            blocks.append((stripped[len(ticks) :].strip().lower(), []))
        elif fence and len(ticks) >= len(fence) and ticks == stripped:
            fence = ""
        elif fence:
            blocks[-1][1].append(line)
    if not blocks:
        return text
    marked = [lines for language, lines in blocks if language in _PYTHON_FENCES]
    return "\n".join(marked[-1] if marked else blocks[-1][1]) + "\n"


def passed_tests(
    code: str,
    task: Task,
    *,
    seconds_per_test: float = SECONDS_PER_TEST,
    total_seconds: float = TOTAL_SECONDS,
    require_confinement: bool = True,
) -> list[bool]:
    """Which of the row's tests the program passes.

    Raises:
        DataError, ConfigError: as `code_tests`.
    """
    tests = task.extra.get("tests")
    if not isinstance(tests, list) or not tests:
        raise DataError(f"task {task.id}: the row needs a field 'tests', a list with at least one test")
    runs = _Runs(seconds_per_test, time.monotonic() + total_seconds, require_confinement)
    if all(isinstance(test, str) for test in tests):
        setup = task.extra.get("test_setup_code", "")
        verdicts = _statement_verdicts(code, [f"{setup}\n{test}" for test in tests], runs)
        if code_exchange.UNUSABLE in verdicts:
            test = tests[verdicts.index(code_exchange.UNUSABLE)]
            raise DataError(f"task {task.id}: not valid Python, or hands over more than plain data: {test!r}")
        return [verdict == code_exchange.PASSED for verdict in verdicts]
    if all(isinstance(test, Mapping) and {"input", "output"} <= test.keys() for test in tests):
        return [_prints(code, str(test["input"]), str(test["output"]), runs) for test in tests]
    raise DataError(f"task {task.id}: 'tests' must be all statements, or all {{'input': text, 'output': text}}")


@dataclass(frozen=True, slots=True)
class _Runs:
    """The time there is for runs of one program."""

    seconds_per_test: float
    deadline: float
    require_confinement: bool

    def limits(self, num_tests: int, start_seconds: float = 0.0) -> Limits | None:
        """For a run of so many tests; None when the time is over."""
        left = self.deadline - time.monotonic()
        seconds = min(left, num_tests * self.seconds_per_test + start_seconds)
        return Limits(wall_seconds=seconds, cpu_seconds=math.ceil(seconds)) if seconds > 0 else None


def _prints(code: str, given: str, wanted: str, runs: _Runs) -> bool:
    limits = runs.limits(1)
    if limits is None:
        return False
    result = run_python(code, stdin=given, limits=limits, require_confinement=runs.require_confinement)
    return result.ok and _lines(result.stdout) == _lines(wanted)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _statement_verdicts(code: str, tests: Sequence[str], runs: _Runs) -> str:
    """One letter of `code_exchange` for each test. Where a test ends the program, those after it get a new one."""
    verdicts = ""
    while len(verdicts) < len(tests) and (limits := runs.limits(len(tests) - len(verdicts), _START_SECONDS)):
        verdicts += _run_pair(code, tests[len(verdicts) :], limits, runs) or code_exchange.FAILED
    return verdicts.ljust(len(tests), code_exchange.FAILED)


def _run_pair(code: str, tests: Sequence[str], limits: Limits, runs: _Runs) -> str:
    """The verdicts of one run of the solution's and the tests' side: fewer than tests if one of them ended early."""
    exchange = Path(code_exchange.__file__).read_text(encoding="utf-8")
    with ExitStack() as stack:
        requests, replies = os.pipe(), os.pipe()
        ends = [*requests, *replies]
        try:
            solution = f"import code_exchange\ncode_exchange.serve_solution({requests[0]}, {replies[1]})\n"
            solved = stack.enter_context(
                start_python(
                    {"main.py": solution, "code_exchange.py": exchange, "solution.py": code},
                    limits=limits,
                    pass_fds=(requests[0], replies[1]),
                    require_confinement=runs.require_confinement,
                )
            )
            arguments = f"{replies[0]}, {requests[1]}, {runs.seconds_per_test}"
            checks = stack.enter_context(
                start_python(
                    {
                        "main.py": f"import code_exchange\ncode_exchange.run_tests({arguments})\n",
                        "code_exchange.py": exchange,
                        "tests.json": json.dumps(tests),
                    },
                    limits=limits,
                    pass_fds=(replies[0], requests[1]),
                    require_confinement=runs.require_confinement,
                )
            )
        finally:
            for end in ends:  # so that each side notices when the other ends
                os.close(end)
        return checks.wait(beside=solved).stdout
