"""`burnish compare`: is B better than A? Everything is read from run folders and eval stores; no model is loaded."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from burnish.cli.arguments import AsJson, RunsFolder
from burnish.cli.columns import print_columns
from burnish.cli.json_output import print_json
from burnish.errors import UserError
from burnish.monitoring.console import Waiting
from burnish.reproducibility.files import json_tree

if TYPE_CHECKING:
    from burnish.evaluation.comparable import Arm
    from burnish.evaluation.comparison import ArmMean, Claim, Comparison
    from burnish.stats.difference import Difference


def compare(
    *arms: str,
    margin: Annotated[float | None, Parameter(help="Largest difference that does not matter, to find equivalence.")] = (
        None
    ),
    alpha: Annotated[float, Parameter(help="Chance to call a difference that is not there.")] = 0.05,
    slices: Annotated[str | None, Parameter(help="A field of the items: compare on each of its values too.")] = None,
    gate: Annotated[
        Literal["better", "not-worse"] | None,
        Parameter(help="Exit status 1 unless every claim is that; not worse is better, or equivalent within --margin."),
    ] = None,
    as_json: AsJson = False,
    runs_folder: RunsFolder = Path("runs"),
) -> int:
    """Compare what two or more models, checkpoints, runs or methods score on the same items.

    The first is the baseline, each other is a claim against it. Seeds of one method are given with commas between
    them, or as a glob: what is then compared is the method.

    Example: burnish compare evals/base-1a2b3c evals/tuned-4d5e6f --margin 0.02

    Example: burnish compare 'plain-seed*' 'clipped-seed*' --margin 0.02 --gate not-worse

    Parameters
    ----------
    arms
        Each the folder of an eval store; a run, for its last evaluation (path, name, beginning of its name, or
        `last`); or RUN@STEP.
    """
    if gate == "not-worse" and margin is None:
        raise UserError("--gate not-worse needs --margin: how large a difference does not matter")
    with Waiting("comparing"):
        from burnish.evaluation.comparable import told_apart
        from burnish.evaluation.comparison import compare_arms

        compared = told_apart([_arm(each, runs_folder) for each in arms], arms)
        found = compare_arms(compared, alpha=alpha, margin=margin, slice_field=slices)
    if as_json:
        print_json(_as_tree(found))
    else:
        _print(found)
    if gate is None:
        return 0
    passing = {"better"} if gate == "better" else {"better", "equivalent"}
    return 0 if all(claim.verdict in passing for claim in found.claims) else 1


def _arm(what: str, runs_folder: Path) -> "Arm":
    """One table for each name between commas, and for each folder that a glob finds."""
    from burnish.evaluation.comparable import Arm
    from burnish.evaluation.table import read_table

    names = [found for part in what.split(",") if part for found in _globbed(part, runs_folder)]
    if not names:
        raise UserError(f"{what!r} names nothing to compare")
    tables = tuple(read_table(name, runs_folder) for name in names)
    if len(tables) == 1:
        return Arm(label=tables[0].label, tables=tables)
    return Arm(label=f"{tables[0].label} and {len(tables) - 1} more" if "," in what else what, tables=tables)


def _globbed(name: str, runs_folder: Path) -> list[str]:
    if not any(sign in name for sign in "*?["):
        return [name]
    pattern = Path(name)
    anchor = Path(pattern.anchor) if pattern.is_absolute() else Path()
    relative = str(pattern.relative_to(anchor)) if pattern.is_absolute() else name
    found = [path for folder in (runs_folder, anchor) for path in sorted(folder.glob(relative)) if _is_table(path)]
    if not found:
        raise UserError(f"no run in {runs_folder} and no eval store matches {name!r}")
    return list(dict.fromkeys(str(path.resolve()) for path in found))


def _is_table(path: Path) -> bool:
    return any((path / record).is_file() for record in ("run.json", "eval.json"))


def _print(found: "Comparison") -> None:
    clusters = "" if found.num_clusters is None else f" in {found.num_clusters:,} clusters"
    print(f"{found.num_items:,} items{clusters}, paired; intervals at {100 * (1 - found.alpha):.4g}%\n")
    print_columns([("", "mean", "interval", "by", "samples"), *(_mean_row(arm) for arm in found.arms)])
    for arm in found.arms:
        if len(arm.seeds) > 1:
            of_seed = zip(arm.seeds, arm.mean_of_seed, strict=True)
            print(f"{arm.label}: " + ", ".join(f"seed {'?' if s is None else s} {m:.3f}" for s, m in of_seed))
    for claim in found.claims:
        print()
        _print_claim(claim, found)
    if found.cochrans_q is not None:
        print(f"\nall equally often right? Cochran's Q = {found.cochrans_q[0]:.4g}, p = {found.cochrans_q[1]:.3g}")
    if found.strengths is not None:
        _print_strengths(found)
    if found.notes:
        print()
    for note in found.notes:
        print(f"note: {note}")


def _mean_row(arm: "ArmMean") -> tuple[str, ...]:
    return (arm.label, f"{arm.mean:.3f}", _interval(arm.low, arm.high, ".3f"), arm.interval, str(arm.num_samples))


def _interval(low: float, high: float, form: str = "+.3f") -> str:
    return "unknown" if math.isnan(low) else f"[{low:{form}}, {high:{form}}]"


def _print_claim(claim: "Claim", found: "Comparison") -> None:
    from burnish.evaluation.comparison import verdict_lines

    print(f"{claim.label_b} against {claim.label_a}")
    rows: list[tuple[str, ...]] = [("  over", "n", "difference", "interval", "by", "p", "test")]
    rows += [_evidence_row(each, found) for each in claim.differences]
    print_columns(rows)
    if claim.discordance is not None:
        beside = claim.discordance
        print(
            f"  right alone: A {beside.only_a:,}, B {beside.only_b:,} items; mid-p = {beside.mid_p:.3g}, "
            f"Tango's interval {_interval(beside.low, beside.high)}"
        )
    wins = _interval(claim.wins.low, claim.wins.high, ".3f")
    print(f"  wins {claim.wins.value:.3f} of the items, ties half: {wins} (bootstrap by {found.unit})")
    if len(found.claims) > 1:
        print(f"  p = {claim.p_adjusted:.3g} after Holm, of {len(found.claims)} claims")
    if claim.p_equivalent is not None:
        print(f"  equivalent within {found.margin:g}? p = {claim.p_equivalent:.3g} (two one-sided tests)")
    if claim.errors is not None:
        _print_errors(claim)
    _print_slices(claim)
    verdict, *takes = verdict_lines(claim, found)
    print(f"  verdict: {verdict}")
    for line in takes:
        print(f"    {line}")


def _evidence_row(each: "Difference", found: "Comparison") -> tuple[str, ...]:
    is_both = each.unit == "both"
    return (
        "  seeds and items" if is_both else f"  {each.unit}s",
        f"{each.n} x {found.num_units:,}" if is_both else f"{each.n:,}",
        f"{each.difference:+.3f}",
        _interval(each.low, each.high),
        each.interval,
        f"{each.p_value:.3g}",
        each.test,
    )


def _print_errors(claim: "Claim") -> None:
    errors = claim.errors
    if errors is None:
        return
    parts = {"seeds": errors.seed, "items": errors.item, "seed x item": errors.rest, "samples": errors.sample}
    if math.isnan(errors.seed):
        del parts["seed x item"]  # is in that of the items
    known = {name: part for name, part in parts.items() if not math.isnan(part)}
    total = sum(known.values())
    if total == 0:
        print("  no spread over seeds, items or samples")
        return
    shown = ", ".join(f"{name} {part / total:.0%}" for name, part in known.items())
    unknown = [name for name in ("seeds", "samples") if name not in known]
    print(f"  the error's variance: {shown}" + "".join(f"; {name} unknown, with one" for name in unknown))
    factors = {"seeds": errors.factor_seeds, "items": errors.factor_items, "samples": errors.factor_samples}
    narrowed = ", ".join(f"{name} to {factor:.0%}" for name, factor in factors.items() if not math.isnan(factor))
    print(f"  twice as many would narrow the interval: {narrowed}; buy {errors.cheapest} first if they cost the same")


def _print_slices(claim: "Claim") -> None:
    if not claim.slices:
        return
    rows = [(f"  {claim.slices[0].field}", "over", "A", "B", "difference", "interval", "p", "p (BH)", "")]
    for each in claim.slices:
        found = each.found
        means = (f"{found.mean_a:.3f}", f"{found.mean_b:.3f}", f"{found.difference:+.3f}")
        tail = (f"{found.p_value:.3g}", f"{each.p_adjusted:.3g}", each.verdict)
        rows.append((f"  {each.value}", f"{found.n:,} {found.unit}s", *means, _interval(found.low, found.high), *tail))
    print_columns(rows)


def _print_strengths(found: "Comparison") -> None:
    strengths = found.strengths
    if strengths is None:
        return
    print(f"\nBradley-Terry strengths with ties (Davidson), bootstrap by {found.unit}")
    order = sorted(range(len(found.arms)), key=lambda index: -strengths.strengths_M[index])
    ends = zip(strengths.low_M, strengths.high_M, strict=True)
    intervals = [_interval(low, high) for low, high in ends]
    print_columns([(f"  {found.arms[i].label}", f"{strengths.strengths_M[i]:+.3f}", intervals[i]) for i in order])


def _as_tree(found: "Comparison") -> Any:
    tree = json_tree(found)
    for claim, written in zip(found.claims, tree["claims"], strict=True):
        for each in (*written["differences"], *(row["found"] for row in written["slices"])):
            del each["design"]
        if claim.errors is not None:
            for name in ("factor_seeds", "factor_items", "factor_samples", "cheapest"):
                written["errors"][name] = json_tree(getattr(claim.errors, name))
    return tree
