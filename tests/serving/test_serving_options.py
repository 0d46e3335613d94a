"""Spans of answers, as a collector gets them."""

import http.client
import json
import threading
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from .test_rest import KEY, Server, ended, started

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Any]]]:
    """(URL, the spans that were sent there)."""
    spans: list[Any] = []

    class Take(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
            spans.extend(span for one in sent.resource_spans for scope in one.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Take)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/traces", spans
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.mark.slow
def test_a_span_for_each_answer(collector: tuple[str, list[Any]], tmp_path: Path, tiny_folder: Path) -> None:
    url, spans = collector
    server = started(tmp_path, tiny_folder, "--tracing.endpoint", url)
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5, "n": 2}
    status, found, _ = ask(server, body | {"ignore_eos": True}, traceparent=f"00-{TRACE}-{SPAN}-01")
    assert status == 200
    said = ended(server)  # which sends what is left
    assert "Traceback" not in said and "Error" not in said, said
    assert [span.name for span in spans] == ["chat tiny"] * 2, said
    for span in spans:
        attributes = {each.key: each.value for each in span.attributes}
        assert span.trace_id.hex() == TRACE and span.parent_span_id.hex() == SPAN
        assert attributes["gen_ai.usage.output_tokens"].int_value == 5
        assert attributes["gen_ai.usage.input_tokens"].int_value == found["usage"]["prompt_tokens"]
        assert attributes["gen_ai.response.finish_reasons"].array_value.values[0].string_value == "length"
        assert attributes["gen_ai.response.id"].string_value == found["id"].removeprefix("chatcmpl-")
        assert 0 < span.end_time_unix_nano - span.start_time_unix_nano < 60e9
        assert span.start_time_unix_nano <= span.events[0].time_unix_nano <= span.end_time_unix_nano


def ask(server: Server, body: dict[str, Any], **headers: str) -> tuple[int, Any, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    sent = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json", **headers}
    connection.request("POST", "/v1/chat/completions", json.dumps(body).encode(), sent)
    answer = connection.getresponse()
    found = answer.status, json.loads(answer.read()), answer.headers
    connection.close()
    return found


@pytest.fixture
def tiny_adapter_folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A trained adapter, as far as its weights say."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.slow
def test_several_models_and_an_adapter(
    tmp_path: Path, tiny_folder: Path, tiny_teacher_folder: Path, tiny_adapter_folder: Path
) -> None:
    also = json.dumps({"teacher": str(tiny_teacher_folder), "tuned": str(tiny_adapter_folder)})
    server = started(tmp_path, tiny_folder, "--also", also)
    models = server.request("/v1/models")[1]["data"]
    assert [each["id"] for each in models] == ["tiny", "teacher", "tuned"]
    assert len({each["fingerprint"] for each in models}) == 3
    body = {"prompt": "One two three", "max_tokens": 8, "temperature": 0}
    texts = [server.request("/v1/completions", body | {"model": each["id"]})[1] for each in models]
    assert len({each["choices"][0]["text"] for each in texts}) == 3
    ended(server)
