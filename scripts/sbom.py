"""Write the bill of materials of burnish with its locked packages, as CycloneDX 1.6, and check it against the schema.

    .venv-package/bin/python scripts/sbom.py .venv/bin/python dist

cyclonedx-bom reads the environment that requirements.lock made. A package is `required` where burnish itself needs it,
`optional` where an extra does, and `excluded` where only its development does. The extra lm-eval is not in the lock.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from third_party import BASE, ROOT, closure, find, requirements

_SECONDS = 300
_NOT_LOCKED = "lm-eval"


def version() -> str:
    """As the package says it."""
    text = (ROOT / "src/burnish/__init__.py").read_text(encoding="utf-8")
    (found,) = re.findall(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    return str(found)


def read_environment(python: Path, pyproject: Path) -> dict[str, Any]:
    """What cyclonedx-bom says of an environment."""
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--pyproject", str(pyproject), "--sv", "1.6"]
    command += ["--mc-type", "library", "--output-reproducible", "-o", "-", str(python)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode:
        sys.exit(f"sbom: cyclonedx-bom failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def with_scopes(bom: dict[str, Any], required: set[str], optional: set[str]) -> dict[str, Any]:
    """The bill with a scope for each component; the names are canonical."""
    for each in bom["components"]:
        name = canonicalize_name(each["name"])
        each["scope"] = "required" if name in required else "optional" if name in optional else "excluded"
    return bom


def schema_fault(text: str) -> str | None:
    """What the schema of CycloneDX 1.6 says against it."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    return None if fault is None else str(fault)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("python", type=Path, help="of the environment")
    parser.add_argument("folder", type=Path, help="where to")
    arguments = parser.parse_args()
    stated = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as scratch:
        pyproject = Path(scratch) / "pyproject.toml"  # cyclonedx-bom does not look up where the version stands
        pyproject.write_text(stated.replace('dynamic = ["version"]', f'version = "{version()}"'), encoding="utf-8")
        bom = read_environment(arguments.python, pyproject)
    where = "import json, sys; print(json.dumps(sys.path))"
    said = subprocess.run([str(arguments.python), "-c", where], capture_output=True, text=True, timeout=60, check=True)
    installed = find(json.loads(said.stdout))
    sets = {group: closure(asked, installed) for group, asked in requirements().items() if group != _NOT_LOCKED}
    bom = with_scopes(bom, sets.pop(BASE), set().union(*sets.values()))
    text = json.dumps(bom, indent=1) + "\n"
    if fault := schema_fault(text):
        sys.exit(f"sbom: {fault}")
    out = arguments.folder / f"burnish-{version()}.cdx.json"
    out.write_text(text, encoding="utf-8")
    count = Counter(each["scope"] for each in bom["components"])
    print(f"{out}: {', '.join(f'{number} {scope}' for scope, number in count.items())}; valid CycloneDX 1.6")


if __name__ == "__main__":
    main()
