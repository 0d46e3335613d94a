"""The code that a run began with: commit, what differed from it, and the installed package.

What differs is kept beside run.json, so that the code can be brought back: `code.diff` for tracked files, `code/` for
small untracked ones. The repository is that of the working directory; where the installed package is a checkout of
another one, that one stands in `package.diff` and `package/`.
"""

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import burnish
from burnish.reproducibility.files import sha256_of_file, write_aside
from burnish.reproducibility.git import ask_git, ask_git_line
from burnish.reproducibility.redaction import holds_secret, redacted_arguments

MAX_DIFF_BYTES = 5_000_000
MAX_KEPT_BYTES = 1_000_000
"""Of an untracked file, and of all of them together."""
MAX_HASHED_BYTES = 20_000_000
MAX_UNTRACKED = 1_000
KEPT_SUFFIXES = (".py", ".yaml", ".yml")


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeState:
    """What run.json says of the code, and the files that belong beside it."""

    record: dict[str, Any]
    files: Mapping[str, bytes]

    def write(self, folder: Path) -> None:
        """Write the files into a run's folder."""
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_aside(path, lambda aside, content=content: aside.write_bytes(content))  # type: ignore[misc]


def read_code(runs_folder: Path) -> CodeState:
    """Look at the working directory and at the installed package. What lies in `runs_folder` is not code."""
    files: dict[str, bytes] = {}
    work = _repository(Path.cwd(), "code", runs_folder, files)
    package_folder = Path(__file__).parents[1]
    package: dict[str, Any] = {
        "version": burnish.__version__,
        "sha256": package_sha256(),
        "folder": str(package_folder.parent),
        "is_in_working_repository": False,
        "repository": None,
    }
    if ask_git(package_folder, "ls-files", "--error-unmatch", "__init__.py") is not None:  # not one under a .venv
        root = ask_git_line(package_folder, "rev-parse", "--show-toplevel")
        package["is_in_working_repository"] = work is not None and root == work["root"]
        if not package["is_in_working_repository"]:
            package["repository"] = _repository(package_folder, "package", runs_folder, files)
    record = {
        "argv": redacted_arguments(sys.argv),
        "folder": str(Path.cwd()),
        "package": package,
        "repository": work,
    }
    return CodeState(record=record, files=files)


def package_sha256() -> str:
    """Content hash of the installed package: an editable installation is not its commit."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")) + sorted(package.rglob("*.yaml")):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _repository(folder: Path, name: str, runs_folder: Path, files: dict[str, bytes]) -> dict[str, Any] | None:
    """What git knows of a folder, None outside of a repository; what is kept is added to `files`."""
    top = ask_git_line(folder, "rev-parse", "--show-toplevel")
    if top is None:
        return None
    root = Path(top)
    commit = ask_git_line(folder, "rev-parse", "--verify", "HEAD")
    changed = ask_git(root, "status", "--porcelain", "--untracked-files=no") or b""
    diff, left_out = None, None
    if commit is not None and changed:
        content = ask_git(root, "diff", "--binary", "--no-color", "--no-ext-diff", "HEAD")
        diff, left_out = _kept_diff(content, f"{name}.diff", files)
    untracked = _untracked(folder, root, name, runs_folder, files)
    return {
        "root": top,
        "folder": folder.resolve().relative_to(root.resolve()).as_posix(),
        "commit": commit,
        "branch": ask_git_line(folder, "symbolic-ref", "--short", "--quiet", "HEAD"),
        "is_changed": bool(changed or untracked),
        "changed_files": changed.decode(errors="replace").splitlines()[:MAX_UNTRACKED],
        "diff": diff,
        "diff_left_out": left_out,
        "untracked": untracked,
        "submodules": (ask_git(root, "submodule", "status") or b"").decode(errors="replace").splitlines(),
    }


def _kept_diff(content: bytes | None, name: str, files: dict[str, bytes]) -> tuple[dict[str, Any] | None, str | None]:
    """(what is said of a diff that is kept, why it is not kept)."""
    if content is None:
        return None, "git did not say what changed"
    if len(content) > MAX_DIFF_BYTES:
        return None, f"it has {len(content):,} bytes, and {MAX_DIFF_BYTES:,} are kept at most"
    if holds_secret(content.decode(errors="replace")):
        return None, "it holds what looks like a password, key or token"
    files[name] = content
    return {"file": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}, None


def _untracked(
    folder: Path, root: Path, name: str, runs_folder: Path, files: dict[str, bytes]
) -> dict[str, dict[str, Any]]:
    """Size and hash of each untracked file that git does not ignore; small code and settings are kept."""
    pathspec = ["--", "."]
    runs = Path(runs_folder).resolve()
    if runs.is_relative_to(root.resolve()) and runs != root.resolve():
        pathspec.append(f":(exclude,top){runs.relative_to(root.resolve()).as_posix()}")
    listed = ask_git(folder, "ls-files", "--others", "--exclude-standard", "--full-name", "-z", *pathspec) or b""
    found: dict[str, dict[str, Any]] = {}
    kept_bytes = 0
    for path in sorted(listed.decode(errors="surrogateescape").split("\0"))[: MAX_UNTRACKED + 1]:
        file = root / path
        if not path.isprintable() or not file.is_file():
            continue
        size = file.stat().st_size
        entry: dict[str, Any] = {
            "bytes": size,
            "sha256": sha256_of_file(file) if size <= MAX_HASHED_BYTES else None,
            "kept": False,
        }
        if file.suffix in KEPT_SUFFIXES and size <= MAX_KEPT_BYTES - kept_bytes:
            content = file.read_bytes()
            if not holds_secret(content.decode(errors="replace")):
                files[f"{name}/{path}"] = content
                entry["kept"] = True
                kept_bytes += size
        found[path] = entry
    return found
