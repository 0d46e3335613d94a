"""What is exported is what the formats ask for, and says what the record says."""

import hashlib
import json
import re

import pytest

from burnish.cli.app import run as command
from burnish.errors import UserError
from burnish.experiments.export import export, held_out_figures


def test_export(project, train_here, tmp_path, capsys) -> None:
    run = train_here()
    to = tmp_path / "exported"
    capsys.readouterr()
    assert command(["export", run.path.name, "--to", str(to)]) == 0
    assert capsys.readouterr().out.splitlines() == [str(to / name) for name in sorted_as_written(to)]
    record = run.record()
    weights = hashlib.sha256((run.checkpoints / "step-000004" / "model.safetensors").read_bytes()).hexdigest()

    bom = json.loads((to / "bom.cdx.json").read_text())
    assert (bom["bomFormat"], bom["specVersion"], bom["version"]) == ("CycloneDX", "1.6", 1)
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", bom["serialNumber"])
    model = bom["metadata"]["component"]
    assert (model["type"], model["name"]) == ("machine-learning-model", run.path.name)
    assert model["components"] == [
        {
            "type": "file",
            "name": "step-000004/model.safetensors",
            "hashes": [{"alg": "SHA-256", "content": weights}],
        }
    ]
    (metric,) = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    (figure,) = held_out_figures(run)
    assert float(metric["value"]) == figure["value"]
    assert float(metric["confidenceInterval"]["lowerBound"]) == figure["low"] <= figure["value"] <= figure["high"]
    references = [each["bom-ref"] for each in bom["components"]]
    assert len(set(references)) == len(references) and set(bom["dependencies"][0]["dependsOn"]) == set(references)
    torch_version = record["environment"]["packages"]["torch"]
    assert f"pkg:pypi/torch@{torch_version.replace('+', '%2B')}" in references  # as a package URL writes a plus

    statement = json.loads((to / "provenance.intoto.json").read_text())
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    assert statement["subject"] == [{"name": "step-000004/model.safetensors", "digest": {"sha256": weights}}]
    definition, details = (statement["predicate"][key] for key in ("buildDefinition", "runDetails"))
    assert set(definition) == {"buildType", "externalParameters", "internalParameters", "resolvedDependencies"}
    assert set(details) == {"builder", "metadata", "byproducts"}
    assert {"gitCommit": record["code"]["repository"]["commit"]} in [
        each["digest"] for each in definition["resolvedDependencies"]
    ]

    crate = json.loads((to / "ro-crate-metadata.json").read_text())
    entities = {each["@id"]: each for each in crate["@graph"]}
    assert len(entities) == len(crate["@graph"])
    assert entities["ro-crate-metadata.json"]["about"] == {"@id": "./"}
    assert {part["@id"] for part in entities["./"]["hasPart"]} == {path.name for path in to.iterdir()} - {
        "ro-crate-metadata.json"
    }
    action = entities["#training"]
    assert action["@type"] == "CreateAction" and entities[action["instrument"]["@id"]]["name"] == "burnish"
    assert all(each["@id"] in entities for each in (*action["object"], *action["result"]))

    lock = (to / "requirements.lock").read_text()
    assert f"torch=={torch_version.partition('+')[0]}\n" in lock and "burnish==" not in lock
    assert "requirements.lock" in (to / "Containerfile").read_text()
    card = (to / "MODEL_CARD.md").read_text()
    assert "95% CI" in card and "- seed: 0" in card and "`optimizer.learning_rate`: `0.006`" in card
    with pytest.raises(UserError, match="exists: give a folder that does not"):
        export(run, to)


def sorted_as_written(folder):
    order = ["run.json", "config.yaml", "metrics.jsonl", "code.diff", "MODEL_CARD.md", "requirements.lock"]
    order += ["Containerfile", "bom.cdx.json", "provenance.intoto.json", "ro-crate-metadata.json"]
    found = {path.name for path in folder.iterdir()}
    assert found <= set(order)
    return [name for name in order if name in found]


def test_a_run_that_has_not_ended_is_not_exported(project, train_here, tmp_path) -> None:
    run = train_here(stop_after=2)
    run.update_record(status="running")
    with pytest.raises(UserError, match="has not ended"):
        export(run, tmp_path / "x")
