from pathlib import Path

import pytest

from burnish.errors import ConfigError
from burnish.serving.keys import owner_of, read_keys

GOOD = "user ann 0123456789abcdef"


def test_whose_key_it_is(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"# both\n\n{GOOD}\nadmin root fedcba9876543210\n")
    keys = read_keys(tmp_path / "keys")
    found = [
        owner_of(f"{scheme} {secret}", keys)
        for scheme, secret in (("Bearer", "0123456789abcdef"), ("bearer", "fedcba9876543210"))
    ]
    assert [(key.role, key.name) for key in found if key is not None] == [("user", "ann"), ("admin", "root")]
    for text in ("", "Bearer", "Bearer ", "Basic 0123456789abcdef", "0123456789abcdef", "Bearer 0123456789abcdeg"):
        assert owner_of(text, keys) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no key"),
        ("boss ann 0123456789abcdef", "line 1: needs `ROLE NAME KEY`, and the role is user, admin, monitor"),
        ("user ann", "line 1: needs"),
        ("user ann short", "line 1: a key has 16 ASCII characters or more"),
        (f"user ann {'é' * 20}", "line 1: a key has 16 ASCII"),
        (f"{GOOD}\nuser ann 0123456789abcdeg", "line 2: this name or key is there already"),
        (f"{GOOD}\nuser bo 0123456789abcdef", "line 2: this name or key is there already"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "keys").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_keys(tmp_path / "keys")
