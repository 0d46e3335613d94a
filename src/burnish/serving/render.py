"""Files that run a server elsewhere: an image, and what Kubernetes needs of it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any

import yaml

from burnish.config.serving import ServeConfig
from burnish.errors import ConfigError

_DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_PRE_STOP_SECONDS = 5  # until no new request is sent here any more
_LAST_SECONDS = 20

_CONTAINERFILE = """# burnish serve in an image: build it beside a wheel of burnish, in dist/
FROM docker.io/library/python:3.12-slim
RUN useradd --create-home --uid 10001 burnish
COPY dist/*.whl /tmp/
RUN pip install --no-cache-dir "$(ls /tmp/*.whl)[serve]" && rm /tmp/*.whl
USER burnish
WORKDIR /home/burnish
EXPOSE 8000
ENTRYPOINT ["burnish", "serve"]
"""


def containerfile() -> str:
    """An image whose entry point is `burnish serve`; it runs as a user without rights."""
    return _CONTAINERFILE


def serving_manifest(
    config: ServeConfig, model: str, settings: Sequence[str], *, name: str, image: str, claim: str, secret: str
) -> str:
    """A Deployment and its Service. The model lies on the volume of `claim`, mounted at /models; the file of keys is
    the entry `keys` of the secret. A pod takes requests when it is ready, and has time to end its answers when it goes.

    Raises:
        ConfigError: a name that Kubernetes refuses, or a setting that the manifest makes or its image cannot follow.
    """
    if not _DNS_LABEL.fullmatch(name):
        raise ConfigError(f"--name={name}: Kubernetes wants a letter, then at most 62 small letters, digits and '-'")
    if config.engine.kind == "vllm":
        raise ConfigError("engine.kind=vllm: the image of burnish has no vLLM, and would not start; leave it out")
    for key in ("--host", "--port", "--keys_file"):
        if any(word == key or word.startswith(f"{key}=") for word in settings):
            raise ConfigError(f"{key}: the manifest sets it; leave it out")
    command = ["--host", "0.0.0.0", "--port", "8000", "--keys_file", "/keys/keys", *settings]
    drain, scheme = int(config.drain_seconds), "HTTP" if config.tls is None else "HTTPS"
    container: dict[str, Any] = {
        "name": "burnish",
        "image": image,
        "args": [model, *command],
        "ports": [{"name": "http", "containerPort": 8000}],
        "startupProbe": _probe("/readyz", scheme, period=5, failures=120),
        "readinessProbe": _probe("/readyz", scheme, period=5, failures=2),
        "livenessProbe": _probe("/progress", scheme, period=20, failures=3),
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(_PRE_STOP_SECONDS)]}}},
        "volumeMounts": [
            {"name": "models", "mountPath": "/models"},
            {"name": "keys", "mountPath": "/keys", "readOnly": True},
        ],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    pod = {
        "terminationGracePeriodSeconds": _PRE_STOP_SECONDS + drain + _LAST_SECONDS,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "fsGroup": 10001},
        "containers": [container],
        "volumes": [
            {"name": "models", "persistentVolumeClaim": {"claimName": claim}},
            {"name": "keys", "secret": {"secretName": secret}},
        ],
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": pod},
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
    }
    said = f"# burnish serve {shlex.join([model, *command])}\n"
    return said + yaml.safe_dump_all([deployment, service], sort_keys=False)


def _probe(path: str, scheme: str, *, period: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": "http", "scheme": scheme},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }
