"""A run's record in the forms that others read: lock file, Containerfile, ML-BOM, provenance, RO-Crate.

Everything is text that is made from the record alone; nothing is fetched and nobody is told.
"""

import uuid
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

_BUILD_TYPE = "urn:burnish:training:1"


def lock_file(record: Mapping[str, Any]) -> str:
    """Every installed package at its version, as pip reads it. burnish itself is told by its hash."""
    package = record["code"]["package"]
    environment = record["environment"]
    lines = [
        f"# Python {environment['python']}, {environment['system']} {environment['machine']}",
        f"# burnish {package['version']}, sha256 of its files {package['sha256']}",
    ]
    # A local version (+cpu) names a build of an index of its own; the public index has the version without it.
    packages = environment["packages"].items()
    lines += [f"{name}=={version.partition('+')[0]}" for name, version in packages if name != "burnish"]
    return "\n".join(lines) + "\n"


def containerfile(record: Mapping[str, Any]) -> str:
    """A recipe for an image in which the run can be repeated; the base image is an argument."""
    python = record["environment"]["python"]
    variables = {
        name: value
        for name, value in record["environment"]["variables"].items()
        if name.startswith(("OMP_", "MKL_", "ATEN_", "ONEDNN_", "CUBLAS_")) and "\n" not in value and '"' not in value
    }
    lines = [
        f"# An image with Python {python}, such as python:{python}-slim of the mirror that you use",
        "ARG BASE",
        "FROM ${BASE}",
        "COPY requirements.lock /tmp/requirements.lock",
        "RUN python -m pip install --no-cache-dir --no-deps -r /tmp/requirements.lock",
        "# the package itself: a wheel of the version and hash that requirements.lock names",
        "COPY *.whl /tmp/",
        "RUN python -m pip install --no-cache-dir --no-deps /tmp/*.whl",
        *(f'ENV {name}="{value}"' for name, value in variables.items()),
        "WORKDIR /work",
        'ENTRYPOINT ["burnish"]',
    ]
    return "\n".join(lines) + "\n"


def ml_bom(
    run_id: str, record: Mapping[str, Any], weights: Mapping[str, str], figures: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """CycloneDX 1.6: the trained model with its card, what it was made from, and the packages. `weights` are the hashes
    of its files; a figure has `name`, `value`, `low`, `high`.
    """
    packages = [
        {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
        for name, version in record["environment"]["packages"].items()
        for purl in [f"pkg:pypi/{name}@{quote(version)}"]
    ]
    model = {
        "type": "machine-learning-model",
        "bom-ref": f"model:{run_id}",
        "name": run_id,
        "version": run_id,
        "components": _file_components(weights),
        "modelCard": _model_card(record, figures),
    }
    origin = {
        "type": "machine-learning-model",
        "bom-ref": "model:base",
        "name": record["model"]["source"],
        "components": _file_components(_base_model(record)),
    }
    version = record["code"]["package"]["version"]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, run_id + record['created'])}",
        "version": 1,
        "metadata": {
            "timestamp": record.get("finished", record["created"]),
            "tools": {"components": [{"type": "application", "name": "burnish", "version": version}]},
            "component": model,
        },
        "components": [origin, *packages],
        "dependencies": [
            {"ref": model["bom-ref"], "dependsOn": ["model:base", *(each["bom-ref"] for each in packages)]}
        ],
    }


def _model_card(record: Mapping[str, Any], figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    metrics = [
        {
            "type": figure["name"],
            "value": repr(figure["value"]),
            "confidenceInterval": {"lowerBound": repr(figure["low"]), "upperBound": repr(figure["high"])},
        }
        for figure in figures
    ]
    datasets = [
        {"type": "dataset", "name": name, "contents": {"properties": [{"name": "sha256", "value": content}]}}
        for name, content in _data(record).items()
    ]
    return {
        "modelParameters": {"task": "text-generation", "datasets": datasets},
        "quantitativeAnalysis": {"performanceMetrics": metrics},
    }


def _file_components(hashes: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {"type": "file", "name": name, "hashes": [{"alg": "SHA-256", "content": content}]}
        for name, content in hashes.items()
    ]


def provenance(
    run_id: str, record: Mapping[str, Any], weights: Mapping[str, str], config_sha256: str
) -> dict[str, Any]:
    """An in-toto statement (v1) with a SLSA provenance (v1) of the weights. It is not signed."""
    repository = record["code"]["repository"]
    materials = [
        {"uri": f"file:{name}", "digest": {"sha256": content}} for name, content in _base_model(record).items()
    ]
    materials += [{"name": name, "digest": {"sha256": content}} for name, content in _data(record).items()]
    if repository is not None and repository["commit"] is not None:
        materials.append({"uri": f"git+file://{repository['root']}", "digest": {"gitCommit": repository["commit"]}})
        if repository["diff"] is not None:
            materials.append({"name": "code.diff", "digest": {"sha256": repository["diff"]["sha256"]}})
    package = record["code"]["package"]
    materials.append({"name": f"burnish {package['version']}", "digest": {"sha256": package["sha256"]}})
    metadata = {"invocationId": run_id, "startedOn": record["created"]}
    if "finished" in record:
        metadata["finishedOn"] = record["finished"]
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": content}} for name, content in weights.items()],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": _BUILD_TYPE,
                "externalParameters": {"settings": record["settings"], "seed": record["seed"]},
                "internalParameters": {"config.yaml": {"sha256": config_sha256}},
                "resolvedDependencies": materials,
            },
            "runDetails": {
                "builder": {"id": f"urn:burnish:{package['version']}"},
                "metadata": metadata,
                "byproducts": [
                    {"name": name, "digest": {"sha256": content}} for name, content in record.get("outputs", {}).items()
                ],
            },
        },
    }


def ro_crate(run_id: str, record: Mapping[str, Any], files: Mapping[str, str]) -> dict[str, Any]:
    """RO-Crate 1.3 with the profile of Process Run Crate 0.6: one action, made with burnish, from inputs to results.
    `files` are those of the exported folder with what each is.
    """
    inputs = {**_base_model(record), **_data(record)}
    things = [
        {"@id": f"#input-{index}", "@type": "CreativeWork", "name": name, "identifier": f"sha256:{content}"}
        for index, (name, content) in enumerate(inputs.items())
    ]
    parts = [{"@id": name} for name in files]
    software = {
        "@id": "#burnish",
        "@type": "SoftwareApplication",
        "name": "burnish",
        "version": record["code"]["package"]["version"],
    }
    action = _training_action(run_id, record, things, parts)
    profile = "https://w3id.org/ro/wfrun/process/0.6"
    root = {
        "@id": "./",
        "@type": "Dataset",
        "name": run_id,
        "description": f"A training of a language model with burnish: {run_id}",
        "datePublished": record.get("finished", record["created"]),
        "license": "not stated",
        "conformsTo": {"@id": profile},
        "hasPart": parts,
        "mentions": {"@id": "#training"},
    }
    metadata = {
        "@id": "ro-crate-metadata.json",
        "@type": "CreativeWork",
        "about": {"@id": "./"},
        "conformsTo": {"@id": "https://w3id.org/ro/crate/1.3"},
    }
    return {
        "@context": "https://w3id.org/ro/crate/1.3/context",
        "@graph": [
            metadata,
            root,
            {"@id": profile, "@type": "CreativeWork", "name": "Process Run Crate", "version": "0.6"},
            software,
            action,
            *things,
            *({"@id": name, "@type": "File", "name": what} for name, what in files.items()),
        ],
    }


def _training_action(
    run_id: str, record: Mapping[str, Any], inputs: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    action = {
        "@id": "#training",
        "@type": "CreateAction",
        "name": f"training of {run_id}",
        "instrument": {"@id": "#burnish"},
        "object": [{"@id": each["@id"]} for each in inputs],
        "result": list(results),
        "startTime": record["created"],
        "actionStatus": {
            "@id": "http://schema.org/CompletedActionStatus"
            if record["status"] == "finished"
            else "http://schema.org/FailedActionStatus"
        },
    }
    if "finished" in record:
        action["endTime"] = record["finished"]
    return action


def _base_model(record: Mapping[str, Any]) -> dict[str, str]:
    return {PurePath(name).name: content for name, content in record["model"]["sha256"].items()}


def _data(record: Mapping[str, Any]) -> dict[str, str]:
    """Name and hash of each side of the data."""
    sides = record.get("tasks", record.get("examples", {}))
    return {f"{name} data": side["sha256"] for name, side in sides.items()}
