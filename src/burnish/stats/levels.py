"""What a level may be."""

import math


def require_alpha(alpha: float) -> None:
    """Refuse what is no chance of a false finding.

    Raises:
        ValueError: it does not lie between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, and is {alpha:g}: 0.05 is usual")


def require_margin(margin: float | None) -> None:
    """Refuse what is no difference that is too small to matter.

    Raises:
        ValueError: it is not above 0.
    """
    if margin is not None and not 0 < margin < math.inf:
        raise ValueError(f"the margin must be above 0, and is {margin:g}: the largest difference that does not matter")
