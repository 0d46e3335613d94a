import os
import re
import tempfile
import time
from pathlib import Path

import pytest

from burnish.errors import ConfigError, DataError
from burnish.records import Completion, Message, Task
from burnish.rewards.code import code_tests, code_tests_unconfined, extract_code, passed_tests
from burnish.rewards.sandbox import run_python
from burnish.rewards.scoring import Score, ScoreFailure, load_reward, score_all


@pytest.fixture(scope="module", autouse=True)
def _confinement() -> None:
    try:
        run_python("")
    except ConfigError as error:
        pytest.skip(str(error))


def completion(text: str) -> Completion:
    return Completion(token_ids=(1,), text=text, sampling_logprobs=(0.0,), model_logprobs=(0.0,), finish_reason="stop")


def task(tests: object, **fields: object) -> Task:
    return Task(id="t", messages=(Message(role="user", content="q"),), answer="", extra={"tests": tests} | dict(fields))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x = 1", "x = 1"),
        ("```python\nx = 1\n```", "x = 1\n"),
        ("First\n```py\nx = 1\n```\nthen\n```Python\nx = 2\n```\nEnd.", "x = 2\n"),
        ("```python\nx = 1\n```\nwhich prints\n```\n1\n```", "x = 1\n"),
        ("```\nx = 1\n```\n```text\nx = 2\n```", "x = 2\n"),
        ("```python\nx = 1\n  y", "x = 1\n  y\n"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''\n"),
        ("say ```x = 1``` inline", "say ```x = 1``` inline"),
        ("```python\n```", "\n"),
        ("", ""),
    ],
)
def test_extract_code(text: str, code: str) -> None:
    assert extract_code(text) == code


def test_share_of_statements() -> None:
    answer = completion("Here:\n```python\ndef add(a, b):\n    return a + b\n```\nDone.")
    tests = [
        "assert add(1, 2) == 3",
        "assert add(1, 2) == 4",
        "assert add('a', 'b') == 'ab'",
        "assert add([], [1]) == [1]",
    ]
    assert code_tests(answer, task(tests)) == 0.75
    assert code_tests_unconfined(answer, task(tests)) == 0.75


def test_share_of_inputs() -> None:
    answer = completion("```python\nfor _ in range(int(input())):\n    print(int(input()) * 2, ' ')\n```")
    tests = [
        {"input": "2\n1\n2\n", "output": "2\n4"},
        {"input": "1\n5", "output": "10  \n\n"},
        {"input": "1\n5", "output": " 10"},
        {"input": "1\n5", "output": "1 0"},
        {"input": "", "output": ""},  # ends with an error
    ]
    assert passed_tests(extract_code(answer.text), task(tests)) == [True, True, False, False, False]


def test_as_a_reward_of_a_recipe() -> None:
    reward = load_reward("burnish.rewards.code:code_tests")
    pairs = [(completion("def f(): return 1"), task(["assert f() == 1"])), (completion("x"), task([]))]
    right, failed = score_all(reward, pairs, timeout_seconds=10)
    assert right == Score(1.0)
    assert failed.reason == "DataError: task t: the row needs a field 'tests', a list with at least one test"


# What statements see of a solution that is no fake: (code, statements that hold).
HOLDS = {
    "plain data": (
        "def same(x): return x",
        [
            "for value in (None, True, 1, 1.5, 'a', b'a', (1, [2], {3: {4}}), frozenset({1}), 2j, '\\ud800'):\n"
            "    assert same(value) == value and type(same(value)) is type(value)",
            "assert same(10**5000) == 10**5000",
            "assert same(float('inf')) == float('inf') and same(float('nan')) != same(float('nan'))",
        ],
    ),
    "subclasses of plain data": (
        "import collections, enum\nclass E(enum.IntEnum):\n  A = 1\ndef f(): return collections.Counter('aab'), E.A",
        ["assert f() == ({'a': 2, 'b': 1}, 1)"],
    ),
    "numbers of numpy": ("import numpy as n\ndef f(): return n.int64(3), n.float32(0.5)", ["assert f() == (3, 0.5)"]),
    "a class": (
        "class Solution:\n  def two_sum(self, numbers, target, *, start=0): return [start, target]",
        ["assert Solution().two_sum([1], 2, start=1) == [1, 2]", "s = Solution()\nassert s.two_sum([], 0) == [0, 0]"],
    ),
    "objects of a class": (
        "class P:\n  def __init__(s, x): s.x = x\n  def __eq__(s, o): return s.x == o.x\n"
        "  def __str__(s): return f'P{s.x}'\ndef x_of(p): return p.x",
        ["assert P(1) == P(1) != P(2)", "assert P(3).x == 3", "assert str(P(1)) == 'P1'", "assert x_of(P(4)) == 4"],
    ),
    "generators and ranges": (
        "def upto(n):\n  for i in range(n): yield i\ndef r(n): return range(n)",
        ["assert list(upto(3)) == [0, 1, 2] and 2 in upto(5)",
 "assert next(upto(1)) == 0 and r(3)[1] == 1 and len(r(3)) == 3"],
    ),
    "changes in place": (
        "def sort(x): x.sort()\ndef put(d, s): d['a'] = 1; s.add(2)",
        ["x = [2, 1]\nsort(x)\nassert x == [1, 2]", "d, s = {}, set()\nput(d, s)\nassert d == {'a': 1} and s == {2}"],
    ),
    "exceptions": (
        "def f(x):\n  if x < 0: raise ValueError('negative')\n  return x",
        ["try:\n  f(-1)\nexcept ValueError as error:\n  assert str(error) == 'negative'\nelse:\n  assert False"],
    ),
    "a function of HumanEval": (
        "def g(x): return x + 1",
        ["def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(-1) == 0\n\ncheck(g)"],
    ),
    "a function with the name of a builtin": ("def sum(a, b): return 6", ["assert sum(10, 15) == 6"]),
    "modules the test does not import": ("import math\ndef f(x): return math.pi * x", ["assert f(2) == 2 * math.pi"]),
    "functions that print and read": (
        "def f():\n  print('1' * 9)\n  return open('solution.py').read(3)",
        ["assert f() == 'def'"],
    ),
    "a main block": ("def f(): return 1\nif __name__ == '__main__': f(input())", ["assert f() == 1"]),
    "functions that end the program": (
        "def f():\n  raise SystemExit",
        ["try: f()\nexcept Exception: pass", "assert f"],
    ),
    "constants": ("LIMIT = 5", ["assert LIMIT == 5"]),
}  # fmt: skip


@pytest.mark.parametrize("name", HOLDS)
def test_statements_that_hold(name: str) -> None:
    code, tests = HOLDS[name]
    assert passed_tests(code, task(tests)) == [True] * len(tests)


# Solutions that try to pass without the right value, and whatever the test, must not.
FAKES = dict(
    re.findall(
        r"^## (.*?)\n(.*?)(?=^## |\Z)",
        r"""
## equality
class A:
  def __eq__(s, o): return True
  __ne__ = lambda s, o: False
  __hash__ = lambda s: 3
def f(x): return A()
## a subclass of int
class A(int):
  def __eq__(s, o): return True
  __hash__ = int.__hash__
def f(x): return A(4)
## exit
import sys
sys.exit(0)
## hard exit
import os
os._exit(0)
## exit in the function
import sys
def f(x): sys.exit(0)
## hard exit in the function
import os
def f(x): os._exit(0)
## exit at the end
import atexit, os
atexit.register(os._exit, 0)
def f(x): return 4
## builtins
import builtins
builtins.abs = builtins.sorted = lambda *a: 3
abs = sorted = list = set = lambda *a: 3
def f(x): return 4
## a verdict on standard output
import os
os.write(1, b'1' * 50)
print('1' * 50)
def f(x): return 4
## a verdict on every descriptor
import os
for fd in range(64):
  try: os.write(fd, b'1' * 50 + b'\n')
  except OSError: pass
def f(x): return 4
## a forged reply
import os, json
def f(x):
  for fd in range(3, 64):
    try: os.write(fd, b'{"passed": true}\n' * 9)
    except OSError: pass
## an endless reply
import os
def f(x):
  for fd in range(3, 64):
    try:
      while True: os.write(fd, b' ' * 65536)
    except OSError: pass
## the other side's code
import sys
m = sys.modules['code_exchange']
m.PASSED = m.FAILED = '1'
m._verdict = lambda *a: '1'
m.encode = lambda *a: True
def f(x): return 4
## frames
import sys
def f(x):
  frame = sys._getframe()
  while frame:
    for value in list(frame.f_locals.values()):
      if isinstance(value, (int, str)) and value == 3: return value
    frame = frame.f_back
## a syntax error
def f(x) return 4
## a raised syntax error
def f(x): raise SyntaxError('no')
## an assertion
def f(x): raise AssertionError
## the end of an iteration
def f(x): raise StopIteration
## the interpreter's crash
import ctypes
def f(x): ctypes.string_at(0)
## memory
def f(x): return bytearray(10 << 30)
## a result that is too large
def f(x): return 'x' * (20 << 20)
## endless recursion
def f(x): return f(x)
## a cycle
def f(x):
  a = []
  a.append(a)
  return a
## nothing
""",
        flags=re.MULTILINE | re.DOTALL,
    )
)


@pytest.mark.parametrize("name", FAKES)
def test_no_fake_passes(name: str) -> None:
    tests = ["assert f(1) == 3", "assert 3 == f(1)", "assert abs(f(1) - 3) < 0.1", "assert sorted([f(1)]) == [3]"]
    assert passed_tests(FAKES[name], task(tests)) == [False] * len(tests)


@pytest.mark.parametrize(
    "code",
    [
        "import sys\nsys.exit(0)",
        "print(4)",
        "print(3)\nraise SystemExit(1)",
        "import os\nprint(3, flush=True)\nos.abort()",
        "print(3)\nprint(open('tests.json').read())",
        "print('3', end='\\x00')",
        "import builtins\nbuiltins.print = lambda *a: None\nprint(3)",
    ],
)
def test_no_fake_output_passes(code: str) -> None:
    assert passed_tests(code, task([{"input": "1", "output": "3"}])) == [False]


@pytest.mark.parametrize("end", ["import os; os._exit(0)", "import ctypes; ctypes.string_at(0)"])
def test_a_test_that_ends_the_program_fails_alone(end: str) -> None:
    code = f"def f(x):\n  if x == 1:\n    {end}\n  return x"
    tests = ["assert f(0) == 0", "assert f(1) == 1", "assert f(2) == 2", "assert f(1) == 1", "assert f(3) == 4"]
    began = time.monotonic()
    assert passed_tests(code, task(tests), seconds_per_test=30, total_seconds=60) == [True, False, True, False, False]
    assert time.monotonic() - began < 20  # the end is noticed, not waited for


def test_an_endless_test_fails_alone_and_in_time() -> None:
    code = "def f(x):\n  while x == 1: pass\n  return x"
    tests = ["assert f(0) == 0", "assert f(1) == 1", "assert f(2) == 2"]
    assert passed_tests(code, task(tests), seconds_per_test=0.5) == [True, False, True]


@pytest.mark.parametrize("code", ["while True: pass", "def f(x):\n  while True: pass", "import time\ntime.sleep(100)"])
@pytest.mark.parametrize("test", ["assert f(1) == 1", {"input": "", "output": "1"}])
def test_all_together_end_in_time(code: str, test: object) -> None:
    began = time.monotonic()
    assert passed_tests(code, task([test] * 50), seconds_per_test=0.3, total_seconds=0.8) == [False] * 50
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("test", ["assert f(1) == 1", {"input": "", "output": "1"}])
def test_the_time_limit_of_rewards_ends_the_program(test: object, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    pairs = [(completion("while True: pass"), task([test])), (completion("print(1)"), task(["assert True"]))]
    failed, scored = score_all(code_tests, pairs, timeout_seconds=1)
    assert failed == ScoreFailure("no result within 1 s")
    assert scored == Score(1.0)
    assert list(tmp_path.iterdir()) == []
    assert not [link for link in Path("/proc").glob("[0-9]*/cwd") if _leads_into(link, tmp_path)]


def _leads_into(link: Path, folder: Path) -> bool:
    try:
        return os.readlink(link).startswith(str(folder))
    except OSError:  # it ended meanwhile, or is another user's
        return False


def test_statements_after_setup_code() -> None:
    setup = "import math\ndef near(a, b): return math.isclose(a, b)"
    row = task(["assert near(f(), 1)"], test_setup_code=setup)
    assert passed_tests("def near(a, b): return True\ndef f(): return 2", row) == [False]
    assert passed_tests("def f(): return 1.0", row) == [True]


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        (None, "needs a field 'tests'"),
        ([], "needs a field 'tests'"),
        ("assert f() == 1", "needs a field 'tests'"),
        (["assert f() == 1", {"input": "", "output": ""}], "must be all statements"),
        ([{"input": ""}], "must be all statements"),
        ([1], "must be all statements"),
        (["assert ("], "not valid Python.*assert \\("),
        (["assert True", "assert f(lambda x: x)() == 1"], "more than plain data.*lambda"),
    ],
)
def test_rows_that_cannot_be_used(tests: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        passed_tests("def f(x): return x", task(tests))


@pytest.mark.parametrize(
    "code",
    [
        "for i in range(500):\n    open(f'f{i}', 'w').close()\nimport time\ntime.sleep(0.5)\n",
        "import threading, time\nfor _ in range(300):\n    threading.Thread(target=time.sleep, args=(1,)).start()\n",
    ],
    ids=["files", "threads"],
)
def test_the_limits_hold_for_the_solution_too(code: str) -> None:
    """A statement is run in another process than the solution; it is the solution's that breaks the limit."""
    answer = f"```python\n{code}\ndef f(x):\n    return x\n```"
    assert code_tests(completion(answer), task(["assert f(1) == 1"])) == 0.0
