"""Licences of what burnish installs, and the scopes of its bill of materials."""

import runpy
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import burnish

ROOT = Path(__file__).parents[1]
THIRD_PARTY = runpy.run_path(str(ROOT / "scripts/third_party.py"))
NOTICES = (ROOT / "THIRD_PARTY_NOTICES.md").read_text(encoding="utf-8")
ROWS = THIRD_PARTY["rows"](NOTICES)
INSTALLED = THIRD_PARTY["find"](sys.path)


@pytest.mark.parametrize("group", THIRD_PARTY["requirements"]())
def test_every_dependency_has_its_licence_in_the_notices(group: str) -> None:
    """A new one without a row fails: `make notices`, and look at what its licence is."""
    for asked in THIRD_PARTY["requirements"]()[group]:
        assert asked.name in ROWS, f"{asked.name} is not in THIRD_PARTY_NOTICES.md: make notices"
        _, licence, groups = ROWS[asked.name]
        assert groups == {"burnish"} or group in groups
        assert licence != "not stated"


def test_what_they_bring_has_a_row_too() -> None:
    for group, asked in THIRD_PARTY["requirements"]().items():
        if group != "lm-eval":  # not installed here
            missing = THIRD_PARTY["closure"](asked, INSTALLED) - set(ROWS)
            assert not missing or sys.version_info[:2] != (3, 11), f"{missing}: make notices"


def test_the_licences_are_what_the_packages_say() -> None:
    looked_at = 0
    for name, (stated, licence, _) in ROWS.items():
        if name in INSTALLED and INSTALLED[name].version.partition("+")[0] == stated:
            assert THIRD_PARTY["licence_of"](INSTALLED[name]) == licence, name
            looked_at += 1
    assert looked_at > 100


def test_packages_of_the_lock_are_named_at_its_versions() -> None:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()[1:]
    lock = {canonicalize_name(each.name): str(each.specifier) for each in map(Requirement, lines)}
    both = ROWS.keys() & lock.keys()
    assert {name: lock[name] for name in both} == {name: f"=={ROWS[name][0]}" for name in both}


def test_a_licence_is_read_from_wherever_it_stands(tmp_path: Path) -> None:
    texts = {
        "expression": "License-Expression: MIT OR Apache-2.0\nLicense: other",
        "short": "License: MPL-2.0\nClassifier: License :: OSI Approved :: MIT License",
        "classifier": "Classifier: License :: OSI Approved :: BSD License",
        "file": "",
        "none": "",
    }
    for name, text in texts.items():
        folder = tmp_path / f"{name}-1.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 1\n{text}\n\n")
    (tmp_path / "file-1.dist-info/LICENSE").write_text("Permission is hereby granted, free of charge, to any person")
    (tmp_path / "file-1.dist-info/RECORD").write_text("file-1.dist-info/LICENSE,,\n")
    found = THIRD_PARTY["find"]([str(tmp_path)])
    assert {name: THIRD_PARTY["licence_of"](each) for name, each in found.items()} == {
        "expression": "MIT OR Apache-2.0",
        "short": "MPL-2.0",
        "classifier": "BSD",
        "file": "MIT",
        "none": "not stated",
    }


def test_the_closure_follows_extras_and_markers(tmp_path: Path) -> None:
    needs = {
        "a": ["b[fast]", 'never; python_version < "3"'],
        "b": ['c; extra == "fast"', 'd; extra == "other"'],
        "c": ["a"],
        "d": [],
    }
    for name, lines in needs.items():
        folder = tmp_path / f"{name}-1.dist-info"
        folder.mkdir()
        asked = "".join(f"Requires-Dist: {line}\n" for line in lines)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 1\n{asked}\n")
    installed = THIRD_PARTY["find"]([str(tmp_path)])
    assert THIRD_PARTY["closure"]([Requirement("a")], installed) == {"a", "b", "c"}
    with pytest.raises(SystemExit, match="e is not installed"):
        THIRD_PARTY["closure"]([Requirement("e")], installed)


def test_the_bill_of_materials_says_what_is_for_whom(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    sbom = runpy.run_path(str(ROOT / "scripts/sbom.py"))
    bom = {"components": [{"name": name} for name in ("PyYAML", "prometheus_client", "ruff")]}
    scoped = sbom["with_scopes"](bom, {"pyyaml"}, {"prometheus-client"})
    assert [each["scope"] for each in scoped["components"]] == ["required", "optional", "excluded"]
    assert sbom["version"]() == burnish.__version__
