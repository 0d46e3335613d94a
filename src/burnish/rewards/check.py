"""The audit of a user's reward before it trains anything: right answers, garbage and tricks, said in plain words."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from burnish.records import Completion, Task
from burnish.rewards.probes import PROBES, Kind
from burnish.rewards.scoring import Reward, Score, ScoreFailure, score_all

_PROBED_TASKS = 8
_WORTH_MENTIONING, _WORTH_LEARNING = 0.1, 0.5  # shares of what the reference answer gains
_SLOW_SECONDS = 1.0
GOLD = "the reference answer"

Severity = Literal["serious", "minor", "note"]
"""A run with a serious finding learns something else; a minor one is a way to gain a little, a note is to be known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """What one kind of answer scores. `mean` and `share` are None where there is nothing to take them of.

    `share` is 1 for what the reference answers of the same tasks score, and 0 for the lowest of an empty and a wrong
    answer. `failures` say why an answer has no score.
    """

    what: str
    kind: Kind | None
    num_tasks: int
    mean: float | None
    share: float | None
    failures: tuple[str, ...]
    seconds_per_answer: float


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to know about a reward, in a sentence."""

    severity: Severity
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardCheck:
    """What was tried, the reference answers first, and what was found, the worst first."""

    probes: tuple[ProbeResult, ...]
    findings: tuple[Finding, ...]

    @property
    def passes(self) -> bool:
        """Whether there is nothing but notes."""
        return all(finding.severity == "note" for finding in self.findings)


def check_reward(reward: Reward, tasks: Sequence[Task], *, timeout_seconds: float = 10.0) -> RewardCheck:
    """Try a reward on the reference answers of some tasks, and on every probe for the first eight of them.

    The reference answer, as the whole completion, must score above what does not hold it; garbage must get a finite
    number, in time; the same input the same number, in any order.
    """
    gold = [(as_completion(task.answer), task) for task in tasks]
    began = time.monotonic()
    gold_scores = score_all(reward, gold, timeout_seconds=timeout_seconds)
    seconds = (time.monotonic() - began) / len(gold)
    findings = _gold_findings(tasks, gold_scores)
    again = score_all(reward, gold[::-1], timeout_seconds=timeout_seconds)[::-1]
    for task, first, second in zip(tasks, gold_scores, again, strict=True):
        if isinstance(first, Score) and isinstance(second, Score) and first.value != second.value:
            text = f"{task.answer[:40]!r} scores {first.value:g}, then {second.value:g}: it is not repeatable"
            findings.append(Finding("serious", text))
            break
    tried = _try_probes(reward, tasks[:_PROBED_TASKS], gold_scores, timeout_seconds)
    failures = tuple(score.reason for score in gold_scores if isinstance(score, ScoreFailure))
    mean, share = (fmean(_values(gold_scores)), 1.0) if _values(gold_scores) else (None, None)
    first_row = ProbeResult(
        what=GOLD,
        kind=None,
        num_tasks=len(tasks),
        mean=mean,
        share=share,
        failures=failures,
        seconds_per_answer=seconds,
    )
    for (result, right), probe in zip(tried, PROBES, strict=True):
        findings += _probe_findings(result, right, probe.meaning)
    findings += _slow_findings([first_row, *(result for result, _ in tried)])
    order: dict[Severity, int] = {"serious": 0, "minor": 1, "note": 2}
    return RewardCheck(
        probes=(first_row, *(result for result, _ in tried if result.num_tasks)),
        findings=tuple(sorted(findings, key=lambda finding: order[finding.severity])),
    )


def as_completion(text: str) -> Completion:
    """A text as if a model had said it; its tokens are stand-ins, one a word."""
    count = max(1, len(text.split()))
    zeros = (0.0,) * count
    return Completion(
        token_ids=(0,) * count, text=text, sampling_logprobs=zeros, model_logprobs=zeros, finish_reason="stop"
    )


def _try_probes(
    reward: Reward, tasks: Sequence[Task], gold_scores: Sequence[Score | ScoreFailure], timeout_seconds: float
) -> list[tuple[ProbeResult, float | None]]:
    """Each probe, with the mean score of the reference answers of its tasks."""
    gold = {task.id: score.value for task, score in zip(tasks, gold_scores, strict=False) if isinstance(score, Score)}
    scored: list[tuple[list[Task], list[Score | ScoreFailure], float]] = []
    for probe in PROBES:
        pairs = [(as_completion(text), task) for task in tasks if (text := probe.answer(task, tasks)) is not None]
        began = time.monotonic()
        # one that fails would fail for the others too, and may take all of its time to do so
        scores = score_all(reward, pairs[:1], timeout_seconds=timeout_seconds)
        if scores and isinstance(scores[0], Score):
            scores += score_all(reward, pairs[1:], timeout_seconds=timeout_seconds)
        seconds = (time.monotonic() - began) / max(1, len(scores))
        scored.append(([task for _, task in pairs][: len(scores)], scores, seconds))
    floors = [
        fmean(_values(scores))
        for probe, (_, scores, _) in zip(PROBES, scored, strict=True)
        if probe.what in ("an empty answer", "a wrong answer") and _values(scores)
    ]
    tried: list[tuple[ProbeResult, float | None]] = []
    for probe, (probed, scores, seconds) in zip(PROBES, scored, strict=True):
        values = _values(scores)
        right = [gold[task.id] for task in probed if task.id in gold]
        mean = fmean(values) if values else None
        share = None
        if mean is not None and right and floors and fmean(right) > min(floors):
            share = (mean - min(floors)) / (fmean(right) - min(floors))
        result = ProbeResult(
            what=probe.what,
            kind=probe.kind,
            num_tasks=len(probed),
            mean=mean,
            share=share,
            failures=tuple(score.reason for score in scores if isinstance(score, ScoreFailure)),
            seconds_per_answer=seconds,
        )
        tried.append((result, fmean(right) if right else None))
    return tried


def _values(scores: Sequence[Score | ScoreFailure]) -> list[float]:
    return [score.value for score in scores if isinstance(score, Score)]


def _gold_findings(tasks: Sequence[Task], scores: Sequence[Score | ScoreFailure]) -> list[Finding]:
    findings = []
    failed = [(task, score) for task, score in zip(tasks, scores, strict=True) if isinstance(score, ScoreFailure)]
    if failed:
        task, failure = failed[0]
        more = f" (and {len(failed) - 1} more like it)" if len(failed) > 1 else ""
        findings.append(Finding("serious", f"{GOLD} {task.answer[:40]!r} has no score: {failure.reason}{more}"))
    values = _values(scores)
    if values and max(values) <= 0:
        text = f"no reference answer scores above 0: is {tasks[0].answer[:40]!r} what a right answer looks like?"
        findings.append(Finding("serious", text))
    elif values and min(values) < max(values) / 2:
        lowest = min(
            (score.value, task.answer) for task, score in zip(tasks, scores, strict=True) if isinstance(score, Score)
        )
        findings.append(Finding("minor", f"{GOLD} {lowest[1][:40]!r} scores {lowest[0]:g}, another {max(values):g}"))
    return findings


def _probe_findings(result: ProbeResult, right: float | None, meaning: str) -> list[Finding]:
    findings = []
    if result.failures:
        findings.append(Finding("serious", f"{result.what} has no score: {result.failures[0]}"))
    if result.mean is None or right is None:
        return findings
    compared = f"{result.what} scores {result.mean:.3g}"
    if result.mean > right + 1e-9:
        findings.append(Finding("serious", f"{compared}, more than {GOLD}'s {right:.3g}: {meaning}"))
    elif result.kind == "with the answer":
        if result.share is not None and result.share < 1 - _WORTH_MENTIONING:
            findings.append(Finding("note", f"{compared}, {GOLD} by itself {right:.3g}: a right answer can lose"))
    elif result.what == "a wrong answer" and result.mean >= right - 1e-9:
        findings.append(Finding("serious", f"{compared}, as much as {GOLD}: it does not tell right from wrong"))
    elif result.share is not None and result.share > _WORTH_MENTIONING:
        severity: Severity = "serious" if result.share >= _WORTH_LEARNING else "minor"
        text = f"{compared}, {result.share:.0%} of what {GOLD} gains ({right:.3g}): {meaning}"
        findings.append(Finding(severity, text))
    return findings


def _slow_findings(results: Sequence[ProbeResult]) -> list[Finding]:
    slowest = max(results, key=lambda result: result.seconds_per_answer)
    if slowest.seconds_per_answer < _SLOW_SECONDS or slowest.failures:
        return []
    text = f"{slowest.what} takes {slowest.seconds_per_answer:.1f} s to score: 64 completions wait for it that often"
    return [Finding("minor", text)]
