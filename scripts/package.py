"""Build the wheel and the source distribution of burnish, and look into them.

    .venv/bin/python scripts/package.py dist

Exit status 1 if a file is missing or too many, if two builds differ in a byte, or if the source distribution builds
another wheel. Dates in the files are SOURCE_DATE_EPOCH where that is set, and one fixed day otherwise.
"""

import argparse
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
LICENCES = ("LICENSE", "NOTICE", "THIRD_PARTY_NOTICES.md")
READ_AT_RUN_TIME = {
    "burnish/py.typed",
    "burnish/monitoring/runbooks.md",
    "burnish/recipes/quickstart.yaml",
    "burnish/serving/proto/burnish.proto",
    "burnish/serving/proto/inference.proto",
    "burnish/ui/static/app.js",
    "burnish/ui/static/index.html",
    "burnish/ui/static/style.css",
}
SUFFIXES = {".css", ".html", ".js", ".md", ".proto", ".py", ".pyi", ".svg", ".typed", ".yaml"}
_SDIST_ONLY = {"PKG-INFO", "pyproject.toml", ".gitignore"}
_MOST_BYTES = 1_000_000  # of a file: the largest is a table of a tenth of that
_BUILD_SECONDS = 120


def build(source: Path, target: Path, kinds: Iterable[str] = ("sdist", "wheel")) -> list[Path]:
    """The files that hatchling makes of a source tree, in `target`."""
    options = [word for kind in kinds for word in ("-t", kind)]
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(target.resolve()), *options]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=_BUILD_SECONDS, check=False)
    if done.returncode:
        sys.exit(f"package: hatchling failed:\n{done.stdout}{done.stderr}")
    return sorted(target.iterdir())


def names_in(package: Path) -> dict[str, int]:
    """Every file of a wheel or a source distribution with its size; the latter's without its first folder."""
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as archive:
            return {each.filename: each.file_size for each in archive.infolist()}
    with tarfile.open(package) as archive:
        return {each.name.partition("/")[2]: each.size for each in archive.getmembers() if each.isfile()}


def wheel_problems(names: Iterable[str], source: Path) -> list[str]:
    """What a wheel lacks of src/burnish, or has beside it and its metadata."""
    found = set(names)
    package = {
        path.relative_to(source / "src").as_posix()
        for path in (source / "src/burnish").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    (metadata,) = {name.partition("/")[0] for name in found if name.partition("/")[0].endswith(".dist-info")}
    files = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", *(f"licenses/{name}" for name in LICENCES))
    return _differences(found, package | READ_AT_RUN_TIME | {f"{metadata}/{name}" for name in files}) + [
        f"is no file of the package: {name}" for name in sorted(package) if Path(name).suffix not in SUFFIXES
    ]


def sdist_problems(sizes: dict[str, int], kept: Iterable[str]) -> list[str]:
    """What a source distribution lacks of the files in git (`kept`), or has beside them."""
    folders = {name.partition("/")[0] for name in sizes}
    expected = {name for name in kept if name.partition("/")[0] in folders} | _SDIST_ONLY | set(LICENCES)
    large = [f"is larger than {_MOST_BYTES} bytes: {name}" for name, size in sizes.items() if size > _MOST_BYTES]
    needed = {"benchmarks", "docs", "examples", "Makefile", "requirements.lock", "scripts", "src", "tests"}
    return _differences(sizes, expected) + large + [f"is missing: {name}" for name in sorted(needed - folders)]


def kept_files(source: Path) -> list[str]:
    """What git keeps, or would: neither ignored nor deleted."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=30, check=True)
    return [name for name in done.stdout.splitlines() if (source / name).is_file()]


def _differences(found: Iterable[str], expected: Iterable[str]) -> list[str]:
    found, expected = set(found), set(expected)
    return [f"is missing: {name}" for name in sorted(expected - found)] + [
        f"does not belong there: {name}" for name in sorted(found - expected)
    ]


def problems(folder: Path, source: Path = ROOT) -> list[str]:
    """What is wrong with the wheel and the source distribution in `folder`, which were built from `source`."""
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    found = [f"{wheel.name}: {each}" for each in wheel_problems(names_in(wheel), source)]
    found += [f"{sdist.name}: {each}" for each in sdist_problems(names_in(sdist), kept_files(source))]
    with tempfile.TemporaryDirectory() as scratch:
        again = build(source, Path(scratch) / "again")
        found += [
            f"{first.name}: a second build differs"
            for first, second in zip((wheel, sdist), again, strict=True)
            if first.read_bytes() != second.read_bytes()
        ]
        with tarfile.open(sdist) as archive:
            archive.extractall(scratch, filter="data")
        unpacked = Path(scratch) / sdist.name.removesuffix(".tar.gz")
        (of_sdist,) = build(unpacked, Path(scratch) / "of_sdist", ("wheel",))
        if of_sdist.read_bytes() != wheel.read_bytes():
            found.append(f"{sdist.name}: builds another wheel than {wheel.name}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folder", type=Path, help="where to; wheels and source distributions of burnish there are removed"
    )
    folder = parser.parse_args().folder
    for old in [*folder.glob("burnish-*.whl"), *folder.glob("burnish-*.tar.gz")]:
        old.unlink()
    for built in build(ROOT, folder):
        print(f"{built}: {len(names_in(built))} files, {built.stat().st_size:,} bytes")
    if found := problems(folder):
        sys.exit("\n".join(found))
    print("ok: every file is there and no other; a second build and one from the source distribution are the same")


if __name__ == "__main__":
    main()
