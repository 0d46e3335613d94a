"""The settings of a server. Each field's description is its only documentation."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from burnish.config.schema import ModelConfig, Section
from burnish.errors import ConfigError

_LOOPBACK = ("127.0.0.1", "::1", "localhost")

LOAD_SECONDS = 1800.0
"""Whoever brings weights to a running server waits so long: large ones, on a slow disk."""


class EngineConfig(Section):
    """How answers are made."""

    kind: Literal["native", "vllm"] = "native"
    """Who makes the tokens: burnish, or vLLM, in a process of its own for each set of weights. `--engine vllm` is short
    for it."""
    vllm_python: str | None = None
    """The interpreter of vLLM's environment; null is the one that burnish runs with. With `model.compute_dtype` auto
    the type is that of the device that burnish itself finds: name one where vLLM computes on another."""
    max_rows: int = Field(32, ge=1)
    """Answers that are made at once."""
    max_waiting: int = Field(256, ge=0)
    """Answers that may wait for their turn; what comes then is refused with 503."""
    prefill_tokens: int = Field(256, ge=16)
    """Tokens of prompts that are read in one step: more make prompts quicker and the answers of others slower."""
    cache_tokens: int = Field(65_536, ge=1)
    """Tokens of all answers that are made at once, with their prompts and at their longest; others wait. A token takes
    2 x layers x key-value heads x head size x bytes of the type: 23 KB in SmolLM2-135M, 128 KB in Llama-3-8B."""
    prefix_bytes: int = Field(256_000_000, ge=0)
    """Keys and values of prompts that are kept for prompts of the same key that begin alike, for each set of weights; 0
    keeps none."""

    @model_validator(mode="after")
    def _refuse_what_would_be_ignored(self) -> "EngineConfig":
        of = {"native": ("prefill_tokens", "prefix_bytes"), "vllm": ("vllm_python",)}
        for kind, keys in of.items():
            if kind != self.kind and (given := [key for key in keys if self.changes(key)]):
                raise ConfigError(f"engine.{given[0]} would be ignored: it belongs to engine.kind={kind}")
        return self


class LimitsConfig(Section):
    """What a request may ask for. More is refused with 400, or 413 for a body that is too large."""

    body_bytes: int = Field(2_000_000, ge=1)
    """Size of a request."""
    completions: int = Field(16, ge=1)
    """`n`, times the prompts of a request."""
    tokens: int = Field(4096, ge=1)
    """Tokens of an answer. One that names no number may have as many, as far as the context goes."""
    logprobs: int = Field(20, ge=0)
    """`top_logprobs`, or `logprobs` of a completion."""
    echo_tokens: int = Field(4096, ge=0)
    """Tokens of the prompts of a request whose log-probabilities are told (`echo` with `logprobs`), once for each
    answer. They are computed as slowly as a prompt is read, or slower."""
    stops: int = Field(8, ge=0)
    """Stop strings."""
    stop_characters: int = Field(256, ge=1)
    """Characters of a stop string."""
    biases: int = Field(1024, ge=0)
    """Entries of `logit_bias`."""
    schema_characters: int = Field(20_000, ge=1)
    """Characters of a JSON schema that answers must have, or of those of tools of which one must be called."""
    tools: int = Field(64, ge=0)
    """Tools that a request may offer."""
    answers: int = Field(64, ge=1)
    """Answers of one key that wait or are made; more are refused with 503."""
    connections: int = Field(1000, ge=1)
    """Connections that are open at once."""
    head_seconds: float = Field(15.0, gt=0)
    """Time for the first line and the headers of a request to arrive; then the connection is cut."""
    unread_seconds: float = Field(30.0, gt=0)
    """A connection whose client takes nothing of its answer for so long is cut, and the answer ends."""
    requests_per_minute: float | None = Field(None, gt=0)
    """Of each who may ask, with bursts of as many; more are refused with 429. Null is no limit."""
    seconds: float = Field(600.0, gt=0)
    """Time for an answer, from when it is asked for."""


class StoreConfig(Section):
    """Where requests, answers and feedback are kept, to learn from."""

    url: str | None = Field(None, min_length=1)
    """A file for SQLite, or postgresql://... where several servers share it; null keeps nothing."""
    keep_days: float = Field(30.0, gt=0)
    """What is older is removed."""
    redact: tuple[Literal["email", "card", "phone", "address"], ...] = ("email", "card", "phone")
    """What is blotted out of texts before they are written, by its form; `address` is of a computer."""


class DeployConfig(Section):
    """How new weights are tried beside those that serve."""

    alpha: float = Field(0.05, gt=0, lt=1)
    """Share of deployments in which a canary that is no worse is rolled back, at most."""
    margin: float = Field(0.1, gt=0, lt=1)
    """A canary is promoted when each measure excludes that it is worse by so much, as a share of answers."""
    min_answers: int = Field(100, ge=10)
    """Answers of a canary before it may be promoted."""
    max_answers: int = Field(3000, ge=10)
    """Answers of a canary after which it is promoted if nothing was shown."""
    first_token_seconds: float = Field(5.0, gt=0)
    """A first token that comes later counts as slow."""
    is_automatic: bool = True
    """Promote without being told; rolling back is never waited for."""

    @model_validator(mode="after")
    def _check_order(self) -> "DeployConfig":
        if self.max_answers < self.min_answers:
            raise ConfigError(f"deploy.max_answers={self.max_answers} is below deploy.min_answers={self.min_answers}")
        return self


class GrpcConfig(Section):
    """The door for gRPC: answers, the Open Inference Protocol, and health."""

    port: int | None = Field(None, ge=0, le=65535)
    """Port on the same host; null is off, 0 takes a free one and says which."""
    reflection: bool = False
    """Tell whoever asks which services and messages there are."""
    message_bytes: int = Field(4_194_304, ge=1000)
    """Size of a message, both ways. Clients take no larger ones either, unless they are told to."""


class AdminConfig(Section):
    """The routes that change what is served, on a port of their own."""

    port: int | None = Field(None, ge=0, le=65535)
    """Port on the same host; null is off. It needs a key of the role admin."""
    grpc_port: int | None = Field(None, ge=0, le=65535)
    """The same over gRPC; null is off. It needs admin.port, too."""
    weights_folder: Path | None = None
    """Weights are taken from here alone, and from folders below."""

    @model_validator(mode="after")
    def _needs_a_folder(self) -> "AdminConfig":
        if (self.port is None) != (self.weights_folder is None):
            raise ConfigError("admin.port and admin.weights_folder belong together: give both, or neither")
        if self.grpc_port is not None and self.port is None:
            raise ConfigError("admin.grpc_port needs admin.port and admin.weights_folder")
        return self


class DriftConfig(Section):
    """Whether prompts and answers are still like those of the reference."""

    window: int | None = Field(250, ge=50)
    """Answers of a look: each time as many are new, they are compared with the reference. Null is off."""
    reference: int = Field(1000, ge=100)
    """Answers of the reference: the first ones. With fewer than a day has, its hours are found to differ."""
    reference_file: Path | None = None
    """Where the reference is kept: read if it is there, else written when it is complete. Null keeps none."""
    alpha: float = Field(0.05, gt=0, lt=1)
    """Chance of a false alarm, of all features together, in `looks` looks; each look may spend an equal part of it."""
    looks: int = Field(30, ge=1)
    """Looks that share `alpha`: give as many as there are in the time in which one false alarm may be had."""


class TlsConfig(Section):
    """TLS for every door."""

    certificate: Path
    """File with the certificate and those that signed it, as PEM."""
    key: Path
    """File with its key, as PEM."""


class TracingConfig(Section):
    """Spans of answers for OpenTelemetry."""

    endpoint: str | None = Field(None, pattern="^https?://")
    """Where spans go as OTLP over HTTP, as http://127.0.0.1:4318/v1/traces; null is off."""


class ServeConfig(Section):
    """A server of one model."""

    model: ModelConfig
    name: str | None = Field(None, min_length=1, max_length=128)
    """What requests call the model; null is the name of its folder or run."""
    also: dict[str, str] = Field({})
    """{"name": "path", ...}: other models, or trained adapters, by the names that requests call them. Each is loaded
    whole, an adapter with its base."""
    host: str = "127.0.0.1"
    """Address to listen on. Elsewhere than on 127.0.0.1 give keys_file, too."""
    port: int = Field(8000, ge=0, le=65535)
    """Port; 0 takes a free one and says which."""
    keys_file: Path | None = None
    """A file with a line `ROLE NAME KEY` for each who may ask; the role is user, admin, or monitor (who may
    read /metrics alone). Null asks for no key."""
    drain_seconds: float = Field(60.0, ge=0)
    """After SIGTERM, time for the answers that are under way."""
    engine: EngineConfig = EngineConfig()
    limits: LimitsConfig = LimitsConfig()
    store: StoreConfig = StoreConfig()
    deploy: DeployConfig = DeployConfig()
    drift: DriftConfig = DriftConfig()
    tls: TlsConfig | None = None
    """TLS for every door, with the files of a certificate; null is none."""
    tracing: TracingConfig = TracingConfig()
    grpc: GrpcConfig = GrpcConfig()
    admin: AdminConfig = AdminConfig()

    @model_validator(mode="after")
    def _refuse_what_is_open(self) -> "ServeConfig":
        if self.model.lora is not None:
            raise ConfigError("model.lora is for training: serve a folder that holds the trained adapter")
        if self.engine.kind == "vllm" and self.model.device != "auto":
            raise ConfigError("model.device would be ignored: engine.kind=vllm computes where its vLLM was built for")
        if self.host not in _LOOPBACK and self.keys_file is None:
            raise ConfigError(f"host={self.host} lets others ask: give keys_file, or listen on 127.0.0.1")
        if self.admin.port is not None and self.keys_file is None:
            raise ConfigError("admin.port needs keys_file, with a key of the role admin")
        return self
