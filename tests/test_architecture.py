"""What keeps the house in order: ranks, sizes, light imports."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import burnish

PACKAGE = Path(burnish.__file__).parent
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 8

RANKS = {
    "records": 0,
    "errors": 0,
    "config": 1,
    "losses": 2,
    "stats": 2,
    "rewards": 2,
    "reproducibility": 3,
    "monitoring": 4,
    "data": 4,
    "models": 4,
    "memory": 5,
    "environments": 5,
    "rollout": 6,
    "training": 6,
    "evaluation": 7,
    "distributed": 7,
    "algorithms": 8,
    "experiments": 9,
    "serving": 9,
    "ui": 10,
    "cli": 11,
    "recipes": 11,
    "__main__": 12,
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def folder_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_folders(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("burnish."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("burnish."))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_folder_imports_only_lower_ranks(path: Path) -> None:
    folder = folder_of(path)
    if folder == "__init__":
        return
    for imported in imported_folders(ast.parse(path.read_text())):
        assert imported == folder or RANKS[imported] < RANKS[folder], f"{folder} imports {imported}"


def test_every_folder_has_a_rank() -> None:
    assert {folder_of(path) for path in modules()} - {"__init__"} == set(RANKS)


def test_no_circle_among_modules() -> None:
    imports: dict[str, set[str]] = {}
    for path in modules():
        name = ".".join(("burnish", *path.relative_to(PACKAGE).with_suffix("").parts))
        imports[name] = {
            module
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("burnish")
            for module in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        }

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"circle: {' -> '.join([*trail, name])}"
        for imported in imports.get(name, ()):
            if imported in imports:
                visit(imported, (*trail, name))

    for name in imports:
        visit(name, ())


@pytest.mark.parametrize(
    "path",
    [path for path in modules() if not path.stem.endswith(("_pb2", "_pb2_grpc"))],  # those are generated
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_sizes(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno + 1 <= MAX_FUNCTION_LINES, node.name
            parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            assert len(parameters) <= MAX_PARAMETERS, node.name


def test_public_names_are_sorted_and_there() -> None:
    assert list(burnish.__all__) == sorted(burnish.__all__)
    for name in burnish.__all__:
        assert getattr(burnish, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        burnish.nonsense  # noqa: B018  # the look-up is what is tested


def test_help_loads_nothing_slow() -> None:
    """It must answer in half a second, of which cyclopts and rich take most."""
    slow = {"torch", "transformers", "pydantic", "numpy", "scipy", "yaml", "matplotlib", "ray"}
    code = f"import sys; from burnish.cli.app import run; run(['--help']); print({slow} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert "burnish" in done.stdout and done.returncode == 0
    assert done.stdout.splitlines()[-1] == "set()"
