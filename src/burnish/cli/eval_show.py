"""What stands in eval stores: `burnish eval show`, `robust`, `verify`, and `burnish contamination`. Loads no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from burnish.cli.columns import print_columns
from burnish.cli.json_output import print_json
from burnish.errors import DataError, UserError
from burnish.evaluation.contamination import Contamination, file_items, find_contamination, store_items, train_texts
from burnish.evaluation.content import Reading, StoreContent, asked, counted, read_store, remarks
from burnish.evaluation.figures import Figure, mean_figure
from burnish.evaluation.reliability_plot import plot_reliability
from burnish.evaluation.robustness import Robustness, robustness
from burnish.evaluation.store import EvalStore
from burnish.evaluation.table import ScoreTable
from burnish.monitoring.console import Waiting
from burnish.reproducibility.files import write_text

_SHOWN = 10


def show_store(store: EvalStore, reading: Reading, *, as_json: bool) -> int:
    """Print the figures of a store."""
    return print_store(store, reading, None, as_json=as_json)


def verify_eval(store: EvalStore, *, with_reward: bool, as_json: bool) -> int:
    """Print what is wrong with a store; exit status 1 where something is."""
    with Waiting("verifying the store"):
        faults = store.verify()
    if with_reward:
        try:
            with Waiting("scoring the answers again"):
                from burnish.evaluation.verifying import rescored

                faults += rescored(store)
        except (DataError, KeyError, TypeError, AttributeError) as error:
            if not faults:
                raise
            faults.append(f"cannot be scored again: {type(error).__name__}: {error}")
    if as_json:
        print_json({"store": str(store.path), "passes": not faults, "rescored": with_reward, "faults": faults})
        return 1 if faults else 0
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
    with Waiting("comparing the forms"):
        plain, *changed = (store.table() for store in stores)
        found = robustness(plain, changed, alpha=alpha, margin=margin)
    if as_json:
        print_json(found)
    else:
        _print_robustness(found, alpha)
    return 0


def print_contamination(train: str, evaluation: str, evals_folder: Path, *, as_json: bool) -> int:
    """Print which items of an evaluation stand in training data; exit status 0 whatever is found."""
    if Path(evaluation).is_file() or Path(evaluation).suffix in (".json", ".jsonl"):
        with Waiting(f"reading {train}") as wait:
            found = find_contamination(train_texts(train, wait.told), file_items(evaluation))
        lines = _contamination_lines(found, None)
    else:
        store = EvalStore.find(evaluation, evals_folder)
        with Waiting(f"reading {train}") as wait:
            found = find_contamination(train_texts(train, wait.told), store_items(store))
        lines = _contamination_lines(found, store.table() if store.is_done else None)
    if as_json:
        print_json(found)
    else:
        print("\n".join(lines))
    return 0


def print_store(store: EvalStore, reading: Reading, found: Contamination | None, *, as_json: bool) -> int:
    """Print the figures of a store that is done, and what was found of its items in training data.

    Raises:
        DataError: a file of it is not what was written.
    """
    with Waiting("computing the figures"):
        content = read_store(store, reading)
    if reading.plot is not None:
        if content.calibration is None:
            raise UserError(
                f"--plot {reading.plot}: how sure the model was is not known: it is for task.kind=choices and pairs, "
                "and for several answers to an item (sampling.samples_per_item) with task.parser"
            )
        write_text(reading.plot, plot_reliability(content.table.label, *content.calibration))
    if as_json:
        print_json(_as_tree(content, found))
        return 0
    print(f"{content.table.label} on {content.record['task']['source']}")
    print(asked(content.record))
    rows = [("measure", "of", "value", f"{100 * reading.level:.4g}% CI", "n", "method")]
    print_columns([*rows, *(_row(figure) for figure in content.figures)])
    for line in (*remarks(content), *([] if found is None else _contamination_lines(found, content.table))):
        print(line)
    if reading.plot is not None:
        print(f"plot {reading.plot}")
    print(f"store {store.path}")
    return 0


def interval_text(figure: Figure) -> str:
    """The ends of an interval; a dash where there is none."""
    return "-" if math.isnan(figure.low) else f"[{figure.low:.3f}, {figure.high:.3f}]"


def _as_tree(content: StoreContent, found: Contamination | None) -> dict[str, Any]:
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


def _row(figure: Figure) -> tuple[str, ...]:
    return figure.measure, figure.of, _number(figure.value), interval_text(figure), str(figure.n), figure.method


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
