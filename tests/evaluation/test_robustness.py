import dataclasses
from typing import Any

import numpy as np
import pytest

from burnish.errors import DataError, UserError
from burnish.evaluation.robustness import robustness
from burnish.evaluation.table import ScoreTable
from burnish.stats.discordance import mcnemar_exact, newcombe_paired_interval

PLAIN = [1] * 40 + [0] * 10
TYPOS = [0] * 9 + [1] * 31 + [1] * 1 + [0] * 9  # 9 only plain, 1 only typos


def table(scores: list[Any], perturb: str | None = None, *, temperature: float = 0.0, **more: Any) -> ScoreTable:
    settings = {"items": "x", "sampling": {"temperature": temperature}}
    scores_IK = np.array(scores, dtype=np.float64)
    made = ScoreTable(
        label="m",
        ids=tuple(map(str, range(len(scores)))),
        scores_IK=scores_IK[:, None] if scores_IK.ndim == 1 else scores_IK,
        clusters=None,
        slices={},
        settings=settings if perturb is None else settings | {"perturb": perturb},
        origin={"model": {"sha256": "a"}, "compute_dtype": "float32"},
    )
    return dataclasses.replace(made, **more)


def test_each_form_against_the_plain_one_item_by_item() -> None:
    found = robustness(table(PLAIN), [table(TYPOS, "typos"), table(PLAIN, "upper_case")])
    typos, same = found.forms
    assert (typos.perturb, typos.found.n, typos.found.test) == ("typos", 50, "exact McNemar")
    assert typos.found.difference == pytest.approx(-8 / 50)
    p = mcnemar_exact(9, 1)
    assert typos.found.p_value == p and typos.p_adjusted == pytest.approx(2 * p)  # Holm: the smaller of two
    assert (typos.found.low, typos.found.high) == pytest.approx(newcombe_paired_interval(31, 1, 9, 9))
    assert (typos.verdict, same.verdict, same.p_adjusted) == ("worse", "undecided", 1.0)
    assert found.plain.value == 0.8 and found.plain.method == "Wilson"
    assert found.worst is not None and found.worst.value == 31 / 50 and found.worst.n == 50


def test_equivalence_within_a_margin() -> None:
    found = robustness(table([1, 0] * 100), [table([1, 0] * 100, "typos")], margin=0.05)
    assert found.forms[0].verdict == "equivalent"


def test_sampled_answers_have_no_worst_form() -> None:
    many = [[1, 0, 1], [0, 0, 1]]
    found = robustness(table(many, temperature=1.0), [table(many, "typos", temperature=1.0)])
    assert found.worst is None and found.forms[0].found.difference == 0


def test_an_answer_without_a_score_is_wrong_here_too() -> None:
    found = robustness(table([1, 1, 1]), [table([1, 1, float("nan")], "typos")])
    assert found.num_items == 3 and found.forms[0].found.difference == pytest.approx(-1 / 3)


def test_what_cannot_be_paired_is_refused() -> None:
    plain, typos = table(PLAIN), table(TYPOS, "typos")
    other = {"model": {"sha256": "b"}, "compute_dtype": "float32"}
    for error, message, first, rest in (
        (UserError, "at least one of changed ones", plain, []),
        (UserError, "the first store must hold the plain questions, not typos", typos, [plain]),
        (UserError, "a store after the first must be evaluated with task.perturb", plain, [plain]),
        (UserError, "the form 'typos' is given twice", plain, [typos, typos]),
        (DataError, "are not the same model", plain, [dataclasses.replace(typos, origin=other)]),
        (DataError, "sampling.temperature is 0.0 in the first", plain, [table(TYPOS, "typos", temperature=1.0)]),
        (DataError, "not of the same items", plain, [table(TYPOS[:40], "typos")]),
    ):
        with pytest.raises(error, match=message):
            robustness(first, rest)
    with pytest.raises(UserError, match="alpha"):
        robustness(plain, [typos], alpha=1.5)
