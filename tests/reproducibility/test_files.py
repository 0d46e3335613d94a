import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from burnish.errors import MachineError
from burnish.reproducibility.files import json_tree, replace_folder, require_free_space, write_text


@pytest.fixture
def small_disk(tmp_path: Path):
    """A real file system of one megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, timeout=30
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system needs root on Linux")
    yield folder
    subprocess.run(["umount", folder], check=True, timeout=30)


def test_write_text_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_full_disk_keeps_the_old_file(small_disk: Path) -> None:
    path = small_disk / "a.json"
    write_text(path, "old")
    with pytest.raises(MachineError, match=r"cannot write .*a.json: No space left on device; free space"):
        write_text(path, "x" * 2_000_000)
    assert path.read_text() == "old"
    assert os.listdir(small_disk) == ["a.json"]


def test_a_full_disk_keeps_the_old_folder(small_disk: Path) -> None:
    def write(size: int):
        return lambda aside: (aside / "big").write_bytes(b"x" * size)

    replace_folder(small_disk / "one", write(1000))
    with pytest.raises(MachineError, match="No space left"):
        replace_folder(small_disk / "two", write(2_000_000))
    assert os.listdir(small_disk) == ["one"]


def test_too_little_space_is_seen_before_writing(tmp_path: Path) -> None:
    require_free_space(tmp_path, 1, "a note")
    with pytest.raises(MachineError, match=r"a note needs 1,000,000,000,000,000 MB in .* free"):
        require_free_space(tmp_path, 10**21, "a note")


def test_a_process_killed_while_writing_leaves_no_folder(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from burnish.reproducibility.files import replace_folder\n"
        "def write(aside):\n    (aside / 'half').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "replace_folder(Path(sys.argv[1]) / 'final', write)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], timeout=60)
    assert done.returncode == -9
    assert not (tmp_path / "final").exists()
    assert [name[0] for name in os.listdir(tmp_path)] == ["."]


@dataclass(frozen=True)
class Found:
    name: str
    values: tuple[float, ...]


def test_what_json_has_not_is_null() -> None:
    content = {1: Found("a", (0.5, math.nan)), "b": np.array([[1.0, math.inf], [2.0, -math.inf]]), "c": np.int64(3)}
    tree = {"1": {"name": "a", "values": [0.5, None]}, "b": [[1.0, None], [2.0, None]], "c": 3}
    assert json_tree(content) == tree
    assert json.loads(json.dumps(json_tree(content), allow_nan=False)) == tree
