"""False alarms of the drift watch while nothing changes, and how many answers it takes to find what does.

    python scripts/simulate_drift.py            # a quarter of an hour of one core
    python scripts/simulate_drift.py --runs 40

Each row of the first table is a share of simulated servers that raised an alarm in 30 looks, with its 95% Wilson
interval. The first row must not lie above alpha by more than that interval. The others are not held to it: their
answers depend on each other, or their hours differ from the reference, and the table says what that costs. The second
table is the delay from a change to its alarm, the third the run lengths of Page-Hinkley. Exit status 1 if a row that
is held to something fails. Seeded: the same rows every time.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np

from burnish.config.serving import DriftConfig
from burnish.serving.drift import AnswerRecord, DriftWatch
from burnish.stats.drift import PageHinkley
from burnish.stats.intervals import wilson_interval

CONFIG = DriftConfig()
PER_DAY = 5_000  # answers
_BLOCK = 500
_MOST_WINDOWS = 20
_PSI_LIMIT = 0.1


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What is asked and answered. Lengths are log-normal; `day` is the height of a wave over the day, in standard
    deviations of log-lengths and log-probabilities; `user_share` is the share of their variance that the questions of
    one user have in common, who asks five on average, one after the other."""

    prompt_tokens: float = 150.0
    answer_tokens: float = 60.0
    refusals: float = 0.02
    cut_off: float = 0.05
    repeating: float = 0.10
    distinct: float = 0.85
    logprob: float = -0.5
    reward: float = 0.6
    day: float = 0.0
    user_share: float = 0.0


def answers(traffic: Traffic, rng: np.random.Generator, *, start: int = 0) -> Iterator[AnswerRecord]:
    """Without end; `start` is the time of day of the first, in answers."""
    while True:
        wave = traffic.day * np.sin(2 * math.pi * (start + np.arange(_BLOCK)) / PER_DAY)
        user = np.cumsum(rng.random(_BLOCK) < 0.2)
        own, common = rng.standard_normal((3, _BLOCK)), rng.standard_normal((3, _BLOCK + 1))[:, user]
        z = math.sqrt(1 - traffic.user_share) * own + math.sqrt(traffic.user_share) * common + wave
        chance = rng.random((4, _BLOCK))
        distinct = rng.beta(40 * traffic.distinct, 40 * (1 - traffic.distinct), _BLOCK)
        repeated = np.where(chance[0] < traffic.repeating, rng.uniform(0, 0.3, _BLOCK), 0.0)
        for i in range(_BLOCK):
            yield AnswerRecord(
                prompt_tokens=1 + int(traffic.prompt_tokens * math.exp(z[0, i])),
                answer_tokens=1 + int(traffic.answer_tokens * math.exp(0.6 * z[1, i])),
                finish_reason="length" if chance[1, i] < traffic.cut_off else "stop",
                is_refusal=bool(chance[2, i] < traffic.refusals),
                repeated_share=float(repeated[i]),
                distinct_share=float(distinct[i]),
                mean_logprob=traffic.logprob + 0.2 * float(z[2, i]),
                reward=float(chance[3, i] < traffic.reward),
            )
        start += _BLOCK


@dataclass(frozen=True, kw_only=True)
class Row:
    what: str
    found: int
    runs: int
    is_held: bool = False

    @property
    def share(self) -> float:
        return self.found / self.runs

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(self.found, self.runs)

    @property
    def holds(self) -> bool:
        return not self.is_held or self.interval[0] <= CONFIG.alpha


def raises_alarm(traffic: Traffic, config: DriftConfig, rng: np.random.Generator) -> tuple[bool, bool]:
    """Whether the looks that share alpha raise one alarm or more; whether some PSI passes the usual 0.1."""
    watch, source = DriftWatch(config), answers(traffic, rng)
    for _ in range(config.reference):
        watch.add(next(source))
    alarm = passes = False
    for look in range(config.looks):
        for _ in range(config.window or 0):
            watch.add(next(source))
        findings = watch.look(float(look))
        alarm |= any(each.is_drifting for each in findings)
        passes |= any((each.psi or 0.0) > _PSI_LIMIT for each in findings)
    return alarm, passes


def false_alarms(runs: int, config: DriftConfig = CONFIG, seed: int = 0) -> list[Row]:
    """No change, and answers that do not depend on each other; the same with the usual limit of PSI."""
    seen = [raises_alarm(Traffic(), config, np.random.default_rng([seed, 0, run])) for run in range(runs)]
    alarms, passes = (sum(each[kind] for each in seen) for kind in (0, 1))
    return [
        Row(what="independent answers", found=alarms, runs=runs, is_held=True),
        Row(what="control: the same, some PSI above 0.1", found=passes, runs=runs),
    ]


def dependent_alarms(runs: int, seed: int = 0) -> Iterator[Row]:
    """No change from day to day, but answers that depend on the hour or on who asks."""
    whole_day = CONFIG.model_copy(update={"reference": PER_DAY})
    cases = [
        ("day wave of 0.1, reference of a fifth of a day", Traffic(day=0.1), CONFIG),
        ("day wave of 0.1, reference of a day", Traffic(day=0.1), whole_day),
        ("day wave of 0.3, reference of a fifth of a day", Traffic(day=0.3), CONFIG),
        ("day wave of 0.3, reference of a day", Traffic(day=0.3), whole_day),
        ("users of 5 questions, correlation 0.1", Traffic(user_share=0.1), CONFIG),
        ("users of 5 questions, correlation 0.3", Traffic(user_share=0.3), CONFIG),
    ]
    for index, (what, traffic, config) in enumerate(cases, start=1):
        seen = [raises_alarm(traffic, config, np.random.default_rng([seed, index, run]))[0] for run in range(runs)]
        yield Row(what=what, found=sum(seen), runs=runs)


CHANGES = {
    "prompts 1.5 times as long": ("prompt_tokens", Traffic(prompt_tokens=225.0)),
    "prompts twice as long": ("prompt_tokens", Traffic(prompt_tokens=300.0)),
    "answers 1.1 times as long": ("answer_tokens", Traffic(answer_tokens=66.0)),
    "answers 1.25 times as long": ("answer_tokens", Traffic(answer_tokens=75.0)),
    "answers 1.5 times as long": ("answer_tokens", Traffic(answer_tokens=90.0)),
    "refusals 2 to 5 %": ("is_refusal", Traffic(refusals=0.05)),
    "refusals 2 to 10 %": ("is_refusal", Traffic(refusals=0.10)),
    "cut off 5 to 15 %": ("finish_reason", Traffic(cut_off=0.15)),
    "repeating 10 to 30 % of answers": ("repeated_share", Traffic(repeating=0.30)),
    "different tokens 85 to 80 %": ("distinct_share", Traffic(distinct=0.80)),
    "mean log-probability -0.5 to -0.6": ("mean_logprob", Traffic(logprob=-0.6)),
    "right answers 60 to 50 %": ("reward", Traffic(reward=0.50)),
    "right answers 60 to 40 %": ("reward", Traffic(reward=0.40)),
}


def delay(feature: str, changed: Traffic, config: DriftConfig, rng: np.random.Generator) -> int | None:
    """Answers from a change at any place in a window to its alarm; None if 20 windows do not find it."""
    watch, before, after = DriftWatch(config), answers(Traffic(), rng), answers(changed, rng)
    size = config.window or 0
    for _ in range(config.reference + int(rng.integers(size))):
        watch.add(next(before))
    for count in range(1, _MOST_WINDOWS * size + 1):
        watch.add(next(after))
        if any(each.feature == feature and each.is_drifting for each in watch.look(0.0)):
            return count
    return None


def delays(what: str, runs: int, config: DriftConfig = CONFIG, seed: int = 0) -> list[int | None]:
    """Of so many servers."""
    index = list(CHANGES).index(what)
    return [delay(*CHANGES[what], config, np.random.default_rng([seed, 100 + index, run])) for run in range(runs)]


def run_lengths(runs: int, *, shift: float, is_skewed: bool, promised: float, seed: int = 0) -> list[int]:
    """Values until Page-Hinkley's alarm with a reference of 2,000; skewed ones are log-normal, as lengths are."""
    found = []
    for run in range(runs):
        rng = np.random.default_rng([seed, 200 + is_skewed, run])

        def draw(count: int, rng: np.random.Generator = rng) -> list[float]:
            values = np.exp(0.6 * rng.standard_normal(count)) if is_skewed else rng.standard_normal(count)
            return [float(value) for value in values]

        reference = draw(2_000)
        watch = PageHinkley.of_reference(reference, run_length=promised)
        assert watch is not None
        moved, count = shift * float(np.std(reference)), 0
        while True:
            count += 1
            if count % 1_000 == 1:
                block = draw(1_000)
            if watch.add(block[(count - 1) % 1_000] + moved):
                break
        found.append(count)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=400, help="servers of the first row; a quarter in other rows")
    runs = parser.parse_args().runs
    few = max(2, runs // 4)
    print(f"| nothing changes: an alarm in {CONFIG.looks} looks, alpha {CONFIG.alpha:g} | servers | share | 95% | |")
    print("|---|---|---|---|---|", flush=True)
    held = false_alarms(runs)
    for row in chain(held, dependent_alarms(few)):
        word = "not held to alpha" if not row.is_held else "holds" if row.holds else "FAILS"
        print(
            f"| {row.what} | {row.runs} | {row.share:.3f} | {row.interval[0]:.3f}, {row.interval[1]:.3f} | {word} |",
            flush=True,
        )
    print("\n| change | servers | found | answers until then: median | most |")
    print("|---|---|---|---|---|", flush=True)
    for what in CHANGES:
        seen = [each for each in delays(what, max(2, runs // 20)) if each is not None]
        median, most = (f"{np.median(seen):.0f}", str(max(seen))) if seen else ("-", "-")
        print(f"| {what} | {max(2, runs // 20)} | {len(seen)} | {median} | {most} |", flush=True)
    print("\n| Page-Hinkley, delta 0.25, run length 10,000 | runs | mean run | 95% |")
    print("|---|---|---|---|", flush=True)
    for what, shift, is_skewed in (
        ("normal values", 0.0, False),
        ("log-normal values", 0.0, True),
        ("normal, moved by 0.5", 0.5, False),
        ("log-normal, moved by 0.5", 0.5, True),
    ):
        lengths = run_lengths(few, shift=shift, is_skewed=is_skewed, promised=10_000)
        half = 1.96 * float(np.std(lengths)) / math.sqrt(few)
        mean = float(np.mean(lengths))
        print(f"| {what} | {few} | {mean:,.0f} | {mean - half:,.0f}, {mean + half:,.0f} |", flush=True)
    return 0 if all(row.holds for row in held) else 1


if __name__ == "__main__":
    sys.exit(main())
