"""What to do about an alert."""

from __future__ import annotations

import difflib
import re
from functools import cache
from importlib.resources import files

from burnish.errors import UserError


def runbooks_page() -> str:
    """All of them, as Markdown."""
    return files("burnish.monitoring").joinpath("runbooks.md").read_text(encoding="utf-8")


@cache
def sections() -> dict[str, str]:
    """The text of each alert's section."""
    parts = re.split(r"^## (\w+)\n", runbooks_page(), flags=re.MULTILINE)
    return {name: text.strip() for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def section_of(alert: str) -> str:
    """The section that an alert's runbook is: the burn rates of all objectives share one."""
    return "Slo" if alert.startswith("Slo") else alert


def runbook(alert: str) -> str:
    """The runbook of an alert.

    Raises:
        UserError: there is none.
    """
    if (text := sections().get(section_of(alert))) is None:
        by_lower = {name.lower(): name for name in sections()}
        close = difflib.get_close_matches(alert.lower(), by_lower, n=1)
        meant = f"did you mean {by_lower[close[0]]}? " if close else ""
        raise UserError(f"{alert}: has no runbook; {meant}there is {', '.join(sections())}")
    return text
