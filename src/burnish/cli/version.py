"""`burnish --version`."""

import platform

import burnish
from burnish.reproducibility.environment import versions


def version_line() -> str:
    """What a report of a fault needs first, without loading anything; `burnish doctor` has the rest."""
    packages = [f"{name} {version}" for name, version in versions(["torch", "transformers"]).items() if version]
    return f"burnish {burnish.__version__} ({', '.join([f'Python {platform.python_version()}', *packages])})"
