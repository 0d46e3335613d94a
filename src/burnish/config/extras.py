"""Packages that a plain installation leaves out."""

from collections.abc import Iterator
from contextlib import contextmanager

from burnish.errors import ConfigError


@contextmanager
def requires_extra(name: str, reason: str) -> Iterator[None]:
    """A place to import what the extra `name` brings. `reason` says what needs which package.

    Raises:
        ConfigError: a package is missing. A missing module of burnish itself is a fault, and stays an ImportError.
    """
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "burnish":
            raise
        raise ConfigError(f"{reason} ({error}): pip install 'burnish[{name}]'") from error
