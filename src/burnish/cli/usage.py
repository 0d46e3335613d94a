"""What is said of a command line that cannot be read, and what an exit status means."""

import difflib
from collections.abc import Sequence

from cyclopts import App, CycloptsError, MissingArgumentError, UnusedCliTokensError

EXIT_STATUSES = (
    "Exit status: 0 done, 1 the answer is no, 2 a mistake to mend, 3 the machine failed, 4 burnish failed, 130 Ctrl-C."
)


def usage_fault(error: CycloptsError) -> str:
    """What is wrong with the command line, and where its right form is shown."""
    command = " ".join(error.command_chain or ())
    return f"{_what(error, command)} See: {' '.join(('burnish', *command.split()))} --help"


def nearest_flag(app: App, words: Sequence[str], key: str) -> str:
    """A flag of the command itself that is nearly a setting which is not there; the command takes any as a setting."""
    _, apps, _ = app.parse_commands(words)
    flags = [name for argument in apps[-1].assemble_argument_collection() for name in argument.names]
    close = difflib.get_close_matches(f"--{key.replace('_', '-')}", flags, n=1, cutoff=0.8)
    return f"; did you mean {close[0]!r}?" if close else ""


def _what(error: CycloptsError, command: str) -> str:
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return f"{command}: {error.unused_tokens[0]!r} is one word too many."
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        field = error.argument.field_info
        if field.is_positional:
            return f"{command}: {field.name.upper()} is missing."
        return f"{command}: {error.argument.name} needs a value."
    return str(error)
