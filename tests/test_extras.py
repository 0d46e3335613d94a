"""What an extra brings, what the package imports, and what a person is told who left it out."""

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import burnish
from burnish.cli.app import run
from burnish.config.extras import requires_extra
from burnish.config.schema import OptimizerConfig
from burnish.errors import ConfigError
from burnish.records import Completion, Message, Task

ROOT = Path(__file__).parents[1]
PACKAGE = Path(burnish.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {name: asked for name, asked in PROJECT["optional-dependencies"].items() if name != "dev"}
BEHIND = {"serving", "ui", "monitoring"}
"""Where a module may need an extra by itself: nothing but what asks for the extra first leads there."""
IN_RAY = ("distributed/worker.py", "ray")
"""Runs in processes that Ray started."""


HOMES = {root: {canonicalize_name(home) for home in homes} for root, homes in packages_distributions().items()}


def names(asked: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(each).name) for each in asked}


def roots_of(asked: list[str]) -> set[str]:
    """What can be imported of these distributions; lm-eval need not be installed."""
    wanted = names(asked)
    found = {root for root, homes in HOMES.items() if wanted & homes}
    return found | ({"lm_eval"} if "lm-eval" in wanted else set())


BASE = roots_of(PROJECT["dependencies"]) | set(sys.stdlib_module_names) | {"burnish"}
ROOTS = {name: roots_of(asked) for name, asked in EXTRAS.items()}


@dataclass(frozen=True)
class Import:
    """Of `module`, inside of a function or not, and inside of a `with requires_extra(extra, ...)` or not."""

    module: str
    extra: str | None
    is_inside: bool


def imports_of(node: ast.AST, extra: str | None = None, *, is_inside: bool = False) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        door, inside = extra, is_inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.With):
            for item in child.items:
                call = item.context_expr
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "requires_extra":
                    door = ast.literal_eval(call.args[0])
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, door, inside) for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module is not None:
            yield Import(child.module, door, inside)
            if child.module.startswith("burnish"):  # a name may be a module
                yield from (Import(f"{child.module}.{alias.name}", door, inside) for alias in child.names)
        yield from imports_of(child, door, is_inside=inside)


def by_module() -> dict[str, list[Import]]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if not path.stem.endswith("_pb2_grpc"):  # generated, with a door of its own
            found[path.relative_to(PACKAGE).as_posix()] = list(imports_of(ast.parse(path.read_text(encoding="utf-8"))))
    return found


IMPORTS = by_module()


def file_of(module: str) -> str:
    inner = module.removeprefix("burnish").lstrip(".").replace(".", "/")
    return next((name for name in (f"{inner}.py", f"{inner}/__init__.py", "__init__.py") if name in IMPORTS), "")


def needs() -> dict[str, set[str]]:
    """What each module needs beside the base when it is imported, also by way of others."""
    found: dict[str, set[str]] = {name: set() for name in IMPORTS}
    while True:
        before = {name: set(each) for name, each in found.items()}
        for name, imports in IMPORTS.items():
            for each in imports:
                if not each.is_inside and each.extra is None:
                    found[name] |= needed_by(each.module, found)
        if found == before:
            return found


def needed_by(module: str, found: dict[str, set[str]]) -> set[str]:
    root = module.partition(".")[0]
    if root == "burnish":
        return found.get(file_of(module), set())
    return set() if root in BASE else {root}


NEEDS = needs()


def everything() -> Iterator[Import]:
    return (each for imports in IMPORTS.values() for each in imports)


@pytest.mark.parametrize("name", IMPORTS)
def test_what_is_imported_is_declared(name: str) -> None:
    """A package that is not in `dependencies` is imported where its extra is asked for, or behind such a place."""
    doors = {root for each in IMPORTS[name] if each.extra is not None for root in ROOTS[each.extra]}
    for each in IMPORTS[name]:
        wanted = needed_by(each.module, NEEDS)
        if each.extra is not None:
            assert wanted <= ROOTS[each.extra], f"{each.extra} does not bring {wanted - ROOTS[each.extra]}"
        elif each.is_inside and (name, each.module) != IN_RAY:
            assert wanted <= NEEDS[name] | doors, f"{each.module} needs {wanted}: use requires_extra"
    if NEEDS[name]:
        assert any(name.startswith(place) for place in BEHIND), f"needs {NEEDS[name]}"


def test_every_package_of_an_extra_is_imported() -> None:
    used = {each.module.partition(".")[0] for each in everything()}
    for name, asked in EXTRAS.items():
        for each in asked:
            assert roots_of([each]) & used, f"{name}: nothing imports {each}"


def test_the_extras_that_are_named_exist() -> None:
    texts = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *PACKAGE.rglob("*.py")]
    named = {
        extra
        for path in texts
        for found in re.findall(r"burnish\[([a-z, -]+)\]", path.read_text(encoding="utf-8"))
        for extra in re.split(r", ?", found)
    } | {each.extra for each in everything() if each.extra is not None}
    assert named - {"dev"} == set(EXTRAS)


def test_development_has_every_extra_in_its_lock() -> None:
    """But lm-eval, which has an environment of its own."""
    lock = {line.partition("==")[0] for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()}
    locked = {canonicalize_name(name) for name in lock}
    for name, asked in {"": PROJECT["dependencies"], **EXTRAS}.items():
        assert name == "lm-eval" or names(asked) <= locked, name


def hide(monkeypatch: pytest.MonkeyPatch, root: str) -> None:
    for name in [name for name in sys.modules if name == root or name.startswith(f"{root}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, root, None)


def lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "burnish.evaluation.lm_eval", raising=False)
    importlib.import_module("burnish.evaluation.lm_eval")


def of(path: str, *arguments: object) -> Callable[[pytest.MonkeyPatch], object]:
    """A call of a function of the package."""
    module, name = path.split(":")
    return lambda monkeypatch: getattr(importlib.import_module(module), name)(*arguments)


SAID = Completion(token_ids=(1,), text="ja", sampling_logprobs=(0.0,), model_logprobs=(0.0,), finish_reason="stop")
GYM = {"source_dataset": "leg_counting"}
ASKED = Task(id="0", messages=(Message(role="user", content="?"),), answer="1", extra={"metadata": GYM})
CALLS: list[tuple[str, str, Callable[[pytest.MonkeyPatch], object]]] = [
    ("demo", "gguf", of("burnish.models.fetch:fetch_model", "smollm2-135m", print)),
    ("demo", "reasoning_gym", of("burnish.rewards.reasoning_gym:score_answer", SAID, ASKED)),
    ("gymnasium", "gymnasium", of("burnish.environments.adapters.gymnasium:GymnasiumEnvironment", "any")),
    ("instructions", "langdetect", of("burnish.rewards.instructions:_language_of", "ja")),
    ("judge", "httpx2", of("burnish.rewards.judge:_httpx")),
    ("lm-eval", "lm_eval", lm_eval),
    ("lora", "peft", of("burnish.models.load:require_peft")),
    ("math", "math_verify", of("burnish.rewards.answers:math_answer", SAID, ASKED)),
    ("openenv", "openenv", of("burnish.environments.adapters.openenv:OpenEnvEnvironment", "http://127.0.0.1:9")),
    ("otel", "opentelemetry", of("burnish.serving.tracing:require_opentelemetry")),
    ("postgres", "psycopg", of("burnish.serving.database:Database", "postgresql://127.0.0.1:9/any")),
    (
        "quantized",
        "torchao",
        of("burnish.training.optimizer:check_installed", OptimizerConfig(kind="adamw_8bit")),
    ),
    ("ray", "ray", of("burnish.distributed.actors:import_ray")),
    ("sweep", "optuna", of("burnish.experiments.sweep:import_optuna")),
    ("verifiers", "verifiers", of("burnish.environments.adapters.verifiers:_refuse_what_needs_more", None)),
]


@pytest.mark.parametrize(("extra", "root", "call"), CALLS, ids=[f"{extra}-{root}" for extra, root, _ in CALLS])
def test_one_line_names_the_extra(
    extra: str, root: str, call: Callable[[pytest.MonkeyPatch], object], monkeypatch, tmp_path
) -> None:
    monkeypatch.setenv("BURNISH_CACHE", str(tmp_path))
    hide(monkeypatch, root)
    with pytest.raises(ConfigError) as error:
        call(monkeypatch)
    assert re.fullmatch(rf"[^\n]+ \(.*{root}.*\): pip install 'burnish\[{extra}\]'", str(error.value))


DRY = {
    "demo": ("reasoning_gym", ["--task.source=reasoning-gym:leg_counting"]),
    "lora": ("peft", ["--model.lora.rank=4"]),
    "metrics": ("prometheus_client", ["--metrics.port=9464"]),
    "quantized": ("torchao", ["--optimizer.kind=adamw_8bit"]),
    "ray": ("ray", ["--cluster.kind=ray"]),
}


@pytest.mark.parametrize("extra", DRY)
def test_a_dry_run_says_what_is_not_installed(extra: str, monkeypatch, capsys, tiny_folder, tmp_path) -> None:
    root, settings = DRY[extra]
    rows = [{"prompt": f"{i}?", "answer": str(i)} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = [f"--task.source={tmp_path / 'rows.jsonl'}", "--task.num_held_out=2", f"--model.path={tiny_folder}"]
    hide(monkeypatch, root)
    assert run(["train", "grpo", *task, *settings, "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"pip install 'burnish[{extra}]'")


def test_every_extra_is_tried() -> None:
    assert {extra for extra, _, _ in CALLS} | set(DRY) | {"serve"} == set(EXTRAS)


SERVE = """
import sys
from burnish.cli.app import run
for root, command in {pairs}:
    own = tuple("burnish." + folder for folder in ("monitoring", "serving", "ui"))
    for name in [name for name in sys.modules if name.split(".")[0] == root or name.startswith(own)]:
        del sys.modules[name]
    sys.modules[root] = None
    print(root, run(command), file=sys.stderr)
    del sys.modules[root]
"""


@pytest.mark.slow
def test_the_server_and_the_page_name_their_extra_for_each_of_its_packages(tiny_folder: Path, tmp_path: Path) -> None:
    page = {"fastapi", "prometheus_client", "starlette", "uvicorn"}
    server = page | {"cryptography", "google", "grpc", "grpc_health", "grpc_reflection", "h11", "llguidance"}
    pairs = [(root, ["ui"]) for root in sorted(page)] + [
        (root, ["serve", str(tiny_folder), "--port=0"]) for root in sorted(server)
    ]
    assert server | {"pydantic_core"} == ROOTS["serve"] & {each.module.partition(".")[0] for each in everything()}
    code = SERVE.format(pairs=pairs)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    lines = done.stderr.splitlines()
    assert len(lines) == 2 * len(pairs), done.stderr
    for said, status in zip(lines[::2], lines[1::2], strict=True):
        assert status.endswith(" 2")
        assert said.startswith("burnish: ") and said.endswith("pip install 'burnish[serve]'")


def test_a_fault_of_burnish_itself_is_no_missing_package() -> None:
    with pytest.raises(ImportError, match="nonsense"), requires_extra("serve", "it needs more packages"):
        importlib.import_module("burnish.nonsense")
