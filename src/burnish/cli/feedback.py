"""`burnish feedback`: what people said of a server's answers, as data to train on."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from burnish.errors import UserError
from burnish.monitoring.console import Waiting

feedback_app = App(
    name="feedback",
    help="""Feedback on a server's answers, as data to train on.

    Example: burnish feedback export pairs.jsonl --store store.db
    """,
)


@feedback_app.command
def export(
    out: Path,
    *,
    store: Annotated[str, Parameter(help="The server's store.url: a file, or postgresql://...")],
    kind: Annotated[Literal["pairs", "sft"], Parameter(help="For train dpo, or for train sft.")] = "pairs",
    model: Annotated[str | None, Parameter(help="Of this model alone.")] = None,
    since: Annotated[str | None, Parameter(help="Of requests from then on, as 2026-11-28 or 2026-11-28T12:00.")] = None,
) -> int:
    """Write feedback as JSONL that training takes as it is.

    Example: burnish feedback export pairs.jsonl --store store.db

    Parameters
    ----------
    out
        File to write; `--data.source` of the training.
    """
    begin = _timestamp(since)
    with Waiting(f"reading {store}"):
        from burnish.reproducibility.files import write_text
        from burnish.serving.database import open_to_read
        from burnish.serving.export import feedback_examples, feedback_pairs

        database = open_to_read(store)
        rows = list((feedback_pairs if kind == "pairs" else feedback_examples)(database, model=model, since=begin))
        database.close()
    if not rows:
        raise UserError(f"--store: holds no feedback that makes {kind}: nothing was written")
    write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    algorithm = "dpo" if kind == "pairs" else "sft"
    print(f"{len(rows):,} rows in {out}; train on them with: burnish train {algorithm} --data.source {out}")
    return 0


def _timestamp(text: str | None) -> float:
    if text is None:
        return 0.0
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError as error:
        raise UserError(f"--since {text}: is no time; give one as 2026-11-28 or 2026-11-28T12:00") from error
