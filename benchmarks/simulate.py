"""Step time and idle shares of layouts that are not here, from the phase times of a run that was.

    python benchmarks/simulate.py RUN [--learners 1 2 4] [--generators 1 2 4] [--lag 0 1 2] [--efficiency 1.0]

RUN is a run folder of one process. Its median seconds of sampling and learning are divided by the number of generators
and learners (to the power `--efficiency`), and the schedule of `rollout.lag` is played: a step is sampled when the
weights of the step before the lag are published and the generators are free; it is learnt from when it is sampled and
the learners are free. So its staleness is the lag, from the step on that has so many before it, whatever the times.
Every process is taken to have processors of its own: with fewer, the times are a lower bound.
"""

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

NUM_STEPS = 200


@dataclass(frozen=True, slots=True)
class Schedule:
    """Seconds of a step, and the shares of it in which each side waits."""

    step_seconds: float
    idle_learners: float
    idle_generators: float


def schedule(sample: float, learn: float, publish: float, lag: int) -> Schedule:
    """Play the steps. The times are of one step, in seconds, as the whole of each side takes them."""
    generators_free, learnt = 0.0, [0.0]
    for step in range(NUM_STEPS):
        published = learnt[max(0, step - lag)]
        generators_free = max(generators_free, published) + sample
        learnt.append(max(learnt[-1], generators_free) + learn + publish)
    half = NUM_STEPS // 2  # when it has settled
    seconds = (learnt[-1] - learnt[half]) / (NUM_STEPS - half)
    return Schedule(seconds, 1 - (learn + publish) / seconds, 1 - sample / seconds)


def main() -> None:
    """Read the arguments, play every layout, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    for name, default in {"learners": [1, 2, 4], "generators": [1, 2, 4], "lag": [0, 1, 2]}.items():
        parser.add_argument(f"--{name}", type=int, nargs="+", default=default)
    parser.add_argument("--efficiency", type=float, default=1.0)
    parser.add_argument("--publish-seconds", type=float, default=0.0)
    arguments = parser.parse_args()
    lines = [json.loads(line) for line in (arguments.run / "metrics.jsonl").read_text().splitlines()][1:]
    sample, learn = (statistics.median(line[key] for line in lines) for key in ("seconds_sample", "seconds_learn"))
    print(f"measured: sampling {sample:.2f} s, learning {learn:.2f} s a step\n")
    print("| learners | generators | lag | step s | learners idle | generators idle |\n|---|---|---|---|---|---|")
    for learners in arguments.learners:
        for generators in arguments.generators:
            for lag in arguments.lag:
                found = schedule(
                    sample / generators**arguments.efficiency,
                    learn / learners**arguments.efficiency,
                    arguments.publish_seconds,
                    lag,
                )
                idle = f"{found.idle_learners:.0%} | {found.idle_generators:.0%}"
                print(f"| {learners} | {generators} | {lag} | {found.step_seconds:.2f} | {idle} |")


if __name__ == "__main__":
    main()
