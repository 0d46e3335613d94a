"""What training and evaluating took in a past run or evaluation."""

import json
from dataclasses import dataclass
from pathlib import Path

from burnish.errors import DataError
from burnish.reproducibility.run_folder import RunFolder, read_jsonl


@dataclass(frozen=True, slots=True, kw_only=True)
class PastCosts:
    """Seconds of one training run without its evaluations, and of one answer to one item with the tokens that it took;
    None where not known.

    `notes` say why something is not known, or how far it may be off.
    """

    source: str
    training_seconds: float | None
    answer_seconds: float | None
    answer_tokens: float | None
    notes: tuple[str, ...]


def past_costs(what: str, runs_folder: Path) -> PastCosts:
    """Read them from an eval store by its folder, or from a run.

    Raises:
        UserError: there is no such run.
    """
    if (Path(what) / "eval.json").is_file():
        return _of_store(Path(what))
    run = RunFolder.find(what, runs_folder)
    metrics = run.metrics()
    notes = []
    training_seconds = sum(float(line["seconds"]) for line in metrics) or None
    if training_seconds is None:
        notes.append(f"{run.path.name} has no step: seconds per training run are not known")
    elif (status := run.status()) != "finished":
        notes.append(f"{run.path.name} is {status}: its {len(metrics)} steps are taken for a whole run")
    seconds = answers = 0.0
    for line in metrics:
        if "seconds_evaluate" in line:
            seconds += float(line["seconds_evaluate"])
            answers += len(run.read_step("evaluations", line["step"]))
    if not answers:
        notes.append(f"{run.path.name} did not time its evaluations: seconds per answer are not known")
    return PastCosts(
        source=run.path.name,
        training_seconds=training_seconds,
        answer_seconds=seconds / answers if answers else None,
        answer_tokens=None,
        notes=tuple(notes),
    )


def _of_store(path: Path) -> PastCosts:
    try:
        record = json.loads((path / "eval.json").read_text(encoding="utf-8"))
        seconds = record.get("efficiency", {}).get("seconds")
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path / 'eval.json'} is not the record of an evaluation") from error
    samples = path / "samples.jsonl"
    answers = 0
    if samples.is_file():
        with samples.open("rb") as lines:
            answers = sum(line.endswith(b"\n") for line in lines)
    is_known = isinstance(seconds, int | float) and seconds > 0 and answers > 0
    tokens = [line["tokens"] for line in read_jsonl(path / "batches.jsonl") if "tokens" in line]
    notes = () if is_known else (f"{path.name} does not say how long it took: seconds per answer are not known",)
    return PastCosts(
        source=path.name,
        training_seconds=None,
        answer_seconds=seconds / answers if is_known else None,
        answer_tokens=sum(tokens) / answers if is_known and tokens else None,
        notes=notes,
    )
