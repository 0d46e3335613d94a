import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from burnish.errors import DataError, UserError
from burnish.evaluation.comparable import Arm
from burnish.evaluation.comparison import compare_arms
from burnish.evaluation.table import ScoreTable
from burnish.stats.intervals import wilson_interval

GSM8K = Path(__file__).parents[3] / "shared/data/outcomes/gsm8k_gpt3_4systems.csv"


def table(label: str, scores, *, clusters=None, slices=None, settings=None, **origin) -> ScoreTable:
    scores_IK = np.asarray(scores, dtype=np.float64)
    return ScoreTable(
        label=label,
        ids=tuple(f"q{index}" for index in range(len(scores_IK))),
        scores_IK=scores_IK if scores_IK.ndim == 2 else scores_IK[:, None],
        clusters=clusters,
        slices=slices or {},
        settings=settings or {},
        origin=origin,
    )


def one(*tables: ScoreTable) -> list[Arm]:
    return [Arm(label=each.label, tables=(each,)) for each in tables]


@pytest.fixture
def gsm8k() -> dict[str, ScoreTable]:
    if not GSM8K.is_file():
        pytest.skip(f"{GSM8K} is not here")
    rows = list(csv.DictReader(GSM8K.read_text().splitlines()))
    return {name: table(name, [float(row[name]) for row in rows]) for name in rows[0] if name != "item"}


def test_real_outcomes(gsm8k) -> None:
    assert [int(each.scores_IK.sum()) for each in gsm8k.values()] == [286, 515, 458, 742]
    assert all(len(each.ids) == 1319 for each in gsm8k.values())
    a, b = gsm8k["6b_verification"].scores_IK[:, 0], gsm8k["175b_finetuning"].scores_IK[:, 0]
    (claim,) = compare_arms(one(gsm8k["6b_verification"], gsm8k["175b_finetuning"])).claims
    found = claim.over_items
    assert found.difference == pytest.approx((458 - 515) / 1319)
    only_a, only_b = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    assert found.p_value == pytest.approx(scipy.stats.binomtest(only_b, only_a + only_b).pvalue)
    assert found.low < found.difference < found.high < 0
    assert (found.test, claim.verdict) == ("exact McNemar", "worse")
    four = compare_arms(one(*gsm8k.values()))
    assert [claim.verdict for claim in four.claims] == ["better"] * 3
    assert four.claims[0].p_adjusted > four.claims[0].p_value  # Holm
    assert four.cochrans_q is not None and four.cochrans_q[1] < 1e-50
    assert np.argsort(four.strengths.strengths_M).tolist() == [0, 2, 1, 3]


def test_order_of_items_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    a, b = (table(name, rng.random((40, 3)), slices={"kind": ("x", "y") * 20}) for name in "ab")
    order = rng.permutation(40)
    shuffled = replace(
        b,
        ids=tuple(b.ids[i] for i in order),
        scores_IK=b.scores_IK[order],
        slices={"kind": tuple(b.slices["kind"][i] for i in order)},
    )
    plain, mixed = (compare_arms(one(a, other), slice_field="kind") for other in (b, shuffled))
    assert plain.claims[0].over_items == mixed.claims[0].over_items
    assert plain.claims[0].slices == mixed.claims[0].slices


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": ("q0", "q1", "x2", "x3")}, r"not of the same items; a lacks 'x2', 'x3'; b lacks 'q2', 'q3'"),
        ({"ids": ("q0", "q1", "q1", "q3")}, r"b: item 'q1' stands there twice"),
        ({"settings": {"sampling": {"temperature": 1.0}}}, r"sampling.temperature is 0.0 in the first and 1.0 in the"),
        ({"settings": {}}, r"sampling is {'temperature': 0.0} in the first and not set in the second"),
        ({"clusters": ("p", "p", "r", "r")}, r"different clusters"),
        ({"scores_IK": np.full((4, 1), np.nan)}, r"b: 4 of 4 items have no score"),
        ({"scores_IK": np.array([[1.0], [np.inf], [0.0], [0.0]])}, r"item 'q1' has an infinite score"),
        ({"ids": (), "scores_IK": np.zeros((0, 1))}, r"b: has no items"),
    ],
)
def test_what_cannot_be_compared_says_how(change, message: str) -> None:
    settings = {"sampling": {"temperature": 0.0}}
    a, b = (table(name, [1, 0, 1, 0], settings=settings) for name in "ab")
    compare_arms(one(a, b))
    with pytest.raises(DataError, match=message):
        compare_arms(one(a, replace(b, **change)))


def test_bad_arguments_are_refused() -> None:
    a = table("a", [1, 0], slices={"kind": ("x", "y")})
    for arguments, message in (
        ({"alpha": 1.5}, "alpha must lie between 0 and 1"),
        ({"margin": -0.1}, "margin must be above 0"),
        ({"slice_field": "subject"}, "no slice 'subject'; they have: kind"),
    ):
        with pytest.raises(UserError, match=message):
            compare_arms(one(a, a), **arguments)
    with pytest.raises(UserError, match="nothing to compare with"):
        compare_arms(one(a))


def test_items_without_a_score_are_left_out_and_counted() -> None:
    a = table("a", [[1, 0], [np.nan, np.nan], [1, np.nan], [0, 0]])
    b = table("b", [[1, 1], [1, 1], [0, 0], [1, 0]])
    found = compare_arms(one(a, b))
    assert found.num_items == 3
    assert found.claims[0].over_items.mean_a == pytest.approx((0.5 + 1 + 0) / 3)
    (left_out,) = [note for note in found.notes if "left out" in note]
    assert "left out (a 3, b 0), and with them 1 of 4 items that have no score in some table" in left_out
    # as zeros: a 0.5, 0, 0.5, 0 against b 1, 1, 0, 0.5
    assert "with answers without a score counted as wrong, b would be +0.375 against a: undecided" in found.notes
    unbounded = compare_arms(one(table("a", [7.0, np.nan, 1.0]), table("b", [1.0, 2.0, 3.0])))
    assert not any("counted as wrong" in note for note in unbounded.notes)
    half_a, half_b = table("a", [1, np.nan, np.nan, 1]), table("b", [np.nan, 1, 1, 1])
    with pytest.raises(DataError, match="only 1 of 4 items have a score in every table"):
        compare_arms(one(half_a, half_b))


def seeded(label: str, seeds, shift: float, *, items: int = 60, seed_sd: float = 0.0) -> Arm:
    hard = np.random.default_rng(99).normal(size=items)
    tables = []
    for seed in seeds:
        rng = np.random.default_rng([seed, ord(label)])
        scores = hard[:, None] + shift + seed_sd * rng.normal() + 0.3 * rng.normal(size=(items, 2))
        tables.append(table(f"{label}-{seed}", scores, seed=seed))
    return Arm(label=label, tables=tuple(tables))


def test_seeds_are_the_replicates() -> None:
    a, b = seeded("a", range(5), 0.0, seed_sd=0.05), seeded("b", [4, 3, 2, 1, 0], 0.5, seed_sd=0.05)
    (claim,) = compare_arms([a, b]).claims
    means_a = [each.scores_IK.mean() for each in a.tables]
    means_b = [each.scores_IK.mean() for each in b.tables][::-1]
    expected = scipy.stats.ttest_rel(means_b, means_a)
    over_both, over_seeds, over_items = claim.differences
    assert (over_seeds.test, over_seeds.n) == ("paired t over seeds", 5)
    assert over_seeds.p_value == pytest.approx(expected.pvalue)
    assert claim.evidence == (over_both,) and claim.p_value == over_both.p_value
    assert over_both.high - over_both.low >= over_items.high - over_items.low
    assert claim.verdict == "better" and claim.errors is not None
    (apart,) = compare_arms([a, seeded("b", range(5, 9), 0.5)]).claims
    assert apart.differences[1].test == "Welch's t over seeds"


def test_an_arm_is_one_method() -> None:
    def run(seed: int, **method: object) -> ScoreTable:
        return table(
            f"s{seed}", [0.0, 1.0, 1.0], seed=seed, method={"loss.kind": "clip", "train.num_steps": 5, **method}
        )

    base = Arm(label="base", tables=(table("m", [0.0, 1.0, 1.0]),))
    alike = Arm(label="alike", tables=(run(0), run(1), table("unknown", [0.0, 1.0, 1.0], seed=2)))
    compare_arms([base, alike])
    mixed = Arm(label="mixed", tables=(run(0), run(1), run(2, **{"loss.kind": "ppo", "loss.low": 1})))
    with pytest.raises(DataError, match=r"mixed: s0 and s2 differ in loss.kind, loss.low: the runs of an arm are one"):
        compare_arms([base, mixed])


def test_a_lucky_seed_is_no_method() -> None:
    """Items alone are sure; the seeds, which differ by more than the arms, are not."""
    a, b = seeded("a", range(3), 0.0, seed_sd=1.0), seeded("b", range(3, 6), 0.3, seed_sd=1.0)
    found = compare_arms([a, b])
    (claim,) = found.claims
    assert claim.over_items.p_value < 0.01 and claim.verdict == "undecided"
    assert claim.errors is not None and claim.errors.cheapest == "seeds"
    assert any("a has 3 seeds" in note for note in found.notes)


def test_seeds_and_items_are_both_drawn_at_random() -> None:
    """Each alone is sure of a difference that the two together do not show."""
    rng = np.random.default_rng(11)
    hard, arms = rng.normal(size=40), []
    for label, shift, first in (("a", -0.05, 0), ("b", 0.05, 5)):
        own = np.where(np.arange(40) % 2, 0.25, -0.25) * (1 if label == "a" else -1) + shift
        spread = np.array([-1.0, -0.5, 0.0, 0.5, 1.0]) * 0.06
        tables = [
            table(f"{label}{seed}", hard + own + spread[seed] + 0.01 * rng.normal(size=40), seed=first + seed)
            for seed in range(5)
        ]
        arms.append(Arm(label=label, tables=tuple(tables)))
    (claim,) = compare_arms(arms).claims
    both, seeds, items = (each.p_value for each in claim.differences)
    assert both > max(seeds, items) and claim.evidence == claim.differences[:1]
    assert claim.errors is not None and claim.errors.seed > 0 and claim.errors.item > 0


def test_one_run_is_no_method_and_a_picked_checkpoint_is_lucky() -> None:
    a, b = table("a", [0, 1] * 8, seed=0), table("b", [1, 1] * 8, seed=1, was_selected_on=True)
    notes = compare_arms(one(a, b)).notes
    assert any("a claim about a method needs several seeds" in note for note in notes)
    (picked,) = [note for note in notes if note.startswith("b is not its run's last checkpoint")]
    assert "report it on items that picked nothing" in picked and "up to about" not in picked
    many = table("b", [0, 1] * 50, was_selected_on=True, selected_among=10)  # standard error 0.05025
    (picked,) = [each for each in compare_arms(one(table("a", [0, 1] * 50), many)).notes if "picked" in each]
    assert "(up to about 0.077, as the best of 10 that are equal)" in picked
    mixed = compare_arms([seeded("a", [0], 0.0), seeded("b", range(5), 0.5)])
    assert any("a is one run: it is held as a fixed checkpoint" in note for note in mixed.notes)
    assert "fixed checkpoint" in mixed.claims[0].differences[1].test
    with pytest.raises(DataError, match="seed 0 stands there twice"):
        compare_arms([seeded("a", [0, 0], 0.0), seeded("b", [1], 0.0)])


def test_slices_pay_for_their_number() -> None:
    rng = np.random.default_rng(5)
    kinds = tuple(f"k{index // 40}" for index in range(400))
    a = rng.integers(0, 2, size=400).astype(float)
    b = a.copy()
    b[:20] = 1.0  # one slice gets better
    found = compare_arms(
        one(table("a", a, slices={"kind": kinds}), table("b", b, slices={"kind": kinds})), slice_field="kind"
    )
    rows = found.claims[0].slices
    assert [row.value for row in rows] == sorted(set(kinds))
    expected = scipy.stats.false_discovery_control([row.found.p_value for row in rows])
    assert [row.p_adjusted for row in rows] == pytest.approx(expected.tolist())
    assert rows[1].verdict == "undecided" and rows[1].found.p_value == 1.0
    arms = [
        Arm(
            label=name,
            tables=tuple(table(f"{name}{seed}", scores, slices={"kind": kinds}, seed=seed) for seed in range(3)),
        )
        for name, scores in (("a", a), ("b", b))
    ]
    (of_seeds,) = compare_arms(arms, slice_field="kind").claims
    assert {row.found.unit for row in of_seeds.slices} == {"both"}


def test_clusters_are_what_counts() -> None:
    clusters = tuple(str(index // 10) for index in range(60))
    b = np.repeat([1.0, 1.0, 1.0, 1.0, 0.0, 0.0], 10)
    found = compare_arms(one(table("a", np.zeros(60), clusters=clusters), table("b", b, clusters=clusters)))
    assert (found.claims[0].over_items.unit, found.num_clusters) == ("cluster", 6)
    assert found.claims[0].over_items.p_value == 2 / 2**4  # four clusters differ, all to one side
    assert any("6 clusters are few" in note for note in found.notes)


def test_an_arm_whose_items_are_all_alike_is_not_known_for_sure() -> None:
    """Six items in three clusters, all right; then four items, each right in one answer of two."""
    in_clusters = compare_arms(one(*(table(name, np.ones(6), clusters=tuple("aabbcc")) for name in "xy"))).arms[0]
    assert (in_clusters.low, in_clusters.high) == pytest.approx(wilson_interval(3, 3))
    assert in_clusters.interval == "Wilson on 3 clusters"
    halves = compare_arms(one(*(table(name, np.tile([0.0, 1.0], (4, 1))) for name in "xy"))).arms[0]
    assert halves.mean == 0.5 and np.isnan([halves.low, halves.high]).all()
