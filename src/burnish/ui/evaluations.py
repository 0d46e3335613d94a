"""The eval stores of a folder, the figures of one, and two of them compared."""

from __future__ import annotations

from pathlib import Path

from burnish.evaluation.comparable import Arm, told_apart
from burnish.evaluation.comparison import compare_arms, verdict_lines
from burnish.evaluation.content import Reading, asked, read_store, remarks
from burnish.evaluation.figures import mean_figure
from burnish.evaluation.store import EvalStore
from burnish.evaluation.table import table_of_store
from burnish.ui.answers import Against, ArmLine, ComparisonAnswer, FigureLine, StoreDetail, StoreList, StoreRow
from burnish.ui.reading import FAULTS, Kept, entry, names_in, reading, reason_of


class Evaluations:
    """What stands in a folder of eval stores now."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._row = Kept(_row)
        self._detail = Kept(_detail)

    def all(self) -> StoreList:
        """Every store, newest first."""
        folders = [self.folder / name for name in names_in(self.folder)]
        rows = [self._row(folder) for folder in folders if (folder / "eval.json").is_file()]
        rows.sort(key=lambda row: (row.created, row.name), reverse=True)
        return StoreList(folder=str(self.folder), stores=rows)

    def detail(self, name: str) -> StoreDetail:
        """Every figure of a store.

        Raises:
            NotFoundError: there is none of that name.
            DataError: it is not finished, or a file of it is not what was written.
        """
        return self._detail(entry(self.folder, name, "eval store"))

    def compare(self, a: str, b: str, margin: float | None) -> ComparisonAnswer:
        """B against the baseline A, as `burnish compare` does.

        Raises:
            NotFoundError: one of them is not there.
            UserError: they cannot be compared.
        """
        paths = [entry(self.folder, name, "eval store") for name in (a, b)]
        arms = []
        for path in paths:
            with reading(path):
                table = table_of_store(path)
            arms.append(Arm(label=table.label, tables=(table,)))
        found = compare_arms(told_apart(arms, (a, b)), margin=margin)
        (claim,) = found.claims
        return ComparisonAnswer(
            num_items=found.num_items,
            arms=[ArmLine.model_validate(arm) for arm in found.arms],
            claim=Against(
                label_a=claim.label_a,
                label_b=claim.label_b,
                difference=claim.over_items.difference,
                low=claim.over_items.low,
                high=claim.over_items.high,
                p_value=claim.p_value,
                test=claim.over_items.test,
                verdict=verdict_lines(claim, found),
            ),
            notes=list(found.notes),
        )


def _row(folder: Path) -> StoreRow:
    try:
        store = EvalStore.open(folder)
        record = store.record()
        task = record.get("task", {})
        return StoreRow(
            name=folder.name,
            label=record["label"],
            source=task.get("source", ""),
            status=record["status"],
            created=record.get("created", ""),
            num_items=task.get("num_items"),
            figure=FigureLine.model_validate(mean_figure(store.table())) if store.is_done else None,
        )
    except FAULTS as error:
        return StoreRow(name=folder.name, reason=reason_of(error))


def _detail(folder: Path) -> StoreDetail:
    with reading(folder):
        content = read_store(EvalStore.open(folder), Reading())
        return StoreDetail(
            name=folder.name,
            label=content.table.label,
            asked=asked(content.record),
            figures=[FigureLine.model_validate(figure) for figure in content.figures],
            remarks=list(remarks(content)),
        )
