r"""A judge that says what a function says, over real HTTP on this machine: for tests, and to try a recipe out.

with ScriptedJudge(lambda question: "Fine.\nScore: 7") as server:
    judge = Judge(url=server.url, model="scripted", rubric="...")
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer of the server that is no reply; with status 0 it closes the connection without a word."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # with the default of 5, a burst of questions waits a second for the next try
    daemon_threads = False  # closing waits for those that still answer


class ScriptedJudge:
    """An endpoint at `url` that answers each question with what `reply` makes of it; `requests` are the bodies it got.

    `keys` are the Authorization headers. `reply` is called from several threads at once.
    """

    def __init__(self, reply: Callable[[str], str | Refusal]) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self._server = _Server(("127.0.0.1", 0), _handler(self, reply))
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(judge: ScriptedJudge, reply: Callable[[str], str | Refusal]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            judge.requests.append(body)
            judge.keys.append(self.headers["Authorization"])
            said = reply(body["messages"][-1]["content"]) if self.path == "/v1/chat/completions" else Refusal(404)
            if said == Refusal(0):
                self.close_connection = True
            elif isinstance(said, Refusal):
                self._send(said.status, said.headers, {"error": "refused"})
            else:
                message = {"role": "assistant", "content": said}
                self._send(200, {}, {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

        def _send(self, status: int, headers: Mapping[str, str], body: Mapping[str, Any]) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Type": "application/json"}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name in the base class
            """Print nothing."""

    return Handler
