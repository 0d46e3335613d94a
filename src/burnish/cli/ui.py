"""`burnish ui`: a page of this machine that shows what stands in the folders, and what a server says of itself."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from burnish.cli.arguments import EvalsFolder, RunsFolder
from burnish.config.extras import requires_extra
from burnish.errors import UserError


def ui(
    *,
    runs_folder: RunsFolder = Path("runs"),
    evals_folder: EvalsFolder = Path("evals"),
    port: Annotated[int, Parameter(help="Port on 127.0.0.1; 0 takes a free one.")] = 7878,
    serve_url: Annotated[str, Parameter(help="A server of `burnish serve` to look at; empty for none.")] = (
        "http://127.0.0.1:8000"
    ),
) -> int:
    """Show runs, rollouts, evaluations, alerts and a server on a page of this machine, until Ctrl-C. Changes nothing.

    Example: burnish ui --runs-folder runs --port 7878
    """
    if not 0 <= port <= 65_535:
        raise UserError(f"--port {port}: must lie between 0 and 65535")
    with requires_extra("serve", "burnish ui needs more packages"):
        from burnish.ui.app import Places
        from burnish.ui.server import serve_page
    places = Places(runs_folder=runs_folder, evals_folder=evals_folder, serve_url=serve_url or None)
    serve_page(places, port, lambda text: print(text, file=sys.stderr, flush=True))
    return 0
