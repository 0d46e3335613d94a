"""What run.json says of what a run reads, so that a number can be traced to what made it."""

import ast
import hashlib
import importlib.util
import inspect
import json
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from burnish.config.imports import import_object
from burnish.records import Task
from burnish.reproducibility.files import sha256_of_file

_MODEL_SUFFIXES = {".json", ".jinja", ".model", ".safetensors", ".txt"}
_NUM_BLOCKS, _BLOCK_BYTES = 64, 2**16


def model_record(source: str, *, base: str | None, commit: str | None) -> dict[str, Any]:
    """Hash of each file of a model folder, and of the folder an adapter stands on; the commit for a hub id."""
    folders = [Path(each) for each in (source, base) if each is not None and Path(each).is_dir()]
    files = sorted(path for folder in folders for path in folder.iterdir() if path.is_file())
    return {"source": source, "commit": commit, "sha256": {str(path): sha256_of_file(path) for path in files}}


def model_digest(record: Mapping[str, Any]) -> str:
    """One hash of what `model_record` found, wherever the folder lies."""
    hashes = sorted((Path(path).name, found) for path, found in record["sha256"].items())
    return hashlib.sha256(json.dumps([hashes, record["commit"]]).encode()).hexdigest()


def quick_fingerprint(source: str, *, base: str | None, commit: str | None) -> str:
    """Tells copies of a model apart, wherever they lie, without reading them whole; see model_record for the arguments.

    It is of the names and sizes of the files, of small files whole, and of 64 blocks of 64 KiB spread evenly over each
    larger one. Training moves weights everywhere; a few numbers that were changed between two blocks are not seen.
    """
    digest = hashlib.sha256(str(commit).encode())
    for folder in (Path(each) for each in (source, base) if each is not None and Path(each).is_dir()):
        for path in sorted(each for each in folder.iterdir() if each.suffix in _MODEL_SUFFIXES):
            size = path.stat().st_size
            digest.update(f"\n{path.name} {size}\n".encode())
            with path.open("rb") as file:
                if size <= _NUM_BLOCKS * _BLOCK_BYTES:
                    digest.update(file.read())
                    continue
                for index in range(_NUM_BLOCKS):
                    file.seek((size - _BLOCK_BYTES) * index // (_NUM_BLOCKS - 1))
                    digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()


def tasks_record(train: Iterable[Task], held_out: Iterable[Task]) -> dict[str, Any]:
    """Counts and hashes of both sides of the split, in their order and with every field a reward can see."""
    sides: dict[str, Any] = {}
    for name, tasks in (("train", list(train)), ("held_out", list(held_out))):
        digest = hashlib.sha256(json.dumps([asdict(task) for task in tasks], sort_keys=True).encode())
        sides[name] = {"count": len(tasks), "sha256": digest.hexdigest()}
    return sides


def extra_sha256(task: Task) -> str:
    """Hash of what a reward can see of a task beside its question and answer: unit tests, a checker's arguments."""
    return hashlib.sha256(json.dumps(task.extra, sort_keys=True).encode()).hexdigest()


def tokenizer_record(tokenizer: Any) -> dict[str, str | None]:
    """Hashes of what turns text into tokens: vocabulary with its rules, special tokens, and the chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = json.dumps(tokenizer.get_vocab(), sort_keys=True) if backend is None else backend.to_str()
    template = getattr(tokenizer, "chat_template", None)
    texts = {
        "vocabulary": vocabulary,
        "special_tokens": json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str),
        "chat_template": None if template is None else json.dumps(template, sort_keys=True),
    }
    return {key: None if text is None else hashlib.sha256(text.encode()).hexdigest() for key, text in texts.items()}


def source_hash(path: str, key: str) -> str | None:
    """sha256 of the file that defines what an import path names, and of your other modules that it imports.

    A function or a class knows its file. An object (a decorated loss, a weighted reward) was made in the module that
    the path names. None where there is no source file. Installed packages are told apart by their versions.

    Raises:
        ConfigError: it cannot be imported; `key` is the setting that names it.
    """
    found = import_object(path, key)
    try:
        file = inspect.getsourcefile(found)
    except TypeError:
        file = inspect.getsourcefile(sys.modules[path.partition(":")[0]])
    if file is None or not Path(file).is_file():
        return None
    module = inspect.getmodule(found) or sys.modules[path.partition(":")[0]]
    sources = _own_sources(Path(file), module.__package__ or "")
    if len(sources) == 1:
        return sha256_of_file(Path(file))
    hashes = sorted(f"{name} {sha256_of_file(source)}" for source, name in sources.items())
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _own_sources(file: Path, package: str) -> dict[Path, str]:
    """The file of a module in a package ("" for none), and the files that it imports, and those import, as far as
    nobody installed them; with their names.
    """
    found = {file: ""}
    waiting = [] if _is_installed(file) else [(file, package)]
    while waiting:
        for name in _imported_names(*waiting.pop()):
            source = _own_source(name)
            if source is not None and source not in found:
                found[source] = name
                waiting.append((source, name if source.name == "__init__.py" else name.rpartition(".")[0]))
    return found


def _own_source(name: str) -> Path | None:
    """The file of a module that nobody installed."""
    origin = None
    for each in dict.fromkeys((name.partition(".")[0], name)):  # below an installed package is not asked: it would load
        try:
            spec = importlib.util.find_spec(each)
        except (ImportError, ValueError, AttributeError):  # a name inside of a module, or one that is not there
            return None
        if spec is None:
            return None
        origin = spec.origin if spec.has_location else None
        places = [origin] if origin else list(spec.submodule_search_locations or ())
        if not places or any(_is_installed(Path(place)) for place in places):
            return None
    return Path(origin) if origin and origin.endswith(".py") else None


def _imported_names(file: Path, package: str) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level <= len(package.split(".")) * bool(package):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package or None)
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return names


def _is_installed(file: Path) -> bool:
    folders = [*(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")), Path(__file__).parents[1]]
    return "site-packages" in file.parts or any(file.is_relative_to(folder) for folder in folders)
