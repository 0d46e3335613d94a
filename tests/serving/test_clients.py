"""The server under clients that were not made for it: k6, guidellm, lm-eval. `make test-clients` has them."""

import json
import math
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .test_grpc import CLIENTS, ROOT, GrpcServer
from .test_rest import CHAT, KEY, ended

K6 = Path(__file__).parent / "k6"
BIN = Path(CLIENTS).parent

pytestmark = [
    pytest.mark.clients,
    pytest.mark.slow,
    pytest.mark.skipif(not (BIN / "k6").exists(), reason=f"no clients in {BIN}: `make .venv-clients/.done`"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Iterator[GrpcServer]:
    made = GrpcServer(tmp_path_factory.mktemp("served"), tiny_folder)
    yield made
    assert "Traceback" not in ended(made.rest)


def run(command: list[str], *, folder: Path, **environment: str) -> str:
    """What a client prints; it is offline, and none of this environment's packages are its."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, cwd=folder, env={**kept, **offline, **environment}
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_k6_over_http(server: GrpcServer, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{server.rest.port}"
    command = [str(BIN / "k6"), "run", "--no-usage-report", "--no-color", "--quiet", str(K6 / "http.js")]
    run(command, folder=tmp_path, URL=url, KEY=KEY)
    assert server.rest.request("/v1/chat/completions", CHAT)[0] == 200


def test_k6_over_grpc(server: GrpcServer, tmp_path: Path) -> None:
    command = [str(BIN / "k6"), "run", "--no-usage-report", "--no-color", "--quiet", str(K6 / "grpc.js")]
    run(command, folder=tmp_path, ADDRESS=f"127.0.0.1:{server.port}", PROTOS=str(ROOT / "src"), KEY=KEY)


def test_guidellm(server: GrpcServer, tmp_path: Path, tiny_folder: Path) -> None:
    """Its own count of tokens is what was asked for, and no request failed."""
    target = f"kind=openai_http,target=http://127.0.0.1:{server.rest.port},model=tiny,api_key={KEY}"
    report = tmp_path / "report.json"
    command = [str(BIN / "guidellm"), "run", "--backend", f"{target},request_format=/v1/completions"]
    command += ["--tokenizer", f"kind=huggingface_auto,model={tiny_folder}"]
    command += ["--profile", "kind=concurrent,streams=4", "--constraint", "kind=max_requests,count=12"]
    command += ["--data", "kind=synthetic_text,prompt_tokens=40,output_tokens=8"]
    command += ["--output", f"kind=json,path={report}", "--disable-console"]
    run(command, folder=tmp_path)
    (found,) = json.loads(report.read_text())["benchmarks"]
    totals = found["metrics"]["request_totals"]
    assert (totals["successful"], totals["errored"], totals["incomplete"]) == (12, 0, 0)
    assert found["metrics"]["output_token_count"]["successful"]["mean"] == 8


TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: 0
target_delimiter: ""
metric_list: [{metric: acc}]
"""


@pytest.mark.parametrize("tokenized", [True, False])
def test_lm_eval_scores_choices(server: GrpcServer, tmp_path: Path, tiny_folder: Path, tokenized: bool) -> None:
    """Its sums of log-probabilities are those of plain transformers."""
    lines = [
        {"question": f"What is {n} + {n}?", "choices": [f" {2 * n}", f" {2 * n + 1} and more"]} for n in range(3, 9)
    ]
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "tiny_choice.yaml").write_text(TASK % (tmp_path / "lines.jsonl"))
    url = f"http://127.0.0.1:{server.rest.port}/v1/completions"
    model = f"model=tiny,base_url={url},tokenizer={tiny_folder},tokenizer_backend=huggingface,max_length=512"
    command = [str(BIN / "lm-eval"), "run", "--model", "local-completions", "--tasks", "tiny_choice"]
    command += ["--model_args", f"{model},tokenized_requests={tokenized},num_concurrent=1,max_retries=1"]
    command += ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "out"), "--log_samples"]
    run(command, folder=tmp_path, OPENAI_API_KEY=KEY)
    (samples,) = (tmp_path / "out").rglob("samples_tiny_choice_*.jsonl")
    found = {line["doc_id"]: line for line in map(json.loads, samples.read_text().splitlines())}
    assert len(found) == len(lines)
    for number, line in enumerate(lines):
        for choice, response in zip(line["choices"], found[number]["resps"], strict=True):
            wanted = scored(server, str(line["question"]), choice)
            value = float(re.findall(r"-?[\d.]+", str(response))[0])
            assert math.isclose(value, wanted, abs_tol=1e-3)


def scored(server: GrpcServer, context: str, choice: str) -> float:
    """The log-probability of a choice after its question, by the model in this process."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = server.rest.process.args[4]  # type: ignore[index]  # the command's model
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer(context + choice)["input_ids"]
    count = len(tokenizer(context)["input_ids"])
    with torch.no_grad():
        logprobs_TV = plain(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    picked: Any = logprobs_TV.gather(1, torch.tensor(ids[1:])[:, None])[count - 1 :, 0]
    return float(picked.sum())
