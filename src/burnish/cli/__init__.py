"""The `burnish` command: one file per command, imported when it is used."""

import sys

_WITH_TENSORS = ("train", "resume", "rerun", "verify", "eval")


def main() -> None:
    """Run the command line. A burnish error is one line on standard error; see errors.py for the exit status."""
    if sys.argv[1:2] and sys.argv[1] in _WITH_TENSORS:
        from burnish.memory.allocator import restart_for_tensors

        restart_for_tensors()
    from burnish.cli.app import run

    sys.exit(run(sys.argv[1:]))
