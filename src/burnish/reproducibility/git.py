"""Questions to git, each with a deadline."""

import os
import subprocess
from pathlib import Path

from burnish.errors import MachineError

_ASK_SECONDS = 10
_CHANGE_SECONDS = 120


def ask_git(folder: Path, *arguments: str) -> bytes | None:
    """What git says of a folder; None where there is no git, no repository, or no answer in time."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            timeout=_ASK_SECONDS,
            check=False,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},  # to look is not to write
        )
    except (FileNotFoundError, NotADirectoryError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def ask_git_line(folder: Path, *arguments: str) -> str | None:
    """The same, one line as text."""
    answer = ask_git(folder, *arguments)
    return None if answer is None else answer.decode(errors="replace").strip()


def tell_git(folder: Path, *arguments: str) -> None:
    """Let git change something.

    Raises:
        MachineError: it would not.
    """
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=_CHANGE_SECONDS, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise MachineError(f"git {arguments[0]} in {folder}: {error}") from error
    if done.returncode != 0:
        raise MachineError(f"git {arguments[0]} in {folder}: {' '.join(done.stderr.split())}")
