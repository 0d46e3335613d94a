"""The two programs that check a solution by assertions, each in a sandbox of its own, and what they say to each other.

The *solution's side* runs the model's code. The *tests' side* runs the tests and gives the verdicts; where a test calls
a function of the solution, the arguments travel to the other side as plain data, and its result comes back as plain
data. So no code of a model runs where it is judged: it can claim a value, and a value equals the expected one or not.

A message is one line of JSON. `None`, truth values, numbers and text stand for themselves, other plain data as
`{"list": [...]}` and the like, anything else as `{"object": number}`, which the tests' side sees as a `Remote`.

`code.py` copies this file into both sandboxes: it imports only the standard library.
"""

import ast
import builtins
import contextlib
import importlib
import json
import operator
import os
import runpy
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

PASSED, FAILED, UNUSABLE = "1", "0", "?"

_MESSAGE_BYTES = 16 << 20  # a longer one, or an endless one, counts as lost

_CONTAINERS: dict[str, type[list[Any] | tuple[Any, ...] | set[Any] | frozenset[Any]]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
}
_OPERATIONS: dict[str, Callable[..., Any]] = {
    "bool": bool,
    "eq": operator.eq,
    "getitem": operator.getitem,
    "iter": iter,
    "len": len,
    "next": next,
    "str": str,
}


class UnusableTestError(Exception):
    """A test is not valid Python, or hands over something that is not plain data."""


class SolutionLostError(BaseException):
    """The solution's side ended or did not answer in time. No Exception, so that no test swallows it."""


def encode(value: Any, reference: Callable[[Any], Any]) -> Any:
    """Plain data as JSON; of anything else, what `reference` makes of it. Subclasses count as the plain type."""
    if value is None or isinstance(value, bool):
        return value
    for plain in (int, float, str):
        if isinstance(value, plain):
            return plain(value)
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, bytearray):
        return {"bytearray": value.hex()}
    for name, container in _CONTAINERS.items():
        if isinstance(value, container):
            return {name: [encode(item, reference) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key, reference), encode(item, reference)] for key, item in value.items()]}
    return reference(value)


def decode(message: Any, dereference: Callable[[int], Any]) -> Any:
    """The value of a message."""
    if not isinstance(message, dict):
        return message
    ((kind, content),) = message.items()
    if kind == "object":
        return dereference(content)
    if kind == "complex":
        return complex(*content)
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "bytearray":
        return bytearray.fromhex(content)
    if kind == "dict":
        return {decode(key, dereference): decode(item, dereference) for key, item in content}
    return _CONTAINERS[kind](decode(item, dereference) for item in content)


# The solution's side


def serve_solution(requests_fd: int, replies_fd: int) -> None:
    """Run `solution.py`, say which names it defines, then do what the requests ask until they end."""
    sys.set_int_max_str_digits(0)
    with open(requests_fd, "rb") as requests, open(replies_fd, "wb") as replies:
        objects: list[Any] = []
        try:
            names = runpy.run_path("solution.py", run_name="solution")
            _send(replies, {"names": sorted(name for name in names if not name.startswith("__"))})
        except BaseException as error:
            _send(replies, {"error": [type(error).__name__, str(error)]})
            return
        for line in requests:
            try:
                reply = _answer(json.loads(line), names, objects)
            except BaseException as error:  # SystemExit too: it ends a call, not the solution
                reply = {"error": [type(error).__name__, str(error)]}
            _send(replies, reply)


def _answer(request: Mapping[str, Any], names: Mapping[str, Any], objects: list[Any]) -> dict[str, Any]:
    def reference(value: Any) -> Any:
        if hasattr(value, "dtype") and getattr(value, "shape", None) == ():
            return encode(value.item(), reference)  # a number of numpy
        objects.append(value)
        return {"object": len(objects) - 1}

    def value_of(message: Any) -> Any:
        return decode(message, objects.__getitem__)

    if "name" in request:
        return {"value": encode(names[request["name"]], reference)}
    if "attribute" in request:
        return {"value": encode(getattr(value_of(request["target"]), request["attribute"]), reference)}
    arguments = value_of(request["arguments"])
    if "operation" in request:
        return {"value": encode(_OPERATIONS[request["operation"]](*arguments), reference)}
    target, keywords = value_of(request["target"]), value_of(request["keywords"])
    value = encode(target(*arguments, **keywords), reference)
    return {"value": value, "arguments": encode(arguments, reference)}  # which the call may have changed


# The tests' side


def run_tests(replies_fd: int, requests_fd: int, seconds_per_test: float) -> None:
    """Run the tests of `tests.json`, and write for each, as soon as it is known, one of the letters of a verdict.

    Ends early when the solution is lost: whoever started both starts them again for the tests that remain.
    """
    sys.set_int_max_str_digits(0)
    tests: list[str] = json.loads(Path("tests.json").read_text())
    with open(os.dup(1), "w") as verdicts, open(replies_fd, "rb") as replies, open(requests_fd, "wb") as requests:
        sys.stdout = sys.stderr  # a test may print
        signal.signal(signal.SIGALRM, _give_up)
        with _time_limit(seconds_per_test):
            names = _names(replies)
        if names is None:
            verdicts.write(FAILED * len(tests))
            return
        solution = Solution(replies, requests)
        for test in tests:
            verdicts.write(_verdict(test, frozenset(names), solution, seconds_per_test))
            verdicts.flush()
            if solution.lost:
                return


def _names(replies: BinaryIO) -> list[str] | None:
    try:
        return [str(name) for name in _receive(replies)["names"]]
    except (SolutionLostError, Exception):
        return None


def _verdict(test: str, names: frozenset[str], solution: "Solution", seconds: float) -> str:
    path = Path("test.py")
    path.write_text(test)
    try:
        compile(test, path, "exec")
    except (SyntaxError, ValueError):
        return UNUSABLE
    given, own = names_from_solution(test, names)
    try:
        with _time_limit(seconds):
            modules = {name: importlib.import_module(name) for name in own}
            runpy.run_path(str(path), {**modules, **{name: solution.get(name) for name in given}}, "test")
    except UnusableTestError:
        return UNUSABLE
    except SolutionLostError:
        solution.lost = True
        return FAILED
    except BaseException:
        return FAILED
    return PASSED


def names_from_solution(test: str, defined: Iterable[str]) -> tuple[list[str], list[str]]:
    """The names a test takes from the solution, and the modules of the standard library it uses without importing them.

    A name of Python's own (`abs`, `set`, `math`) is Python's even if the solution defines it too: it would otherwise
    replace what the test compares with. Only where the test uses no other name of the solution, as in
    `assert sum(10, 15) == 6`, is the one of that name what is tested.
    """
    nodes = list(ast.walk(ast.parse(test)))
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    bound |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    bound |= {(node.asname or node.name).partition(".")[0] for node in nodes if isinstance(node, ast.alias)}
    free = {node.id for node in nodes if isinstance(node, ast.Name)} - bound
    own = free & (set(dir(builtins)) | sys.stdlib_module_names)
    used = free & set(defined)
    given = used - own or used
    return sorted(given), sorted((own - given) & sys.stdlib_module_names)


class Solution:
    """The solution, as the tests' side sees it."""

    def __init__(self, replies: BinaryIO, requests: BinaryIO) -> None:
        self.lost = False
        self._replies = replies
        self._requests = requests

    def get(self, name: str) -> Any:
        """What the solution has by this name."""
        return self._ask({"name": name})

    def attribute(self, target: "Remote", name: str) -> Any:
        """An attribute of one of its objects."""
        return self._ask({"target": encode(target, _reference), "attribute": name})

    def do(self, target: "Remote", operation: str, arguments: tuple[Any, ...]) -> Any:
        """One of `_OPERATIONS` on one of its objects."""
        items = encode([target, *arguments], _reference)
        return self._ask({"operation": operation, "arguments": items})

    def call(self, target: "Remote", arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Call one of its objects. What the call changes in a list, dict or set is changed here too."""
        return self._ask(
            {
                "target": encode(target, _reference),
                "arguments": encode(list(arguments), _reference),
                "keywords": encode(keywords, _reference),
            },
            arguments,
        )

    def _ask(self, request: dict[str, Any], arguments: tuple[Any, ...] = ()) -> Any:
        try:
            _send(self._requests, request)
        except BrokenPipeError as error:
            raise SolutionLostError from error
        reply = _receive(self._replies)
        if "error" in reply:
            raise _exception(*reply["error"])
        if arguments:
            for mine, changed in zip(arguments, self._decode(reply["arguments"]), strict=True):
                _update(mine, changed)
        return self._decode(reply["value"])

    def _decode(self, message: Any) -> Any:
        return decode(message, lambda number: Remote(self, number))


class Remote:
    """An object of the solution. It equals no plain data, whatever its own `__eq__` says."""

    def __init__(self, solution: Solution, number: int) -> None:
        self._solution = solution
        self._number = number

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call it, on the solution's side."""
        return self._solution.call(self, arguments, keywords)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # protocols of Python and numpy; those that make sense here follow
            raise AttributeError(name)
        return self._solution.attribute(self, name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and bool(self._do("eq", other))

    def __hash__(self) -> int:
        return hash(self._number)

    def __bool__(self) -> bool:
        return bool(self._do("bool"))

    def __len__(self) -> int:
        return int(self._do("len"))

    def __iter__(self) -> Iterator[Any]:
        iterator = self._do("iter")
        with contextlib.suppress(StopIteration):
            while True:
                yield iterator._do("next")

    def __next__(self) -> Any:
        return self._do("next")

    def __getitem__(self, key: Any) -> Any:
        return self._do("getitem", key)

    def __str__(self) -> str:
        return str(self._do("str"))

    def _do(self, operation: str, *arguments: Any) -> Any:
        return self._solution.do(self, operation, arguments)


def _reference(value: Any) -> Any:
    if isinstance(value, Remote):
        return {"object": value._number}
    raise UnusableTestError(f"a test hands over a {type(value).__name__}, which is not plain data")


def _update(mine: Any, changed: Any) -> None:
    if isinstance(mine, list | bytearray):
        mine[:] = changed
    elif isinstance(mine, dict | set):
        mine.clear()
        mine.update(changed)


def _exception(name: str, message: str) -> Exception:
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        with contextlib.suppress(TypeError):  # some need more than a message
            return kind(message)
    return RuntimeError(f"{name}: {message}")


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _give_up(signum: int, frame: FrameType | None) -> None:
    raise SolutionLostError


# Both sides


def _send(stream: BinaryIO, message: Mapping[str, Any]) -> None:
    stream.write(json.dumps(message).encode() + b"\n")
    stream.flush()


def _receive(stream: BinaryIO) -> dict[str, Any]:
    line = stream.readline(_MESSAGE_BYTES)
    if not line.endswith(b"\n"):
        raise SolutionLostError
    message = json.loads(line)
    if not isinstance(message, dict):
        raise SolutionLostError
    return message
