"""What /openapi.json says is so: schemathesis asks what it allows, and what it does not."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .test_rest import ADMIN, CHAT, KEY, Server, ended, started

LIMITS = {"max_tokens": 16, "max_completion_tokens": 16, "n": 2, "logprobs": 20, "top_logprobs": 20}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    limits = ["--limits.tokens", "16", "--limits.completions", "2"]
    made = started(folder, tiny_folder, "--store.url", str(folder / "answers.sqlite"), *limits)
    yield made
    assert "Traceback" not in ended(made)


def narrowed(described: dict[str, Any]) -> dict[str, Any]:
    """The same with this server's limits and its one model: other names are all refused alike."""
    for path in described["paths"].values():
        for operation in path.values():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            fields = body.get("properties", {})
            if "model" in fields:
                fields["model"] = {"const": "tiny"}
            for name, most in LIMITS.items():
                for kind in fields.get(name, {}).get("anyOf", ()):
                    if kind["type"] == "integer":
                        kind["maximum"] = most
            for kind in fields.get("logit_bias", {}).get("anyOf", ()):
                for values in kind.get("patternProperties", {}).values():
                    values |= {"minimum": -100, "maximum": 100}
    return described


@pytest.mark.slow
@pytest.mark.parametrize("key", [KEY, ADMIN])
def test_what_is_told_is_so(server: Server, key: str, tmp_path: Path) -> None:
    """No fault of the server, no answer that is not told, nothing taken that is not allowed, no key, no answer."""
    described = tmp_path / "openapi.json"
    described.write_text(json.dumps(narrowed(server.request("/openapi.json")[1])))
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", str(described), "--checks", "all"]
    # what the schema allows may still be more than a limit, or be no token of the model
    command += ["--url", f"http://127.0.0.1:{server.port}", "--exclude-checks", "positive_data_acceptance"]
    command += ["--header", f"Authorization: Bearer {key}", "--phases", "coverage,fuzzing", "--max-examples", "15"]
    command += ["--generation-deterministic", "--no-shrink", "--no-color"]
    command += ["--request-timeout", "20", "--warnings", "off", "--suppress-health-check", "all"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
    assert server.request("/v1/chat/completions", CHAT)[0] == 200
