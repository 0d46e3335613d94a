"""Whether what is asked and answered is still like the reference: looks at every so many answers, and alarms."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError

from burnish.config.serving import DriftConfig
from burnish.errors import ConfigError
from burnish.reproducibility.files import write_text
from burnish.rewards.refusal import refuses
from burnish.rewards.shape import repetition_penalty
from burnish.stats.drift import (
    Comparison,
    StabilityIndex,
    dependent_p_value,
    design_effect,
    homogeneity_test,
    ks_test,
    stability_index,
    stability_of_counts,
)
from burnish.stats.multiple import holm_of_given

Phase = Literal["quiet", "begins", "lasts", "ends"]

_AGREES = 0.05  # a window that would not be told from the reference if it were the only one; far from what begins one
_NGRAM = 4
_BEGINNING = 50  # tokens; in longer texts the share of different ones falls by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRecord:
    """What is kept of an answer: nothing that was said.

    `repeated_share` of the answer's 4-grams stood in it before; `distinct_share` of its first 50 tokens are different.
    Both are numbers of an answer, so that answers are what counts. A histogram of tokens would count tokens, of which
    those of one answer are alike, and would find a change in every window.

    Raises:
        ValueError: a number is not finite.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    prompt_tokens: int
    answer_tokens: int
    finish_reason: str
    is_refusal: bool
    repeated_share: float
    distinct_share: float | None
    mean_logprob: float | None
    reward: float | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{each.name} is not a finite number")


def record_answer(
    *,
    prompt_tokens: int,
    token_ids: Sequence[int],
    logprobs: Sequence[float],
    text: str,
    finish_reason: str,
    reward: float | None = None,
) -> AnswerRecord:
    """The record of an answer; one without tokens has neither a mean log-probability nor a share of different ones."""
    beginning = token_ids[:_BEGINNING]
    return AnswerRecord(
        prompt_tokens=prompt_tokens,
        answer_tokens=len(token_ids),
        finish_reason=finish_reason,
        is_refusal=refuses(text),
        repeated_share=-repetition_penalty(token_ids, _NGRAM),
        distinct_share=len(set(beginning)) / len(beginning) if beginning else None,
        mean_logprob=math.fsum(logprobs) / len(logprobs) if logprobs else None,
        reward=reward,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftFinding:
    """What a look says of one feature.

    `p_value` is adjusted for all features and for the looks that share alpha: at most alpha is drift. None where there
    were too few to tell. An alarm is to be raised where the phase `begins`, and taken back where it `ends`; `since` is
    the time of the look that it began with. `psi` is for those who know it: `psi_limit` is what it rarely passes.
    """

    feature: str
    statistic: float | None
    p_value: float | None
    psi: float | None
    psi_limit: float | None
    phase: Phase
    since: float | None
    sentence: str

    @property
    def is_drifting(self) -> bool:
        """Whether an alarm is raised."""
        return self.phase in ("begins", "lasts")


class DriftWatch:
    """Compares the answers of each window with the reference, feature by feature.

    The reference is the first `reference` answers, or those of a file. Windows do not overlap, and each look spends
    alpha / looks, shared among the features by Holm's rule. So answers that are independent of each other, from traffic
    that does not change, raise a false alarm in at most `alpha` of such rows of looks. Answers that are like their
    neighbours, as those to one user are, count for less, by the design effect in the reference's order; that holds
    roughly. It does not hold where traffic follows the hours of the day: a wave of a tenth of a standard deviation
    raises an alarm in a third of such rows of looks, whether the reference covers the day or not, and a larger one in
    all, unless it does (scripts/simulate_drift.py; docs/log.md). A change that is smaller than a window can tell is
    never found, however long it lasts.

    A feature's alarm is raised once. It lasts until a window agrees with the reference, which is a stricter condition
    than not to differ at the level of alarms, so that a change near the border does not flicker.

    Memory is that of the reference and one window. It is to be used from one thread.
    """

    def __init__(self, config: DriftConfig) -> None:
        """Read the reference, if there is a file of one.

        Raises:
            ConfigError: the file cannot be read or written there, or has another number of answers.
            ValueError: `window` is null, which is to have no watch.
        """
        if config.window is None:
            raise ValueError("window is null: there is nothing to watch")
        self._config = config
        self._size = config.window
        self._window: deque[AnswerRecord] = deque(maxlen=config.window)
        self._reference: list[AnswerRecord] = []
        self._num_new = 0
        self._since: dict[str, float] = {}
        self._findings: list[DriftFinding] = []
        self._unsaved = config.reference_file
        if config.reference_file is not None:
            if config.reference_file.is_file():
                self.load_reference(config.reference_file)
                self._unsaved = None
            elif not config.reference_file.parent.is_dir():
                raise ConfigError(f"drift.reference_file={config.reference_file}: its folder is not there; make it")

    def add(self, record: AnswerRecord) -> None:
        """Take an answer: into the reference until that is complete, then into the window. Microseconds."""
        if len(self._reference) < self._config.reference:
            self._reference.append(record)
        else:
            self._window.append(record)
            self._num_new += 1

    def look(self, now: float) -> list[DriftFinding]:
        """Compare the last window, if it is full of answers that no look has seen; else nothing.

        It may be called as often as one likes; called late, it leaves out the answers before the last window. It takes
        50 ms with the settings as they are, and writes the reference's file when there is one to write.
        """
        if self._unsaved is not None and len(self._reference) == self._config.reference:
            file, self._unsaved = self._unsaved, None  # tried once: a folder that is gone must not end the watch
            self.save_reference(file)
        if self._num_new < self._size:
            return []
        self._num_new = 0
        columns = {name: feature(self._reference, self._window) for name, feature in _FEATURES.items()}
        adjusted = holm_of_given([None if each.test is None else each.test.p_value for each in columns.values()])
        self._findings = [
            self._judge(name, each, p_value, now)
            for (name, each), p_value in zip(columns.items(), adjusted, strict=True)
        ]
        return self._findings

    def _judge(self, name: str, found: _Compared, adjusted: float | None, now: float) -> DriftFinding:
        p_value = None if adjusted is None else min(1.0, adjusted * self._config.looks)
        was_drifting = name in self._since
        since = self._since.get(name)
        phase: Phase = "lasts" if was_drifting else "quiet"
        if not was_drifting and p_value is not None and p_value <= self._config.alpha:
            phase, since = "begins", now
            self._since[name] = now
        elif was_drifting and found.test is not None and found.test.p_value > _AGREES:
            phase = "ends"
            del self._since[name]
        sentence = found.change if phase in ("begins", "lasts") else found.agreement
        level = self._config.alpha / self._config.looks
        return DriftFinding(
            feature=name,
            statistic=None if found.test is None else found.test.statistic,
            p_value=p_value,
            psi=None if found.index is None else found.index.psi,
            psi_limit=None if found.index is None else found.index.limit(level),
            phase=phase,
            since=since,
            sentence=sentence if found.test is not None else f"{name}: too few to tell",
        )

    def findings(self) -> list[DriftFinding]:
        """What the last look said of each feature; nothing before the first."""
        return list(self._findings)

    def statistics(self) -> dict[str, float]:
        """For gauges: `FEATURE/statistic`, `/p_value`, `/psi`, `/psi_limit` and `/is_drifting` of the last look."""
        numbers = {"reference_answers": float(len(self._reference)), "new_answers": float(self._num_new)}
        for found in self._findings:
            each = {"statistic": found.statistic, "p_value": found.p_value, "psi": found.psi}
            each |= {"psi_limit": found.psi_limit, "is_drifting": float(found.is_drifting)}
            numbers |= {f"{found.feature}/{name}": value for name, value in each.items() if value is not None}
        return numbers

    def save_reference(self, path: Path) -> None:
        """Write the reference as JSON, aside and renamed.

        Raises:
            ValueError: it is not complete.
        """
        if len(self._reference) < self._config.reference:
            raise ValueError(f"the reference has {len(self._reference)} of {self._config.reference} answers yet")
        write_text(path, _RECORDS.dump_json(self._reference).decode() + "\n")

    def load_reference(self, path: Path) -> None:
        """Compare with the answers of a file from here on; what was found before is forgotten.

        Raises:
            ConfigError: it is no such file, or has another number of answers than `reference`.
        """
        try:
            records = _RECORDS.validate_json(path.read_bytes(), strict=True)
        except OSError as error:
            raise ConfigError(f"drift.reference_file={path}: cannot be read ({error.strerror})") from error
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ConfigError(
                f"drift.reference_file={path}: is no reference ({place or 'file'}: {first['msg']}); remove it"
            ) from error
        if len(records) != self._config.reference:
            raise ConfigError(
                f"drift.reference_file={path}: has {len(records)} answers, and drift.reference is "
                f"{self._config.reference}; give drift.reference={len(records)}, or remove the file"
            )
        self._reference = records
        self._window.clear()
        self._num_new = 0
        self._since.clear()
        self._findings = []


_RECORDS = TypeAdapter(list[AnswerRecord])


@dataclass(frozen=True, slots=True)
class _Compared:
    test: Comparison | None
    index: StabilityIndex | None
    change: str
    agreement: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Number:
    """A feature that is a number, in words: `what` it is of, and how more and less of it are said."""

    name: str
    what: str
    more: str
    less: str
    show: Callable[[float], str]
    unit: str = ""
    has_median: bool = False  # which a few long ones do not move; shares and scores have too many equal values for it

    def __call__(self, reference: Sequence[AnswerRecord], window: Sequence[AnswerRecord]) -> _Compared:
        old, new = self._column(reference), self._column(window)
        return _Compared(_less(ks_test(old, new), old), stability_index(old, new), *self._words(old, new))

    def _column(self, records: Sequence[AnswerRecord]) -> NDArray[np.float64]:
        values = (getattr(record, self.name) for record in records)
        return np.array([value for value in values if value is not None], dtype=np.float64)

    def _words(self, old: NDArray[np.float64], new: NDArray[np.float64]) -> tuple[str, str]:
        """What is said of a change, and of none."""
        if len(old) == 0 or len(new) == 0:
            return "", ""
        agreement = ""
        for name, measure in (("median", np.median), ("mean", np.mean))[0 if self.has_median else 1 :]:
            before, after = float(measure(old)), float(measure(new))
            shown = f"{name} {self.show(before)} to {self.show(after)}{self.unit}"
            agreement = agreement or f"{self.what} as in the reference: {shown}"
            if self.show(before) != self.show(after):
                return f"{self.more if after > before else self.less}: {shown}", agreement
        spreads = ["{} to {}".format(*(self.show(float(q)) for q in np.quantile(x, (0.1, 0.9)))) for x in (old, new)]
        return f"{self.what} spread otherwise: the middle 80 % was {spreads[0]}, is {spreads[1]}{self.unit}", agreement


@dataclass(frozen=True, slots=True, kw_only=True)
class _Category:
    """A feature that is a category: how it is read, and what "more" or "fewer" of a category are."""

    what: str
    are: str
    read: Callable[[AnswerRecord], str]

    def __call__(self, reference: Sequence[AnswerRecord], window: Sequence[AnswerRecord]) -> _Compared:
        old, new = (Counter(map(self.read, records)) for records in (reference, window))
        commonest = max(old, key=lambda name: old[name])
        test = _less(homogeneity_test(old, new), [float(self.read(record) == commonest) for record in reference])
        return _Compared(test, stability_of_counts(old, new), *self._words(old, new))

    def _words(self, old: Mapping[str, int], new: Mapping[str, int]) -> tuple[str, str]:
        """What is said of a change, and of none: by the category whose share changed most."""
        before, after = ({name: n / sum(counts.values()) for name, n in counts.items()} for counts in (old, new))
        # of two that change alike, the one that is rarer in the reference, such as refusals
        names = sorted({*before, *after}, key=lambda name: (before.get(name, 0.0), name))
        changed = max(names, key=lambda name: round(abs(after.get(name, 0.0) - before.get(name, 0.0)), 9))
        shown = f"{_percent(before.get(changed, 0.0))} to {_percent(after.get(changed, 0.0))}"
        more = "more" if after.get(changed, 0.0) > before.get(changed, 0.0) else "fewer"
        change = f"{more} answers {self.are} {changed}: {shown}"
        return change, f"{self.what} as in the reference: {changed} {shown}"


def _less(test: Comparison | None, in_order: ArrayLike) -> Comparison | None:
    """What a test is worth where neighbours are as alike as those of the reference."""
    if test is None:
        return None
    return replace(test, p_value=dependent_p_value(test.p_value, design_effect(in_order)))


def _tokens(value: float) -> str:
    return f"{value:,.1f}".removesuffix(".0")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _score(value: float) -> str:
    return f"{value:.3g}"


_FEATURES: dict[str, _Number | _Category] = {
    "prompt_tokens": _Number(
        name="prompt_tokens",
        what="lengths of prompts are",
        more="prompts are longer",
        less="prompts are shorter",
        show=_tokens,
        unit=" tokens",
        has_median=True,
    ),
    "answer_tokens": _Number(
        name="answer_tokens",
        what="lengths of answers are",
        more="answers are longer",
        less="answers are shorter",
        show=_tokens,
        unit=" tokens",
        has_median=True,
    ),
    "finish_reason": _Category(
        what="ends of answers are", are="end with", read=lambda record: f"`{record.finish_reason}`"
    ),
    "is_refusal": _Category(
        what="refusals are", are="are", read=lambda record: "refusals" if record.is_refusal else "no refusals"
    ),
    "repeated_share": _Number(
        name="repeated_share",
        what="repetitions in answers are",
        more="answers repeat themselves more",
        less="answers repeat themselves less",
        show=_percent,
    ),
    "distinct_share": _Number(
        name="distinct_share",
        what="numbers of different tokens in answers are",
        more="answers begin with more different tokens",
        less="answers begin with fewer different tokens",
        show=_percent,
    ),
    "mean_logprob": _Number(
        name="mean_logprob",
        what="log-probabilities of answers are",
        more="answers are likelier to the model",
        less="answers are less likely to the model",
        show=_score,
    ),
    "reward": _Number(
        name="reward",
        what="rewards are",
        more="rewards are higher",
        less="rewards are lower",
        show=_score,
    ),
}
