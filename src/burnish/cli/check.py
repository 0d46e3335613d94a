"""`burnish check loss`."""

from burnish.losses.loss import load_loss
from burnish.training.check_loss import check_loss


def check_own_loss(path: str, *, at_ends: bool) -> int:
    """Print what is wrong with a loss; exit status 1 where something is."""
    return _print(path, check_loss(load_loss(path, "loss"), at_ends=at_ends))


def _print(what: str, findings: list[str]) -> int:
    for finding in findings:
        print(f"{what}: {finding}")
    if not findings:
        print(f"{what}: nothing found")
    return 1 if findings else 0
