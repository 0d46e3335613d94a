"""Stands for vLLM's interpreter and its server, with the standard library alone. What an answer is like hangs on the
first token of its prompt; see `Handler.answer`. `fake.json` in the model's folder says what is told of prompts.
"""

import json
import os
import select
import sys
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any

COUNTS, SLOW, BREAKS_OFF, REFUSED, FAILS, NO_JSON, DIES, SILENT, SHORT, NOTHING = range(10, 20)


class Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True
    facts: dict[str, Any]

    def handle_error(self, *_: object) -> None:
        """Whoever asked may have left."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.whole(200, b"")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            self.answer(body)
            end = "whole"
        except OSError:
            end = "cut"
            self.close_connection = True
        with Path(self.server.facts["calls"]).open("a") as file:
            file.write(json.dumps({"end": end, "body": body}) + "\n")

    def answer(self, body: dict[str, Any]) -> None:
        if "prompt_logprobs" in body:
            if body["prompt"][0] == SILENT:
                Path(self.server.facts["calls"]).with_suffix(".begun").touch()
                self.pause(60)
            told = [
                {str(token): {"logprob": self.server.facts["logprob"][i]}} for i, token in enumerate(body["prompt"])
            ]
            for place in told:
                place["7"] = {"logprob": -9.0}
            self.whole(200, json.dumps({"choices": [{"prompt_logprobs": [None, *told[1:]]}]}).encode())
            return
        kind = body["prompt"][0]
        if kind == REFUSED:
            self.whole(400, b'{"error": "no"}')
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(body["max_tokens"]):
            if number == 2:
                self.go_wrong(kind)
            if kind == SLOW:
                self.pause(0.02)
            if kind != SHORT or number < 2:
                self.event(self.piece(self.server.facts["first"] + number, body["logprobs"]))
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def go_wrong(self, kind: int) -> None:
        if kind == BREAKS_OFF:
            raise OSError
        if kind == FAILS:
            self.event({"error": {"message": "planted"}})
        if kind == NO_JSON:
            self.chunk(b"data: {nonsense\n\n")
        if kind == NOTHING:
            self.event({"choices": [{"token_ids": [5]}]})
        if kind == DIES:
            sys.stderr.write("Error: planted death\n")
            sys.stderr.flush()
            os._exit(1)
        if kind == SILENT:
            self.pause(60)

    def piece(self, token: int, num_top: int) -> dict[str, Any]:
        tops = {f"token_id:{token}": -0.5} | {f"token_id:{100 + i}": -float(i) for i in range(num_top)}
        told = {"token_logprobs": [-0.5], "top_logprobs": [tops]}
        return {"choices": [{"text": "", "token_ids": [token], "logprobs": told}]}

    def pause(self, seconds: float) -> None:
        """Raises an OSError when the client leaves meanwhile."""
        if select.select([self.connection], [], [], seconds)[0]:
            raise OSError

    def event(self, content: Any) -> None:
        self.chunk(f"data: {json.dumps(content)}\n\n".encode())

    def chunk(self, text: bytes) -> None:
        self.wfile.write(f"{len(text):x}\r\n".encode() + text + b"\r\n")

    def whole(self, status: int, text: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass

    def address_string(self) -> str:
        return "unix"


def main(arguments: list[str]) -> None:
    if arguments[0] == "-c":  # whether vLLM is there
        if "FAKE_VLLM_IS_BROKEN" in os.environ:
            sys.exit("ImportError: libtorch.so: cannot open shared object file")
        sys.stdout.write("0.0.1\n")
        return
    facts = json.loads((Path(arguments[arguments.index("--model") + 1]) / "fake.json").read_text())
    Path(facts["options"]).write_text(json.dumps(arguments))
    if facts.get("is_broken"):
        sys.exit("ValueError: planted")
    time.sleep(facts.get("start_seconds", 0))
    with Server(arguments[arguments.index("--uds") + 1], Handler) as server:
        server.facts = facts
        server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
