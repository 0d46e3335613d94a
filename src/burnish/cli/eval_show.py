"""What stands in eval stores: `burnish eval show`, `robust`, `verify`, and `burnish contamination`. Loads no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from burnish.cli.columns import print_columns
from burnish.errors import DataError, UserError
from burnish.evaluation.confidence import calibration_figure, calibration_of
from burnish.evaluation.contamination import Contamination, file_items, find_contamination, store_items, train_texts
from burnish.evaluation.figures import Figure, ShareInterval, counts, figures, mean_figure
from burnish.evaluation.position import PositionBias, position_bias
from burnish.evaluation.reliability_plot import plot_reliability
from burnish.evaluation.robustness import Robustness, robustness
from burnish.evaluation.sample_figures import SampleGrid, sample_figures, usual_ks
from burnish.evaluation.store import EvalStore
from burnish.evaluation.table import ScoreTable
from burnish.reproducibility.files import json_tree, write_text
from burnish.stats.calibration import Calibration

_SHOWN = 10
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
class _Content:
    """What is printed of a store."""

    store: EvalStore
    record: Mapping[str, Any]
    table: ScoreTable
    figures: Sequence[Figure]
    counts: Mapping[str, int]
    calibration: tuple[str, Calibration] | None
    position: PositionBias | None


def show_store(store: EvalStore, reading: Reading, *, as_json: bool) -> int:
    """Print the figures of a store."""
    return print_store(store, reading, None, as_json=as_json)


def verify_eval(store: EvalStore, *, with_reward: bool) -> int:
    """Print what is wrong with a store; exit status 1 where something is."""
    faults = store.verify()
    if with_reward:
        from burnish.evaluation.verifying import rescored

        try:
            faults += rescored(store)
        except (DataError, KeyError, TypeError, AttributeError) as error:
            if not faults:
                raise
            faults.append(f"cannot be scored again: {type(error).__name__}: {error}")
    for fault in faults[:_SHOWN]:
        print(fault)
    if len(faults) > _SHOWN:
        print(f"and {len(faults) - _SHOWN} more")
    if not faults:
        again = ", and its reward says the same again" if with_reward else ""
        print(f"{store.path}: ok: the files are what was written, and the scores follow from the answers{again}")
    return 1 if faults else 0


def show_robustness(stores: Sequence[EvalStore], *, margin: float | None, alpha: float, as_json: bool) -> int:
    """Print what changed questions cost."""
    plain, *changed = (store.table() for store in stores)
    found = robustness(plain, changed, alpha=alpha, margin=margin)
    if as_json:
        print(json.dumps(json_tree(found), indent=1, ensure_ascii=False))
    else:
        _print_robustness(found, alpha)
    return 0


def print_contamination(train: str, evaluation: str, evals_folder: Path, *, as_json: bool) -> int:
    """Print which items of an evaluation stand in training data; exit status 0 whatever is found."""
    if Path(evaluation).is_file() or Path(evaluation).suffix in (".json", ".jsonl"):
        found = find_contamination(train_texts(train), file_items(evaluation))
        lines = _contamination_lines(found, None)
    else:
        store = EvalStore.find(evaluation, evals_folder)
        found = find_contamination(train_texts(train), store_items(store))
        lines = _contamination_lines(found, store.table() if store.is_done else None)
    print(json.dumps(json_tree(found), indent=1, ensure_ascii=False) if as_json else "\n".join(lines))
    return 0


def print_store(store: EvalStore, reading: Reading, found: Contamination | None, *, as_json: bool) -> int:
    """Print the figures of a store that is done, and what was found of its items in training data.

    Raises:
        DataError: a file of it is not what was written.
    """
    content = _read(store, reading)
    if reading.plot is not None:
        if content.calibration is None:
            raise UserError(
                f"--plot {reading.plot}: how sure the model was is not known: it is for task.kind=choices and pairs, "
                "and for several answers to an item (sampling.samples_per_item) with task.parser"
            )
        write_text(reading.plot, plot_reliability(content.table.label, *content.calibration))
    if as_json:
        print(json.dumps(json_tree(_as_tree(content, found)), indent=1, ensure_ascii=False))
        return 0
    print(f"{content.table.label} on {content.record['task']['source']}")
    print(_asked(content.record))
    rows = [("measure", "of", "value", f"{100 * reading.level:.4g}% CI", "n", "method")]
    print_columns([*rows, *(_row(figure) for figure in content.figures)])
    for line in (*_remarks(content), *([] if found is None else _contamination_lines(found, content.table))):
        print(line)
    if reading.plot is not None:
        print(f"plot {reading.plot}")
    print(f"store {store.path}")
    return 0


def counted(number: int, thing: str) -> str:
    """So many things, in the plural where there is not one."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def interval_text(figure: Figure) -> str:
    """The ends of an interval; a dash where there is none."""
    return "-" if math.isnan(figure.low) else f"[{figure.low:.3f}, {figure.high:.3f}]"


def _read(store: EvalStore, reading: Reading) -> _Content:
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
    return _Content(
        store=store,
        record=record,
        table=table,
        figures=shown,
        counts=counts(samples),
        calibration=sure,
        position=position_bias(samples) if are_votes else None,
    )


def _as_tree(content: _Content, found: Contamination | None) -> dict[str, Any]:
    return {
        "store": str(content.store.path),
        "label": content.table.label,
        "figures": content.figures,
        "counts": content.counts,
        "settings": content.table.settings,
        "origin": content.table.origin,
        "efficiency": content.record.get("efficiency", {}),
        "calibration": None if content.calibration is None else content.calibration[1],
        "contamination": found,
        "position": content.position,
    }


def _asked(record: Mapping[str, Any]) -> str:
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


def _row(figure: Figure) -> tuple[str, ...]:
    return figure.measure, figure.of, _number(figure.value), interval_text(figure), str(figure.n), figure.method


def _remarks(content: _Content) -> Iterator[str]:
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


def _print_robustness(found: Robustness, alpha: float) -> None:
    print(f"{found.label}, {counted(found.num_items, 'item')}, paired; changed against plain")
    header = ("form", found.plain.measure, "difference", f"{100 * (1 - alpha):.4g}% CI", "p (Holm)", "verdict")
    rows = [("plain", _number(found.plain.value), "", "", "", "")]
    for form in found.forms:
        each = form.found
        ends = "-" if math.isnan(each.low) else f"[{each.low:+.3f}, {each.high:+.3f}]"
        mean, difference = f"{each.mean_b:.3f}", f"{each.difference:+.3f}"
        rows.append((form.perturb, mean, difference, ends, f"{form.p_adjusted:.2g}", form.verdict))
    print_columns([header, *rows])
    if (worst := found.worst) is not None:
        print(f"at the worst of its forms an item scores {worst.value:.3f} {interval_text(worst)} ({worst.method})")
    for note in found.notes:
        print(f"note: {note}")


def _contamination_lines(found: Contamination, table: ScoreTable | None) -> list[str]:
    items, texts = counted(found.num_items, "item"), counted(found.num_train, "training text")
    lines = [
        f"of {items} in {texts}: {len(found.exact)} exactly, {len(found.by_ngram)} by {found.ngram} words in a row, "
        f"{len(found.near)} nearly (Jaccard {found.near_at})"
    ]
    flagged = found.flagged()
    lines += [f"  {name}: {', '.join(how)}" for name, how in list(flagged.items())[:_SHOWN]]
    if len(flagged) > _SHOWN:
        lines.append(f"  and {len(flagged) - _SHOWN} more: --json names them all")
    if table is not None and flagged:
        is_flagged = np.array([name in flagged for name in table.ids])
        for what, chosen in (("flagged", is_flagged), ("not flagged", ~is_flagged)):
            figure = mean_figure(table, chosen)
            lines.append(
                f"  {figure.measure} of what is {what}: {_number(figure.value)} {interval_text(figure)}, n {figure.n}"
            )
    return lines


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
