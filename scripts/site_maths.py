"""The page of formulas: from the docstrings in `burnish.losses`, joined with what docs/losses.md found of each."""

import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

COMPARISONS = Path(__file__).parents[1] / "docs" / "losses.md"
_GAP = re.compile(r"\s{2,}")

# Rows of docs/losses.md whose first word is not the name of the entry that they are about.
_ROWS: Mapping[str, tuple[str, ...]] = {
    "advantages": ("advantages, all six",),
    "surrogate-clip": ("grpo", "grpo, KL in the loss", "dapo", "dr_grpo", "dual clip", "entropy bonus"),
    "ratio-sequence": ("gspo",),
    "ratio-sequence_token": ("gspo_token",),
    "ImportanceCorrection": ("truncated importance correction", "importance: sequence, geometric, mask"),
    "KTOLoss": ("kto",),
    "RewardModelLoss": (
        "reward model",
        "reward model, centred",
        "reward model, margin",
        "reward model, margin, centred",
        "reward model, several grades",
    ),
    "NegativeLogLikelihood": ("negative log-likelihood",),
    "Divergence": ("forward KL, reverse KL, JSD",),
    "SampledReverseKL": ("sampled reverse KL",),
    "gae": ("advantage estimation, GAE",),
    "ValueLoss": ("value loss, clipped",),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A formula with its name and source."""

    name: str
    formula: str
    source: str


def table(docstring: str) -> dict[str, list[Entry]]:
    """The entries of an indented table `[choice]  name  formula  source`, by choice; what is indented more goes on."""
    entries: dict[str, list[Entry]] = {}
    choice, names_at = "", 4
    for line in docstring.splitlines():
        indent, cells = len(line) - len(line.lstrip()), _GAP.split(line.strip())
        if indent < 4 or not cells[0]:
            continue
        if len(cells) == 4:
            choice, names_at = cells[0], line.index(f" {cells[1]} ", indent + len(cells[0])) + 1
            cells = cells[1:]
        elif indent != names_at:  # goes on with the formula, the source, or both
            last = entries[choice][-1]
            rest = "".join(("; " if cell[0].isupper() else " ") + cell for cell in cells[1:])
            entries[choice][-1] = Entry(last.name, f"{last.formula}\n{cells[0]}", last.source + rest)
            continue
        entries.setdefault(choice, []).append(Entry(*cells))
    return entries


class Comparisons:
    """What docs/losses.md says of a loss; each of its rows has to be asked for."""

    def __init__(self, page: str) -> None:
        self._rows: dict[str, str] = {}
        self._differences: dict[str, str] = {}
        for line in page.splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if line.startswith("|") and cells[0] != "loss" and set(cells[0]) != {"-"}:
                self._rows[cells[0]] = self._said(cells)
            elif found := re.match(r"- `(\w+)` (.*)", line):
                self._differences[found[1]] = found[2]
        self._unasked = set(self._rows) | set(self._differences)

    @staticmethod
    def _said(cells: list[str]) -> str:
        if len(cells) == 5:
            name, _, peer, *differences = cells
            value, gradient = (f"{float(each):.2g}" for each in differences)
            return f"- {name}: with TRL's `{peer}`; the value differs by {value}, the gradient by {gradient}"
        name, _, compared, where = cells
        return f"- {name}: with {'values worked ' * (compared == 'by hand')}{compared}, in `{where}`"

    def of(self, name: str) -> Iterator[str]:
        """The lines about an entry, by its anchor."""
        plain = name.rpartition("-")[2]
        rows = _ROWS.get(name) or [row for row in self._rows if row.partition(",")[0] == plain]
        if rows:
            yield from ("", "Compared:", "", *(self._rows[row] for row in rows))
        if plain in self._differences and name in (plain, f"surrogate-{plain}"):
            yield from ("", f"Where TRL or a paper differs: here `{plain}` {self._differences[plain]}")
            self._unasked.discard(plain)
        self._unasked -= set(rows)

    def check(self) -> None:
        """Raise if something of the page was left out."""
        if self._unasked:
            raise ValueError(f"docs/losses.md has what the page of formulas does not show: {sorted(self._unasked)}")


def maths() -> str:
    """Every formula, as Markdown."""
    found = Comparisons(COMPARISONS.read_text(encoding="utf-8"))
    lines = [*_of_modules(found)]
    found.check()
    return "\n".join(lines)


def _of_modules(found: Comparisons) -> Iterator[str]:
    losses = "burnish.losses"
    yield from _module("Preference losses", f"{losses}.preference", found)
    yield from _documented(f"{losses}.preference", ("PreferenceLoss", "KTOLoss", "RewardModelLoss"), found)
    yield from _module("Policy losses", f"{losses}.policy_gradient", found)
    yield from _documented(f"{losses}.policy_gradient", ("PolicyLoss", "ImportanceCorrection"), found)
    yield from _module("Advantages", f"{losses}.advantages", found, prefix="advantage-")
    yield from found.of("advantages")
    yield from _kl_estimators()
    yield from ("## Values", "")
    yield from _documented(f"{losses}.value", ("gae", "whiten", "ValueLoss"), found)
    yield from ("## Imitation and distillation", "")
    yield from _documented(f"{losses}.imitation", ("NegativeLogLikelihood",), found)
    yield from _documented(f"{losses}.distillation", ("DistillationLoss", "SampledReverseKL"), found)
    yield from _documented("burnish.models.divergence", ("Divergence",), found)


def _module(title: str, path: str, found: Comparisons, *, prefix: str = "") -> Iterator[str]:
    """A module's docstring: its words, then each row of its table."""
    docstring = importlib.import_module(path).__doc__ or ""
    words = [line for line in docstring.splitlines() if not line.startswith("    ")]
    yield from (f"## {title}", "", prose("\n".join(words)), "")
    for choice, entries in table(docstring).items():
        for each in entries:
            anchor = f"{choice}-{each.name}" if choice else prefix + each.name
            heading = f"{choice}: {each.name}" if choice else each.name
            yield from _entry(Entry(heading, each.formula, each.source), anchor)
            yield from found.of(anchor)
            yield ""


def _entry(entry: Entry, anchor: str) -> Iterator[str]:
    yield from (
        f"### `{entry.name}` {{ #{anchor} }}",
        "",
        "```text",
        entry.formula,
        "```",
        "",
        f"Source: {prose(entry.source)}.",
    )


def _documented(path: str, names: tuple[str, ...], found: Comparisons) -> Iterator[str]:
    """What the docstrings of classes and functions say."""
    module = importlib.import_module(path)
    for name in names:
        yield from (f"### `{name}` {{ #{name} }}", "", prose(inspect.getdoc(getattr(module, name)) or ""))
        yield from found.of(name)
        yield ""


def _kl_estimators() -> Iterator[str]:
    """`k1 = ..., k2 = ...` of a docstring, one by one."""
    module = importlib.import_module("burnish.losses.kl")
    formulas, _, words = inspect.cleandoc(module.kl_estimate.__doc__).partition("\n\n")
    yield from ("## KL estimators", "", prose(module.__doc__ or ""), "", prose(words), "")
    for name, formula in re.findall(r"(k\d) = (.*?)(?=, k\d|\. )", formulas):
        yield from (
            f"### `{name}` {{ #kl-{name} }}",
            "",
            "```text",
            f"{formula}    with r = reference / policy",
            "```",
            "",
        )


def prose(text: str) -> str:
    """Paragraphs in which nothing is taken for Markdown or HTML that is none, but for code in backticks."""
    return re.sub(r"(`[^`]*`)|([*_<\[{#])", lambda found: found[1] or "\\" + found[2], inspect.cleandoc(text))
