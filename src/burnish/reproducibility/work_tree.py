"""The code of a run, brought back: a work tree at the recorded commit, with what differed from it."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from burnish.errors import DataError, UserError
from burnish.reproducibility.code_state import package_sha256
from burnish.reproducibility.files import sha256_of_file
from burnish.reproducibility.git import ask_git_line, tell_git

_NO_PATHS = ("name", "algorithm", "runs_folder")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a run is repeated: its working directory, and where Python looks for burnish before anywhere else."""

    folder: Path
    python_path: tuple[Path, ...] = ()


@contextmanager
def code_as_recorded(run: Path, code: Mapping[str, Any]) -> Iterator[Place]:
    """A work tree with the code that a run began with, for as long as the context lasts.

    What the configuration reads by a relative path and git does not hold (data, models) is linked to where it was.

    Raises:
        UserError: the run began outside of a repository, its commit is not to be found, or its changes were not kept.
        DataError: what was kept of its changes is not what the record says.
    """
    work = code["repository"]
    if work is None or work["commit"] is None:
        raise UserError(
            f"run {run.name} began outside of a git repository: its code cannot be brought back; "
            "--here runs it with the code as it is"
        )
    parent = Path(tempfile.mkdtemp(prefix="burnish-rerun-"))
    made: list[tuple[Path, Path]] = []
    try:
        root = _work_tree(run, work, "code", parent / "work", made)
        python_path: tuple[Path, ...] = ()
        package = code["package"]
        if package["is_in_working_repository"]:
            python_path = (root / Path(package["folder"]).relative_to(work["root"]),)
        elif package["repository"] is not None and package["sha256"] != package_sha256():
            own = package["repository"]
            python_path = (
                _work_tree(run, own, "package", parent / "package", made)
                / Path(package["folder"]).relative_to(own["root"]),
            )
        folder = root / work["folder"]
        folder.mkdir(parents=True, exist_ok=True)
        link_inputs(run / "config.yaml", Path(code["folder"]), folder)
        yield Place(folder=folder, python_path=python_path)
    finally:
        for repository, tree in made:
            tell_git(repository, "worktree", "remove", "--force", str(tree))
        shutil.rmtree(parent)


def link_inputs(config: Path, before: Path, now: Path) -> None:
    """Let what a configuration names by a relative path be found from `now` as it was from `before`."""
    for text in _texts(yaml.safe_load(config.read_text(encoding="utf-8"))):
        path = Path(text.removeprefix("model:"))
        if path.is_absolute() or len(text) > 1000 or "\n" in text or "\0" in text or ".." in path.parts:
            continue
        origins = [before / path] if (before / path).exists() else []
        if path.name and not origins and "*" not in text:  # a run by its name, without the digits at its end
            origins = list((before / path).parent.glob(f"{_escaped(path.name)}-??????"))
        for origin in origins:
            link = now / path.parent / origin.name if path.name else now
            if not link.exists():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(origin.resolve())


def _work_tree(run: Path, repository: Mapping[str, Any], name: str, tree: Path, made: list[tuple[Path, Path]]) -> Path:
    if repository["diff_left_out"] is not None:
        raise UserError(
            f"run {run.name}: what differed from commit {repository['commit'][:12]} was not kept "
            f"({repository['diff_left_out']}); --here runs it with the code as it is"
        )
    home = _repository_with(repository)
    tell_git(home, "worktree", "add", "--detach", "--quiet", str(tree), repository["commit"])
    made.append((home, tree))
    if (diff := repository["diff"]) is not None:
        _require_hash(run / diff["file"], diff["sha256"])
        tell_git(tree, "apply", "--binary", "--whitespace=nowarn", str((run / diff["file"]).resolve()))
    for path, facts in repository["untracked"].items():
        if facts["kept"]:
            kept = run / name / path
            _require_hash(kept, facts["sha256"])
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(kept, tree / path)
    return tree


def _repository_with(repository: Mapping[str, Any]) -> Path:
    """The repository where it was, or that of the working directory, whichever has the commit."""
    commit = repository["commit"]
    for folder in (Path(repository["root"]), Path.cwd()):
        if ask_git_line(folder, "cat-file", "-e", f"{commit}^{{commit}}") is not None:
            return folder
    raise UserError(
        f"commit {commit[:12]} is neither in {repository['root']} nor in the repository of the working directory: "
        "fetch it, or run with the code as it is: --here"
    )


def _require_hash(path: Path, expected: str) -> None:
    if not path.is_file() or sha256_of_file(path) != expected:
        raise DataError(f"{path} is missing or is not what the run's record says: the code cannot be brought back")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            if key not in _NO_PATHS:
                yield str(key)
                yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "?[" else letter for letter in name)
