"""What a run's answers got: its reward, a gold score, and what the answers look like; read from the run folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from burnish.errors import DataError, UserError
from burnish.records import Completion, Task
from burnish.reproducibility.run_folder import RunFolder
from burnish.rewards.scoring import Reward, Score, ScoreFailure, require_scores, score_all
from burnish.rewards.shape import repetition_penalty

_MARKUP = re.compile(r"[*#`_|<>{}\[\]\\$]|\n")
_NGRAM = 3

Floats = NDArray[np.float64]
Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gold:
    """Another reward that judges stored answers; `tasks` by id have what it may need beside the question."""

    path: str
    reward: Reward
    tasks: Mapping[str, Task]
    timeout_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The rollouts of a run, each of shape [N]; gold is NaN where there is none. Groups are numbered over all steps."""

    step: NDArray[np.int64]
    group: NDArray[np.int64]
    prompt: NDArray[np.str_]
    weight_version: NDArray[np.int64]
    proxy: Floats
    gold: Floats
    forms: Mapping[str, Floats]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunScores:
    """Held-out items [I] at the evaluated steps [N], NaN where an answer has no score; KL in nats a completion."""

    run: str
    gold: str
    is_independent: bool
    steps: tuple[int, ...]
    kl_N: Floats | None
    proxy_IN: Floats
    gold_IN: Floats
    forms: Mapping[str, Floats]
    rollouts: Answers
    notes: tuple[str, ...]


def read_run_scores(run: RunFolder, *, right_at: float, gold: Gold | None) -> RunScores:
    """Read the evaluations and rollouts of a run; without `gold` it is whether the reward reaches `right_at`.

    Raises:
        UserError: the run has no evaluations or no rollouts: its algorithm asks no questions, or it has just begun.
        DataError: the evaluations are not of the same items, a file was changed since the run ended, or `gold` fails
            for more than half of them.
    """
    steps, stored = run.steps("evaluations"), run.steps("rollouts")
    if not steps or not stored:
        missing = "evaluations" if not steps else "rollouts"
        raise UserError(f"run {run.path.name} has no {missing}: an audit needs a run that sampled answers to tasks")
    run.require_unchanged(("config.yaml", "metrics.jsonl", "evaluations/", "rollouts/"))
    evaluations = [run.read_step("evaluations", step) for step in steps]
    ids = [item["id"] for item in evaluations[0]]
    for step, items in zip(steps, evaluations, strict=True):
        if [item["id"] for item in items] != ids:
            raise DataError(f"run {run.path.name}: step {step} was evaluated on other items than step {steps[0]}")
        if any("reward" not in item for item in items):
            raise UserError(f"run {run.path.name} stores no reward of its held-out answers: it cannot be audited")
    notes = []
    if stored[0] > 1:
        notes.append(f"rollouts are stored from step {stored[0]} on: earlier ones made room for later ones")
    if gold is None:
        notes.append(
            "gold is the training reward at evaluation.right_at: it cannot show that the reward itself is wrong; "
            "--gold names a reward that can"
        )
    by_step = {step: run.read_step("rollouts", step) for step in stored}
    kl_N = _kl_at(run, steps)
    scored = [_gold_scores(gold, [(item["id"], item["answer"], item) for item in items]) for items in evaluations]
    held_out = np.array([[_number(item["score"]) for item in items] for items in evaluations]).T
    return RunScores(
        run=run.path.name,
        gold="the training reward at evaluation.right_at" if gold is None else gold.path,
        is_independent=gold is not None,
        steps=tuple(steps),
        kl_N=kl_N,
        proxy_IN=np.array([[_number(item["reward"]) for item in items] for items in evaluations]).T,
        gold_IN=held_out if gold is None else np.array(scored).T,
        forms={
            name: np.array([[form(item)[name] for item in items] for items in evaluations]).T
            for name in form(evaluations[0][0])
        },
        rollouts=_answers(by_step, right_at, gold),
        notes=tuple(notes),
    )


def form(answer: Line) -> dict[str, float]:
    """What an answer looks like: its length, the share of repeated 3-grams, marks of markup, cut off or not."""
    count = len(answer["token_ids"])
    return {
        "tokens": float(count),
        "log_tokens": float(np.log1p(count)),
        "words": float(len(answer["text"].split())),
        "repeated": -repetition_penalty(answer["token_ids"], _NGRAM),
        "markup": float(len(_MARKUP.findall(answer["text"]))),
        "truncated": float(answer["finish_reason"] == "length"),
    }


NUM_FEATURES_NEED = 50
"""Answers below which so many features are too many."""


def _kl_at(run: RunFolder, steps: Sequence[int]) -> Floats | None:
    """The KL of the weights that were evaluated after each step, nats a completion.

    Step s + 1 samples with the weights that step s made; the last step's are measured by nobody, so the KL one update
    before stands for them.
    """
    measured = {line["step"]: line.get("kl_per_completion") for line in run.metrics()}
    measured = {step: kl for step, kl in measured.items() if kl is not None}
    found = [0.0 if step == 0 else measured.get(step + 1, measured.get(step)) for step in steps]
    known = [kl for kl in found if kl is not None]
    return np.maximum(np.array(known), 0.0) if measured and len(known) == len(found) else None


def _answers(by_step: Mapping[int, Sequence[Line]], right_at: float, gold: Gold | None) -> Answers:
    rows = [
        (step, number, line, rollout)
        for number, (step, line) in enumerate((step, line) for step, lines in by_step.items() for line in lines)
        for rollout in line["rollouts"]
    ]
    proxy = np.array([float(rollout["reward"]) for *_, rollout in rows])
    forms = [form(rollout) for *_, rollout in rows]
    judged = _gold_scores(gold, [(line["task_id"], line["answer"], rollout) for _, _, line, rollout in rows])
    return Answers(
        step=np.array([step for step, *_ in rows]),
        group=np.array([number for _, number, *_ in rows]),
        prompt=np.array([line["task_id"] for _, _, line, _ in rows]),
        weight_version=np.array([line["weight_version"] for _, _, line, _ in rows]),
        proxy=proxy,
        gold=(proxy >= right_at).astype(np.float64) if gold is None else np.array(judged),
        forms={name: np.array([each[name] for each in forms]) for name in forms[0]},
    )


def _gold_scores(gold: Gold | None, answers: Sequence[tuple[str, str, Line]]) -> list[float]:
    """The gold score of stored answers, each with the id and the reference answer of its task; NaN for a failure."""
    if gold is None:
        return []
    pairs = []
    for task_id, reference, line in answers:
        task = gold.tasks.get(task_id)
        if task is None or task.answer != reference:
            raise DataError(f"task.source has changed since the run: its task {task_id} is not what the run was asked")
        pairs.append((_completion(line), task))
    scores = score_all(gold.reward, pairs, timeout_seconds=gold.timeout_seconds)
    failures = [score.reason for score in scores if isinstance(score, ScoreFailure)]
    try:
        require_scores(failures, len(scores))
    except DataError as error:
        raise DataError(str(error).replace("task.reward", f"--gold {gold.path}")) from error
    return [score.value if isinstance(score, Score) else float("nan") for score in scores]


def _completion(line: Line) -> Completion:
    zeros = (0.0,) * len(line["token_ids"])
    return Completion(
        token_ids=tuple(line["token_ids"]),
        text=line["text"],
        sampling_logprobs=zeros,
        model_logprobs=zeros,
        finish_reason=line["finish_reason"],
    )


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
