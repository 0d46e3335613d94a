import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.rewards.code_exchange import decode, encode, names_from_solution

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
)
HASHABLE = st.recursive(SCALARS, lambda inner: st.tuples(inner, inner) | st.frozensets(inner), max_leaves=5)
PLAIN = st.recursive(
    SCALARS | st.binary().map(bytearray),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.sets(HASHABLE) | st.dictionaries(HASHABLE, inner),
    max_leaves=10,
)


def types_of(value: object) -> object:
    """The value with the type of everything in it, so that 1, 1.0 and True differ."""
    if isinstance(value, dict):
        return "dict", [(types_of(key), types_of(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return type(value).__name__, [types_of(item) for item in value]
    return type(value).__name__, value


@settings(max_examples=50, deadline=None)
@given(PLAIN)
def test_plain_data_arrives_as_it_was(value: object) -> None:
    arrived = decode(json.loads(json.dumps(encode(value, pytest.fail))), pytest.fail)
    assert types_of(arrived) == types_of(value)


def test_other_data_travels_by_reference() -> None:
    objects: list[object] = []

    def reference(value: object) -> dict[str, int]:
        objects.append(value)
        return {"object": len(objects) - 1}

    message = encode([1, {"k": open}], reference)
    assert objects == [open]
    assert decode(message, lambda number: f"object {number}") == [1, {"k": "object 0"}]


@pytest.mark.parametrize(
    ("test", "from_solution", "modules"),
    [
        ("assert f(x) == 1", ["f", "x"], []),
        ("assert abs(f(1)) == 1", ["f"], []),
        ("assert abs(1) == 1", ["abs"], []),
        ("assert unknown(f(1)) == math.pi", ["f"], ["math"]),
        ("import math\nassert f(1) == math.pi", ["f"], []),
        ("from math import pi as f\nassert f", [], []),
        ("x = [f(i) for i in range(3)]\nassert x", ["f"], []),
        ("def check(f):\n  assert f(1)\ncheck(g)", ["g"], []),
        ("class f: pass\nassert f()", [], []),
        ("assert math(1) == 1", ["math"], []),
    ],
)
def test_names_from_solution(test: str, from_solution: list[str], modules: list[str]) -> None:
    assert names_from_solution(test, ["f", "g", "x", "abs", "math"]) == (from_solution, modules)
