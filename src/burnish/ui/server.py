"""The server of the page, until Ctrl-C."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress

import uvicorn

from burnish.errors import MachineError
from burnish.ui.app import Places, create_app
from burnish.ui.serving import require_url

_HOST = "127.0.0.1"
"""The page shows whatever the folders hold and asks for no key: it is for whoever works on this machine."""
_CONNECTIONS = 100
_STOP_SECONDS = 2


def serve_page(places: Places, port: int, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; port 0 takes a free one.

    Raises:
        UserError: an address that is none.
        MachineError: the port is taken.
    """
    if places.serve_url is not None:
        require_url(places.serve_url)
    config = uvicorn.Config(
        create_app(places),
        log_level="error",
        access_log=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=_STOP_SECONDS,
        http="h11",
        ws="none",
        lifespan="off",
    )
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((_HOST, port))
        except OSError as error:
            raise MachineError(f"cannot listen on {_HOST}:{port} ({error.strerror}): give another --port") from error
        listening.listen()
        address = f"http://{_HOST}:{listening.getsockname()[1]}"
        say(f"{address} shows {places.runs_folder} and {places.evals_folder}; Ctrl-C ends it")
        with suppress(KeyboardInterrupt):  # it has ended in order before this is raised
            uvicorn.Server(config).run(sockets=[listening])
