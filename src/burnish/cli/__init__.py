"""The `burnish` command: one file per command, imported when it is used."""

import sys
import traceback

_WITH_TENSORS = ("train", "resume", "rerun", "verify", "eval")
_FAULT = 4


def main() -> None:
    """Run the command line. A burnish error is one line on standard error; see errors.py for the exit status."""
    try:
        if sys.argv[1:2] and sys.argv[1] in _WITH_TENSORS:
            from burnish.memory.allocator import restart_for_tensors

            restart_for_tensors()
        from burnish.cli.app import run

        status = run(sys.argv[1:])
    except Exception:  # with Python's own status, 1, a script would take it for the answer no
        traceback.print_exc()
        print("burnish: this is a fault of burnish itself: please report it with the lines above", file=sys.stderr)
        status = _FAULT
    sys.exit(status)
