"""Files and folders that are either whole or not there: written aside, flushed to disk, renamed."""

import errno
import fcntl
import hashlib
import json
import math
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from burnish.errors import MachineError, UserError

_APPENDING = threading.Lock()  # what another thread is writing is no half line


def write_text(path: Path, text: str) -> None:
    """Replace a file's text atomically."""
    write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file aside, flush it to disk, then rename it to `path`."""
    # machines that share a disk may give the same number to two processes
    aside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(3)}.tmp")
    with full_disk_is_a_machine_error(path):
        try:
            write(aside)
            sync_path(aside)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        sync_path(path.parent)


def append_lines(path: Path, *lines: Mapping[str, Any]) -> None:
    """Add lines of JSON to a file, and flush it to disk. A line that an earlier process wrote by half is dropped."""
    with full_disk_is_a_machine_error(path), _APPENDING, path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())


def json_tree(content: Any) -> Any:
    """Content in what JSON has: NaN and infinity, which it has not, are null; dataclasses are objects, arrays lists."""
    if is_dataclass(content) and not isinstance(content, type):
        return {each.name: json_tree(getattr(content, each.name)) for each in fields(content)}
    if isinstance(content, Mapping):
        return {str(key): json_tree(value) for key, value in content.items()}
    if hasattr(content, "tolist"):  # numpy's arrays and numbers
        return json_tree(content.tolist())
    if isinstance(content, Sequence) and not isinstance(content, str):
        return [json_tree(each) for each in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


@contextmanager
def locked(folder: Path, otherwise: str) -> Iterator[None]:
    """Hold a folder for this process.

    Raises:
        UserError: another process holds it; `otherwise` is the message.
    """
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(otherwise) from error
        yield


def sync_path(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def full_disk_is_a_machine_error(path: Path) -> Iterator[None]:
    """Turn "no space left" and its relatives into one line with exit status 3."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS):
            raise
        raise MachineError(f"cannot write {path}: {error.strerror}; free space and resume") from error


def require_free_space(folder: Path, needed_bytes: int, purpose: str) -> None:
    """Raise a MachineError before anything is written if `folder`'s disk has no room for it."""
    status = os.statvfs(folder)
    free_bytes = status.f_bavail * status.f_frsize
    if free_bytes < needed_bytes:
        raise MachineError(
            f"{purpose} needs {needed_bytes / 1e6:,.0f} MB in {folder}, and {free_bytes / 1e6:,.0f} MB are free; "
            "free space or choose another folder"
        )


def replace_folder(final: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder aside, flush every file in it, then rename it to `final`, which must not exist."""
    aside = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    with full_disk_is_a_machine_error(final):
        remove_folder(aside)
        aside.mkdir(parents=True)
        try:
            write(aside)
            for file in aside.rglob("*"):
                sync_path(file)
            sync_path(aside)
            aside.rename(final)
        except BaseException:
            remove_folder(aside)
            raise
        sync_path(final.parent)


def remove_oldest(files: Sequence[Path], max_bytes: float) -> None:
    """Remove the first of some files, which stand in the order of their age, until the rest fit; the last stays."""
    sizes = [path.stat().st_size for path in files]
    total = sum(sizes)
    for path, size in zip(files[:-1], sizes, strict=False):
        if total <= max_bytes:
            break
        total -= size
        path.unlink()


def remove_folder(folder: Path) -> None:
    """Remove a folder and everything in it, if it is there; a kill leaves it whole or under a temporary name."""
    if folder.exists():
        doomed = folder if folder.name.endswith(".tmp") else folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        folder.rename(doomed)
        shutil.rmtree(doomed)
