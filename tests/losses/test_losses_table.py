"""docs/losses.md is made of the differences that the parity tests kept. Remake it with DOCS=write."""

import json
import os
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "losses.md"

# What no peer at hand has, or has otherwise: worked by hand, or against a naive reference.
BY_HAND = (
    ("cdpo", "Mitchell 2023, eq. 3", "by hand", "tests/losses/test_preference.py"),
    ("sigmoid, score_margin", "Amini et al. 2024, eq. 8, f the identity", "by hand", "tests/losses/test_preference.py"),
    ("bco, threshold", "Jung et al. 2024, eq. 9", "by hand", "tests/losses/test_preference.py"),
    ("reward model, several grades", "Ouyang et al. 2022, eq. 1", "by hand", "tests/losses/test_preference.py"),
    ("gspo_token", "Zheng et al. 2025, eq. 13", "by hand", "tests/losses/test_policy_gradient.py"),
    ("dppo, binary total variation", "Qi et al. 2026, eq. 12", "by hand", "tests/losses/test_policy_gradient.py"),
    ("importance: sequence, geometric, mask", "Liu et al. 2025", "by hand", "tests/losses/test_policy_gradient.py"),
    ("advantages, all six", "losses/advantages.py", "by hand", "tests/losses/test_advantages.py"),
    ("advantage estimation, GAE", "Schulman et al. 2016, eq. 16", "a loop over tokens", "tests/losses/test_value.py"),
    ("value loss, clipped", "Engstrom et al. 2020, eq. 3", "by hand", "tests/losses/test_value.py"),
    ("sampled reverse KL", "Lu et al. 2025", "by hand", "tests/losses/test_distillation.py"),
    ("forward KL, reverse KL, JSD", "Agarwal et al. 2024, eq. 1", "torch kl_div", "tests/models/test_divergence.py"),
    ("negative log-likelihood", "", "by hand", "tests/losses/test_distillation.py"),
)  # fmt: skip

DIFFERENCES = {
    "ipo": "averages the log-ratios over tokens, as TRL does after asking the authors.",
    "nll": "averages over the tokens of each answer (RPO, eq. 2), TRL over those of the batch; they agree on answers "
    "of equal length.",
    "bco": "has the paper's threshold, TRL 1.16 has none; they agree at threshold 0.",
    "orpo": "includes the likelihood term.",
    "cispo": "has the paper's upper bound only, written as 1 + high where TRL writes the bound itself.",
    "discopop": "with its usual temperature of 0.05 slopes the wrong way near a margin of 0: that is the function its "
    "authors found, and `burnish check loss` says so.",
}


def page() -> str:
    kept = {**json.loads((HERE / "parity_preference.json").read_text())}
    kept |= json.loads((HERE / "parity_policy.json").read_text())
    lines = [
        "# Losses, and how they were compared",
        "",
        "[The maths](reference/maths.md) has the formulas, from the top of `losses/preference.py`,",
        "`losses/policy_gradient.py` and `losses/advantages.py`.",
        "",
        "## Against TRL 1.16",
        "",
        "TRL's own loss function and ours on the same random float32 log-probabilities; the largest difference of the",
        "value, and of the gradient by any token. The tests hold 1e-5. Made by `tests/losses/test_losses_table.py`.",
        "",
        "| loss | source | TRL | value | gradient |",
        "|---|---|---|---|---|",
    ]
    for name, each in kept.items():
        peer = each["peer"].removeprefix("TRL 1.16 ").strip()
        lines.append(f"| {name} | {each['source']} | {peer} | {each['value']:.0e} | {each['gradient']:.0e} |")
    lines += [
        "",
        "Where TRL and the paper differ, this is what is done here:",
        "",
        *(f"- `{name}` {what}" for name, what in DIFFERENCES.items()),
        "",
        "## Otherwise",
        "",
        "| loss | source | compared with | where |",
        "|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in BY_HAND),
        "",
    ]
    return "\n".join(lines)


def test_the_page_is_what_the_tests_found() -> None:
    if os.environ.get("DOCS") == "write":
        PAGE.write_text(page())
    assert PAGE.read_text() == page()


def test_where_is_there() -> None:
    for *_, where in BY_HAND:
        assert (HERE.parents[1] / where).is_file(), where
