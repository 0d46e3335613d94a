"""What run.json says of code, machine and inputs, so that a number can be traced to what made it."""

import hashlib
import importlib.metadata
import inspect
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from burnish.config.imports import import_object
from burnish.records import Task
from burnish.reproducibility.files import sha256_of_file

_GIT_SECONDS = 10
_PACKAGES = ("burnish", "torch", "transformers", "tokenizers", "safetensors", "numpy", "peft", "reasoning-gym")


def code_record() -> dict[str, Any]:
    """Version and content hash of the installed package, and the commit of the working directory if it is one."""
    return {
        "package_sha256": package_sha256(),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changed_files": (_git("status", "--porcelain") or "").splitlines(),
        "argv": sys.argv,
    }


def package_sha256() -> str:
    """Content hash of the installed package."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")) + sorted(package.rglob("*.yaml")):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """The installed version of each; None where there is none."""
    return {name: _version(name) for name in packages}


def environment_record(num_threads: int) -> dict[str, Any]:
    """Machine, interpreter and package versions: what bit-exact repetition depends on."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "num_threads": num_threads,
        "packages": versions(_PACKAGES),
    }


def model_record(source: str, *, base: str | None, commit: str | None) -> dict[str, Any]:
    """Hash of each file of a model folder, and of the folder an adapter stands on; the commit for a hub id."""
    folders = [Path(each) for each in (source, base) if each is not None and Path(each).is_dir()]
    files = sorted(path for folder in folders for path in folder.iterdir() if path.is_file())
    return {"source": source, "commit": commit, "sha256": {str(path): sha256_of_file(path) for path in files}}


def tasks_record(train: Iterable[Task], held_out: Iterable[Task]) -> dict[str, Any]:
    """Counts and hashes of both sides of the split, in their order and with every field a reward can see."""
    sides: dict[str, Any] = {}
    for name, tasks in (("train", list(train)), ("held_out", list(held_out))):
        digest = hashlib.sha256(json.dumps([asdict(task) for task in tasks], sort_keys=True).encode())
        sides[name] = {"count": len(tasks), "sha256": digest.hexdigest()}
    return sides


def source_hash(path: str, key: str) -> str | None:
    """sha256 of the file that defines what an import path names; None where there is no source file.

    A function or a class knows its file. An object (a decorated loss, a weighted reward) was made in the module that
    the path names.

    Raises:
        ConfigError: it cannot be imported; `key` is the setting that names it.
    """
    found = import_object(path, key)
    try:
        file = inspect.getsourcefile(found)
    except TypeError:
        file = inspect.getsourcefile(sys.modules[path.partition(":")[0]])
    return sha256_of_file(Path(file)) if file is not None and Path(file).is_file() else None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=_GIT_SECONDS, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
