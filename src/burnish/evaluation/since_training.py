"""Whether a run's model is evaluated with the tokenizer, the reward and the questions that it was trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from burnish.config.evaluation import EvalTaskConfig
from burnish.evaluation.table import asked_settings
from burnish.models.load import ModelFacts
from burnish.reproducibility.record import tokenizer_record
from burnish.reproducibility.run_folder import RunFolder
from burnish.rollout.plays import judge_fingerprints


def changed_since_training(
    run: RunFolder, model: ModelFacts, task: EvalTaskConfig, asked: Sequence[Mapping[str, Any]]
) -> list[str]:
    """A line for each thing that both know by the same name and that is another now. `asked` are the items."""
    record = run.record()
    allowed = record.get("changes", ())
    before = {**record, **(allowed[-1]["now"] if allowed else {})}
    kept = before.get("tokenizer") or {}
    changed = [
        f"the {part.replace('_', ' ')} of the tokenizer is another"
        for part, now in tokenizer_record(model.tokenizer).items()
        if part in kept and kept[part] != now
    ]
    if task.kind == "generate":
        judged = before.get("reward") or {}
        changed += [
            f"the code of {path} is another"
            for path, now in judge_fingerprints(task).items()
            if path in judged and judged[path] != now
        ]
    steps = run.steps("evaluations") if _asks_the_held_out_questions(run, task) else []
    if steps:
        then, now = asked_settings(run.read_step("evaluations", steps[-1])), asked_settings(asked)
        if then["items"] != now["items"]:
            changed.append("the questions that it holds out are others")
        elif len({each["extra"] for each in (then, now) if "extra" in each}) > 1:
            changed.append("the fields beside the questions that it holds out are others")
    return changed


def _asks_the_held_out_questions(run: RunFolder, task: EvalTaskConfig) -> bool:
    """Whether the run's own task was given, whole."""
    trained = run.config().get("task") or {}
    if task.split != "held_out" or task.num_items is not None or task.id_field is not None:
        return False
    now = task.model_dump(mode="json")
    return bool(trained) and all(now[key] == trained.get(key) for key in ("source", "held_out_source", "num_held_out"))
