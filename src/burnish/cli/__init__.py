"""The `burnish` command: one file per command, imported when it is used."""

import sys


def main() -> None:
    """Run the command line. A burnish error is one line on standard error; see errors.py for the exit status."""
    from burnish.cli.app import run

    sys.exit(run(sys.argv[1:]))
