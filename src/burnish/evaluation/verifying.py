"""Whether the answers in a store still earn their scores: where it is cheap, its reward is asked once more."""

from __future__ import annotations

from burnish.config.evaluation import EvalConfig
from burnish.errors import UserError
from burnish.evaluation.choosing import choice_score, measures_of
from burnish.evaluation.generate import score_again
from burnish.evaluation.store import EvalStore
from burnish.rewards.combine import reward_of
from burnish.rollout.plays import judge_fingerprints
from burnish.rollout.reward_model import is_model


def rescored(store: EvalStore) -> list[str]:
    """Score every stored answer again: a line for each one that gets another score, and for code that changed.

    Raises:
        UserError: there is no reward to score with.
    """
    record, samples = store.record(), store.samples()
    if "config" not in record:
        raise UserError(f"{store.path} was imported: there is no reward to score with")
    config = EvalConfig.model_validate(record["config"])
    task = config.task
    if task.kind != "generate":
        right = {item["id"]: item["right"] for item in store.items()}
        found = [choice_score(measures_of(line["compared"], task.normalise), right[line["id"]]) for line in samples]
        return _differences(samples, [{"score": score, "failure": None} for score in found])
    if task.environment is not None or is_model(task.reward):
        raise UserError(f"{store.path}: an environment or a reward model is not asked again; leave --rescore out")
    again = score_again(
        reward_of(task.reward),
        store.items(),
        samples,
        right_at=task.right_at,
        timeout_seconds=task.reward_timeout_seconds,
    )
    faults = _differences(samples, again)
    kept = record["settings"]["scoring"]["reward"]
    changed = [path for path, found in judge_fingerprints(task).items() if kept.get(path) != found]
    return [*faults, *(f"the code of {path} is not what it was" for path in changed)] if faults else faults


def _differences(samples: list[dict[str, object]], again: list[dict[str, object]]) -> list[str]:
    return [
        f"samples.jsonl: item {line['id']!r}, sample {line['sample']} has score {line['score']}, and now "
        f"{new['score'] if new['failure'] is None else new['failure']}"
        for line, new in zip(samples, again, strict=True)
        if line["score"] != new["score"]
    ]
