"""A run for others: what they need to judge it, and to repeat it, in one folder of plain files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from burnish.errors import UserError
from burnish.evaluation.held_out import compare_items, verdict
from burnish.reproducibility.differences import configuration_of
from burnish.reproducibility.documents import containerfile, lock_file, ml_bom, provenance, ro_crate
from burnish.reproducibility.files import replace_folder, sha256_of_file, write_text
from burnish.reproducibility.run_folder import RunFolder

_COPIED = {
    "run.json": "the record of the run",
    "config.yaml": "every setting",
    "metrics.jsonl": "a line for each step",
    "code.diff": "what differed from the commit",
}
_WRITTEN = {
    "MODEL_CARD.md": "the model card",
    "requirements.lock": "every package at its version",
    "Containerfile": "an image in which the run can be repeated",
    "bom.cdx.json": "bill of materials, CycloneDX 1.6",
    "provenance.intoto.json": "provenance, in-toto and SLSA",
}


def export(run: RunFolder, to: Path) -> list[str]:
    """Write the files into `to`, all or none. Returns their names.

    Raises:
        UserError: the run has not ended, or the folder exists.
        DataError: the run was changed since it ended.
    """
    record = run.whole_record()
    if "outputs" not in record or record["status"] == "running":
        raise UserError(f"run {run.path.name} has not ended: only what is sealed can be exported")
    if to.exists():
        raise UserError(f"{to} exists: give a folder that does not")
    run.require_unchanged()
    weights = _weights(run)
    figures = held_out_figures(run)
    copied = {name: what for name, what in _COPIED.items() if (run.path / name).is_file()}
    files = {**copied, **_WRITTEN}
    identity = run.path.name
    texts = {
        "MODEL_CARD.md": model_card(run, record, figures),
        "requirements.lock": lock_file(record),
        "Containerfile": containerfile(record),
        "bom.cdx.json": _json(ml_bom(identity, record, weights, figures)),
        "provenance.intoto.json": _json(
            provenance(identity, record, weights, sha256_of_file(run.path / "config.yaml"))
        ),
        "ro-crate-metadata.json": _json(ro_crate(identity, record, files)),
    }

    def write(aside: Path) -> None:
        for name in copied:
            shutil.copyfile(run.path / name, aside / name)
        for name, text in texts.items():
            write_text(aside / name, text)

    to.parent.mkdir(parents=True, exist_ok=True)
    replace_folder(to, write)
    return [*copied, *texts]


def held_out_figures(run: RunFolder) -> list[dict[str, Any]]:
    """The change of the held-out figure with its interval, where the run was evaluated twice."""
    steps = run.steps("evaluations")
    if len(steps) < 2:
        return []
    items = [run.read_step("evaluations", step) for step in (steps[0], steps[-1])]
    compared = compare_items(*items)
    measure = run.record()["measure"]
    return [
        {
            "name": f"gain in held-out {measure}, step {steps[0]} to {steps[-1]}, n = {compared.n}",
            "value": compared.difference,
            "low": compared.low,
            "high": compared.high,
            "text": verdict(measure, compared),
        }
    ]


def model_card(run: RunFolder, record: Mapping[str, Any], figures: list[dict[str, Any]]) -> str:
    """Markdown after Mitchell et al. 2019, with what the record knows; what it cannot know is asked for."""
    settings = configuration_of(run)
    repository, cost = record["code"]["repository"], record["cost"]
    commit = "none: it began outside of a repository" if repository is None else str(repository["commit"])
    if repository is not None and repository["is_changed"]:
        commit += ", with changes"
    sides = record.get("tasks", record.get("examples", {}))
    environment = record["environment"]
    lines = [
        f"# {run.path.name}",
        "",
        "## Model",
        "",
        f"- trained from: {record['model']['source']}",
        f"- status of the run: {record['status']}, {len(run.metrics())} of {settings['train.num_steps']} steps",
        f"- seed: {record['seed']} (one run; what other seeds give is not known from it)",
        f"- code: commit {commit}; burnish {record['code']['package']['version']}",
        "",
        "## Data",
        "",
        *(f"- {name}: {side['count']} rows, sha256 {side['sha256']}" for name, side in sides.items()),
        "",
        "## Evaluation",
        "",
        *([f"- {figure['text']}" for figure in figures] or ["- none: the run was not evaluated twice"]),
        "",
        "The interval is over held-out items, for this one seed.",
        "",
        "## Settings that are not the default",
        "",
        *(f"- `{key}`: `{json.dumps(value, ensure_ascii=False)}`" for key, value in record["settings"].items()),
        "",
        "## Cost",
        "",
        f"- {cost['seconds']:.0f} s of training, {cost['tokens']:.0f} tokens, "
        f"peak memory {cost['peak_memory_bytes'] / 1e9:.2f} GB",
        f"- {environment['cpu']}, {environment['num_threads']} threads; GPUs: "
        f"{', '.join(environment['torch']['gpus']) or 'none'}",
        "",
        "## To be written by you",
        "",
        "Intended use, uses out of scope, known limits, licence of data and weights.",
    ]
    return "\n".join(lines) + "\n"


def _weights(run: RunFolder) -> dict[str, str]:
    """File and hash of the newest checkpoint's weights."""
    manifests = sorted(run.checkpoints.glob("step-*/manifest.json"))
    if not manifests:
        raise UserError(f"run {run.path.name} has no checkpoint to export")
    hashes = json.loads(manifests[-1].read_text(encoding="utf-8"))["sha256"]
    place = manifests[-1].parent.name
    return {
        f"{place}/{name}": content
        for name, content in hashes.items()
        if name.endswith(".safetensors") and not name.endswith("optimizer.safetensors")
    }


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
