"""What an eval store holds: its figures, and in words how it was asked and what must be borne in mind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from burnish.errors import UserError
from burnish.evaluation.confidence import calibration_figure, calibration_of
from burnish.evaluation.figures import Figure, ShareInterval, counts, figures
from burnish.evaluation.position import PositionBias, position_bias
from burnish.evaluation.sample_figures import SampleGrid, sample_figures, usual_ks
from burnish.evaluation.store import EvalStore
from burnish.evaluation.table import ScoreTable
from burnish.stats.calibration import Calibration

_BY = {"none": "", "tokens": " per token", "bytes": " per byte"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a store is read."""

    level: float = 0.95
    interval: ShareInterval = "wilson"
    ks: Sequence[int] | None = None
    best_by: str | None = None
    plot: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreContent:
    """What is shown of a store."""

    store: EvalStore
    record: Mapping[str, Any]
    table: ScoreTable
    figures: Sequence[Figure]
    counts: Mapping[str, int]
    calibration: tuple[str, Calibration] | None
    position: PositionBias | None


def read_store(store: EvalStore, reading: Reading) -> StoreContent:
    """The figures of a store that is done.

    Raises:
        UserError: an impossible level.
        DataError: a file of it is not what was written.
    """
    if not 0 < reading.level < 1:
        raise UserError(f"--level {reading.level:g}: must lie between 0 and 1, as 0.95 does")
    record = store.record()
    table, samples = store.table(), store.samples()
    grid = SampleGrid.of(table, samples)
    ks = usual_ks(grid.num_samples) if reading.ks is None else reading.ks
    normalise = record.get("config", {}).get("task", {}).get("normalise")
    sure = calibration_of(grid, store.items(), normalise, level=reading.level)
    shown = [
        *figures(table, level=reading.level, interval=reading.interval),
        *sample_figures(grid, ks, best_by=reading.best_by, level=reading.level),
        *([] if sure is None else [calibration_figure(*sure)]),
    ]
    are_votes = record["settings"]["scoring"].get("imported") == "votes"
    return StoreContent(
        store=store,
        record=record,
        table=table,
        figures=shown,
        counts=counts(samples),
        calibration=sure,
        position=position_bias(samples) if are_votes else None,
    )


def counted(number: int, thing: str) -> str:
    """So many things, in the plural where there is not one."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def asked(record: Mapping[str, Any]) -> str:
    """How many items there are, how answers were drawn, and what judged them."""
    task, settings = record["task"], record["settings"]
    parts = [counted(task["num_items"], "item"), f"{counted(record['samples_per_item'], 'answer')} each"]
    if task["kind"] in ("choices", "pairs"):
        normalise = settings["scoring"]["normalise"]
        by = "the value" if record["origin"].get("is_reward_model") else f"log-probability{_BY[normalise]}"
        return f"{parts[0]}, {task['kind']} compared by {by}"
    if (drawn := settings.get("sampling")) is not None:
        parts.append("greedy" if drawn["temperature"] == 0 else f"temperature {drawn['temperature']:g}")
        parts.append(f"at most {counted(drawn['max_tokens'], 'token')}")
    if "perturb" in settings:
        parts.append(f"questions changed by {settings['perturb']}")
    scoring = settings["scoring"]
    if scoring.get("reward"):
        parts.append("judged by " + " and ".join(scoring["reward"]))
        if scoring["right_at"] is not None:
            parts.append(f"right from {scoring['right_at']:g}")
    elif scoring.get("imported"):
        parts.append(f"imported from {scoring['imported']}")
    return ", ".join(parts)


def remarks(content: StoreContent) -> Iterator[str]:
    """What whoever reads the figures should know, a line each."""
    number, record = content.counts, content.record
    if number["unscored"]:
        known = content.table.scores_IK[np.isfinite(content.table.scores_IK)]
        are_shares = len(known) and known.min() >= 0 and known.max() <= 1
        yield (
            f"{number['unscored']} of {number['answers']} answers have no score and "
            f"{'count as wrong' if are_shares else 'are left out'}: see `failure` in samples.jsonl"
        )
    if (place := content.position) is not None:
        yield (
            f"the same winner in both orders in {place.num_same} of {place.num_pairs} pairs; else what stood first "
            f"{counted(place.num_first, 'time')}, what stood second {place.num_second} (p {place.p_value:.2g})"
        )
    if number["cut_off"]:
        yield f"{number['cut_off']} of {number['answers']} answers were cut off at sampling.max_tokens"
    if record["origin"].get("was_selected_on"):
        yield (
            "this checkpoint is not the run's last, and the run was evaluated on these items: if it was picked by its "
            "score there, the score is too high"
        )
    for change in record["origin"].get("differs_from_run", ()):
        yield f"not as in training: {change}"
    if record["samples_per_item"] > 1 and "config" in record and record["config"]["task"]["parser"] is None:
        yield "no vote among answers (maj@k): task.parser is not set"
    if efficiency := record.get("efficiency"):
        yield _efficiency(efficiency)


def _efficiency(found: Mapping[str, Any]) -> str:
    batches = ""
    if found["batches"] > 1:
        times = ", ".join(f"{p}% within {found[f'batch_seconds_p{p}']:.2f} s" for p in (50, 90, 99))
        batches = f" in {found['batches']} batches ({times})"
    return (
        f"{found['seconds']:.1f} s{batches}, {found['answers_per_second']:.2f} answers/s, "
        f"{found['tokens_per_second']:.0f} tokens/s, peak memory {found['peak_memory_bytes'] / 1e9:.2f} GB"
    )
