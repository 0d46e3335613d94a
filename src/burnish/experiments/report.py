"""The report of an experiment as Markdown, as HTML that loads nothing, and as JSON. Its numbers are `analyse`'s."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from burnish.errors import UserError
from burnish.experiments.analysis import Analysis, Claim, analyse, profile
from burnish.experiments.designs import alias_table, defining_words
from burnish.experiments.figures import Row, forest, learning_curves, profiles, search_history
from burnish.experiments.folder import ExperimentFolder, Version
from burnish.experiments.outcomes import Outcome, curve, half_of, read_outcomes, unlike
from burnish.experiments.plan import Plan, PlannedSweep, differences
from burnish.experiments.sweep import SearchResult, Trial, in_short, read_trials, search_result
from burnish.reproducibility.files import json_tree, write_text


@dataclass(frozen=True, slots=True)
class Heading:
    """A section begins."""

    text: str


@dataclass(frozen=True, slots=True)
class Lines:
    """A list."""

    lines: Sequence[str]


@dataclass(frozen=True, slots=True)
class Table:
    """The first row is the head."""

    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Figure:
    """An SVG figure, and what it shows."""

    name: str
    svg: str
    caption: str


Block = Heading | Lines | Table | Figure | str


def write_report(folder: ExperimentFolder, *, also: Sequence[str] = ()) -> Path:
    """Write report.md, report.html, report.json and figures/; returns the path of the HTML.

    Raises:
        UserError: nothing was run, or a run has no such metric.
        DataError: a run's scores or metrics were changed since it ended.
    """
    versions = folder.versions()
    if not folder.is_frozen:
        raise UserError(f"experiment {folder.path.name}: nothing was run yet, so there is nothing to report")
    plan = versions[-1].plan
    planned = {plan.primary.name, *(metric.name for metric in plan.secondary)}
    extra = tuple(name for name in dict.fromkeys(also) if name not in planned)
    outcomes = read_outcomes(folder, plan, also=extra)
    trials = read_trials(folder, plan)
    for each in (*outcomes, *(trial.outcome for trial in trials)):
        if each.state == "finished" and each.folder is not None:
            each.folder.require_unchanged(("evaluations/", "metrics.jsonl"))
    analysis = analyse(versions, outcomes, also=extra)
    found = search_result(folder, plan, trials, outcomes, analysis)
    blocks = list(_blocks(folder, versions, outcomes, analysis, trials, found))
    (folder.path / "figures").mkdir(exist_ok=True)
    for block in blocks:
        if isinstance(block, Figure):
            write_text(folder.path / "figures" / f"{block.name}.svg", block.svg)
    write_text(folder.path / "report.md", as_markdown(plan.name, blocks))
    write_text(
        folder.path / "report.json", json.dumps(as_json(versions[-1], outcomes, analysis, trials, found), indent=1)
    )
    path = folder.path / "report.html"
    write_text(path, as_html(plan.name, blocks))
    return path


def as_json(
    version: Version,
    outcomes: Sequence[Outcome],
    analysis: Analysis,
    trials: Sequence[Trial] = (),
    found: SearchResult | None = None,
) -> dict[str, Any]:
    """The numbers of a report as plain JSON values; what is not a number is null."""
    numbers: dict[str, Any] = json_tree(
        {
            "plan_sha256": version.sha256,
            "runs": runs_json(outcomes),
            "analysis": analysis,
            "search": None if version.plan.sweep is None else {"result": found, "trials": trials_json(trials)},
        }
    )
    return numbers


def trials_json(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """What became of each trial of a sweep, as plain JSON values."""
    return [
        {**run, "settings": dict(trial.settings), "state": trial.state, "reason": trial.refused or run["reason"]}
        for trial, run in zip(trials, runs_json([trial.outcome for trial in trials]), strict=True)
    ]


def runs_json(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """What became of each run, as plain JSON values."""
    return [
        {
            "run": each.run.name,
            "arm": each.run.arm,
            "seed": each.run.seed,
            "state": each.state,
            "reason": each.reason,
            "folder": None if each.folder is None else str(each.folder.path),
            "step": each.step,
            "seconds": each.seconds,
            "values": dict(each.values),
        }
        for each in outcomes
    ]


def verdict_line(claim: Claim, level: float) -> str:
    """One claim in one line."""
    e = claim.estimate
    value = f"{claim.metric} {e.value:+.4g}" if math.isfinite(e.value) else f"{claim.metric} has no difference"
    interval = f", {level:.0%} CI [{e.low:+.4g}, {e.high:+.4g}]" if math.isfinite(e.low) else ""
    p = f", adjusted p = {claim.adjusted_p:.2g}" if math.isfinite(claim.adjusted_p) else ""
    word = claim.verdict or "exploratory, no verdict"
    note = f" ({claim.note})" if claim.note else ""
    return f"{claim.name}: {value}{interval}{p}, {claim.num_seeds} seeds: {word}{note}"


def _blocks(
    folder: ExperimentFolder,
    versions: Sequence[Version],
    outcomes: Sequence[Outcome],
    analysis: Analysis,
    trials: Sequence[Trial],
    found: SearchResult | None,
) -> Iterator[Block]:
    plan = versions[-1].plan
    yield f"Question: {plan.question}"
    yield f"Hypothesis: {plan.hypothesis}"
    yield Heading("Result")
    primary = [claim for claim in analysis.claims if claim.kind == "primary"]
    lines = [verdict_line(claim, analysis.level) for claim in primary] or ["nothing planned can be judged"]
    yield Lines([*lines, *(found.lines(analysis.level) if found is not None else ())])
    cautions = [*analysis.cautions, *unlike(list(outcomes))]
    if cautions:
        yield "To keep in mind:"
        yield Lines(cautions)
    yield from _figures(plan, outcomes, analysis)
    if plan.sweep is not None:
        yield from _search_blocks(plan, trials, found, analysis)
    yield Heading(f"Arms: {plan.primary.name}")
    yield _arm_table(plan, analysis)
    for kind, how in (
        ("primary", "p adjusted by Holm over these claims"),
        ("secondary", "p adjusted by Benjamini-Hochberg over these claims"),
        ("exploratory", "not planned before the first run: to find questions, not to answer them"),
    ):
        claims = [claim for claim in analysis.claims if claim.kind == kind]
        if claims:
            yield Heading(f"{kind.capitalize()} comparisons")
            what = (
                "main effects, from an additive model with seeds as blocks"
                if plan.factors
                else (f"differences to {plan.baseline}, paired by seed")
            )
            yield f"{what.capitalize()}; {how}."
            yield _claim_table(claims)
    yield Heading("Runs")
    yield run_table(plan, outcomes)
    known = [*outcomes, *(trial.outcome for trial in trials)]
    outside = sorted(set(folder.run_folders()) - {outcome.run.name for outcome in known})
    if outside:
        yield f"Runs that the plan does not name, and that count nowhere: {', '.join(outside)}."
    yield from _plan_blocks(versions)


def _figures(plan: Plan, outcomes: Sequence[Outcome], analysis: Analysis) -> Iterator[Figure]:
    name, level = plan.primary.name, f"{analysis.level:.0%}"
    claims = [claim for claim in analysis.claims if claim.metric == name]
    if claims:
        rows = [
            Row(
                label=claim.name,
                value=claim.estimate.value,
                low=claim.estimate.low,
                high=claim.estimate.high,
                text=claim.verdict or "exploratory",
            )
            for claim in claims
        ]
        what = f"difference in {name}" + ("" if plan.factors else f" to {plan.baseline}")
        shade = ", shaded: within the margin" if plan.margin is not None else ""
        yield Figure(
            "effects", forest(rows, axis=what, zero=0.0, margin=plan.margin), f"Effects, {level} t-intervals{shade}."
        )
    curves: dict[str, dict[int, dict[int, float]]] = {arm.name: {} for arm in plan.arms}
    for outcome in outcomes:
        if outcome.state == "finished" and outcome.folder is not None:
            curves[outcome.run.arm][outcome.run.seed] = curve(outcome.folder, name, half_of(outcome.run, plan))
    curves = {arm: seeds for arm, seeds in curves.items() if seeds}
    if curves:
        caption = "Learning curves of the finished runs: mean over seeds, band from the lowest to the highest seed."
        yield Figure("curves", learning_curves(curves, axis=name), caption)
    arms = [arm for arm in analysis.arms if arm.values]
    if arms:
        rows = [Row(label=a.arm, value=a.iqm, low=a.iqm_low, high=a.iqm_high, text=f"{a.iqm:.4g}") for a in arms]
        caption = f"Interquartile mean over seeds, {level} bootstrap intervals (too narrow below ten seeds)."
        yield Figure("iqm", forest(rows, axis=f"{name}, interquartile mean"), caption)
        corners = {arm.arm: profile(list(arm.values.values())) for arm in arms}
        yield Figure("profiles", profiles(corners, axis=name), "Performance profiles: share of seeds above each value.")


def _search_blocks(
    plan: Plan, trials: Sequence[Trial], found: SearchResult | None, analysis: Analysis
) -> Iterator[Block]:
    name = plan.primary.name
    yield Heading("Search")
    yield (
        f"{len(trials)} of {plan.sweep.num_trials if plan.sweep else 0} trials, each one run on one half of the "
        "held-out items; the arms below are judged on the other half."
    )
    scores = {number: trial.score for number, trial in enumerate(trials) if trial.score is not None}
    if scores:
        svg = search_history(scores, axis=f"{name}, searched half", is_higher_better=plan.primary.better == "higher")
        yield Figure("search", svg, "Score of each trial that finished, and the best so far.")
    if found is not None:
        nan = math.nan
        searched = f"{found.score:.4g}, one seed"
        rows = [Row(label=f"{found.trial}, searched", value=found.score, low=nan, high=nan, text=searched)]
        rows += [
            Row(
                label=f"{arm.arm}, fresh",
                value=arm.mean.value,
                low=arm.mean.low,
                high=arm.mean.high,
                text=_n(arm.mean.value),
            )
            for arm in reversed(analysis.arms)
        ]
        caption = (
            f"What the search saw of its winner, and what fresh seeds and items say, {analysis.level:.0%} t-intervals."
        )
        yield Figure("winner", forest(rows, axis=name), caption)
    yield trial_table(plan, trials)


def trial_table(plan: Plan, trials: Sequence[Trial]) -> Table:
    """What was tried, and what became of it; lost and refused trials stay."""
    keys = list(plan.sweep.space) if plan.sweep is not None else []
    rows = [("trial", *keys, "state", f"{plan.primary.name}, searched half", "seconds", "reason")]
    for trial in trials:
        values = [in_short(trial.settings[key]) for key in keys]
        score = _n(math.nan if trial.score is None else trial.score)
        reason = trial.refused or trial.outcome.reason
        rows.append((trial.name, *values, trial.state, score, f"{trial.outcome.seconds:.0f}", reason))
    return Table(rows)


def _arm_table(plan: Plan, analysis: Analysis) -> Table:
    rows = [("arm", "seeds", "mean", f"{analysis.level:.0%} CI", "sd over seeds", "IQM", "every seed", "lost")]
    for arm in analysis.arms:
        each = " ".join(f"{seed}:{value:.4g}" for seed, value in arm.values.items())
        interval = _interval(arm.mean.low, arm.mean.high)
        n, lost = f"{len(arm.values)}/{len(plan.seeds)}", " ".join(map(str, arm.lost))
        rows.append((arm.arm, n, _n(arm.mean.value), interval, _n(arm.spread), _n(arm.iqm), each, lost))
    return Table(rows)


def _claim_table(claims: Sequence[Claim]) -> Table:
    rows = [("what", "metric", "difference", "CI", "seeds", "p", "adjusted p", "equivalence p", "verdict", "note")]
    for claim in claims:
        e = claim.estimate
        rows.append(
            (
                claim.name,
                claim.metric,
                _n(e.value, sign=True),
                _interval(e.low, e.high),
                str(claim.num_seeds),
                _n(e.p_value),
                _n(claim.adjusted_p),
                _n(claim.equivalent_p),
                claim.verdict or "-",
                claim.note,
            )
        )
    return Table(rows)


def run_table(plan: Plan, outcomes: Sequence[Outcome]) -> Table:
    """What became of each run."""
    metrics = [plan.primary.name, *(metric.name for metric in plan.secondary)]
    rows = [("run", "state", "step", "seconds", *metrics, "folder", "reason")]
    for each in outcomes:
        values = [_n(each.values.get(name, math.nan)) for name in metrics]
        folder = each.folder.path.name if each.folder is not None else "-"
        rows.append((each.run.name, each.state, str(each.step), f"{each.seconds:.0f}", *values, folder, each.reason))
    return Table(rows)


def _plan_blocks(versions: Sequence[Version]) -> Iterator[Block]:
    first, plan = versions[0], versions[-1].plan
    yield Heading("Plan")
    yield Lines(
        [
            f"frozen with sha256 {first.sha256}, planned {first.time}",
            f"{len(plan.arms)} arms x {len(plan.seeds)} seeds = {len(plan.runs)} runs; in each seed, a drawn order",
            f"primary: {plan.primary.name}, {plan.primary.better} is better",
            f"secondary: {', '.join(metric.name for metric in plan.secondary) or 'none'}",
            f"alpha {plan.alpha:g}, margin {'none' if plan.margin is None else f'{plan.margin:g}'}, "
            f"stopping {plan.stopping}",
            *([search_line(plan.sweep)] if plan.sweep is not None else []),
        ]
    )
    if plan.generators:
        yield f"Fraction: {' = '.join(['1', *defining_words(plan.generators)])}."
        yield alias_rows(plan)
    for before, after in pairwise(versions):
        yield f"Amended {after.time}: {after.reason} (sha256 {after.sha256})"
        was, is_now = (each.plan.model_dump(mode="json") for each in (before, after))
        yield Lines(list(differences(was, is_now)))


def search_line(sweep: PlannedSweep) -> str:
    """What a sweep searches."""
    space = ", ".join(f"{key} in {each.text}" for key, each in sweep.space.items())
    return f"search: {sweep.num_trials} trials with seed {sweep.seed} over {space}"


def alias_rows(plan: Plan) -> Table:
    """Which effects a fraction cannot tell apart."""
    rows = [("effect", "cannot be told from")]
    rows += [(effect, ", ".join(aliases)) for effect, aliases in alias_table(list(plan.factors), plan.generators)]
    return Table(rows)


def as_markdown(title: str, blocks: Sequence[Block]) -> str:
    """The report to read as text; figures are links to their files."""
    parts = [f"# {title}"]
    for block in blocks:
        match block:
            case Heading(text):
                parts.append(f"## {text}")
            case Lines(lines):
                parts.append("\n".join(f"- {line}" for line in lines))
            case Table(rows):
                marked = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
                parts.append("\n".join([marked[0], "|---" * len(rows[0]) + "|", *marked[1:]]))
            case Figure(name, _, caption):
                parts.append(f"![{caption}](figures/{name}.svg)")
            case _:
                parts.append(block)
    return "\n\n".join(parts) + "\n"


def as_html(title: str, blocks: Sequence[Block]) -> str:
    """The report for a browser, in one file that loads nothing."""
    parts = [f"<h1>{escape(title)}</h1>"]
    for block in blocks:
        match block:
            case Heading(text):
                parts.append(f"<h2>{escape(text)}</h2>")
            case Lines(lines):
                parts.append("<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>")
            case Table(rows):
                head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
                body = "".join(f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in row)}</tr>" for row in rows[1:])
                parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
            case Figure(_, svg, caption):
                parts.append(f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>")
            case _:
                parts.append(f"<p>{escape(block)}</p>")
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


_STYLE = """
body{font-family:sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;line-height:1.4;color:#222;background:#fff}
table{border-collapse:collapse;font-size:.85em;display:block;overflow-x:auto}
td,th{border-bottom:1px solid #ddd;padding:.25em .6em;text-align:left;vertical-align:top}
td:not(:last-child),th{white-space:nowrap}
figure{margin:1em 0}figcaption{font-size:.85em;color:#555}svg{max-width:100%;height:auto}
"""


def _n(value: float, *, sign: bool = False) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:+.4g}" if sign else f"{value:.4g}"


def _interval(low: float, high: float) -> str:
    return f"[{low:.4g}, {high:.4g}]" if math.isfinite(low) and math.isfinite(high) else "-"
