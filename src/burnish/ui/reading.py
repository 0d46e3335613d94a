"""Reading files that others wrote: a fault is one line, and what was computed is kept until a file changes."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import ValidationError

from burnish.errors import BurnishError, DataError, UserError

T = TypeVar("T")

FAULTS = (BurnishError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, OSError)
"""What reading a damaged file may raise."""


class NotFoundError(UserError):
    """There is nothing of that name."""


def reason_of(error: BaseException) -> str:
    """A fault on one line."""
    match error:
        case ValidationError():
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            text = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        case KeyError():
            text = f"{error.args[0]!r} is missing"
        case OSError() if error.strerror is not None:
            text = f"{error.filename}: {error.strerror}"
        case RecursionError():
            text = "nested too deeply"
        case _:
            text = str(error)
    return " ".join(text.split())


@contextmanager
def reading(what: object) -> Iterator[None]:
    """Whatever is wrong with a file is a DataError that names it."""
    try:
        yield
    except BurnishError:
        raise
    except OSError as error:  # names the file itself
        raise DataError(reason_of(error)) from error
    except FAULTS as error:
        raise DataError(f"{what}: {reason_of(error)}") from error


def entry(folder: Path, name: str, kind: str) -> Path:
    """The folder of that name among those that stand in `folder`: no name leads elsewhere.

    Raises:
        NotFoundError: there is none.
    """
    if name not in names_in(folder):
        raise NotFoundError(f"there is no {kind} {name!r} in {folder}")
    return folder / name


def names_in(folder: Path) -> list[str]:
    """The folders in a folder, but for hidden ones; none where it does not exist."""
    try:
        with os.scandir(folder) as entries:
            return [each.name for each in entries if not each.name.startswith(".") and each.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


class Kept(Generic[T]):
    """Computes something from a file or folder, and again only once that, or what stands in the folder, has changed."""

    def __init__(self, compute: Callable[[Path], T], *, limit: int = 10_000) -> None:
        """The results of the last `limit` paths are kept."""
        self._compute, self._limit = compute, limit
        self._kept: dict[Path, tuple[object, T]] = {}

    def __call__(self, path: Path) -> T:
        """The result for a path; a fault is raised anew each time."""
        state = _state(path)
        kept = self._kept.pop(path, None)
        if kept is None or kept[0] != state:
            kept = state, self._compute(path)
        self._kept[path] = kept  # the last one asked for
        while len(self._kept) > self._limit:
            self._kept.pop(next(iter(self._kept)), None)
        return kept[1]


def _state(path: Path) -> object:
    """Changes when a file does."""
    try:
        with os.scandir(path) as entries:
            found = [(each.name, each.stat()) for each in entries]
    except NotADirectoryError:
        found = [("", path.stat())]
    except FileNotFoundError:
        return None
    return sorted((name, status.st_mtime_ns, status.st_size) for name, status in found)
