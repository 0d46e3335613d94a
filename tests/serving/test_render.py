"""What Kubernetes is given to serve a model."""

import shlex
from typing import Any

import kubernetes_validate
import pytest
import yaml

from burnish.cli.app import run
from burnish.config.loading import resolve_layers
from burnish.config.serving import ServeConfig
from burnish.errors import ConfigError
from burnish.serving.render import serving_manifest

WHERE = {"name": "sums", "image": "registry/burnish:1", "claim": "models", "secret": "keys"}


def manifest(*settings: str, **changes: str) -> tuple[list[Any], str]:
    config = resolve_layers(ServeConfig, [], flags=["--model.path=/models/x", *settings], environment={}).config
    text = serving_manifest(config, "/models/x", settings, **(WHERE | changes))
    return list(yaml.safe_load_all(text)), text


def test_kubernetes_takes_it() -> None:
    (deployment, service), text = manifest("--limits.tokens", "100", "--drain_seconds", "30")
    for document in (deployment, service):
        kubernetes_validate.validate(document, "1.37", strict=True)
    assert "&id" not in text
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["terminationGracePeriodSeconds"] > 30 + 5  # what preStop and the answers under way need
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/progress"
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels == service["spec"]["selector"]
    assert service["spec"]["ports"][0]["targetPort"] == container["ports"][0]["name"]


def test_the_server_takes_its_arguments() -> None:
    """All but the model and the keys, which are there alone."""
    (deployment, _), text = manifest("--limits.tokens", "100")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert shlex.split(text.splitlines()[0])[3:] == container["args"]
    model, *flags = container["args"]
    config = resolve_layers(ServeConfig, [], flags=[f"--model.path={model}", *flags], environment={}).config
    assert (config.host, config.port, config.limits.tokens) == ("0.0.0.0", 8000, 100)


@pytest.mark.parametrize("flag", ["--host", "--port=1", "--keys_file=x"])
def test_what_the_manifest_sets_is_refused(flag: str) -> None:
    config = resolve_layers(ServeConfig, [], flags=["--model.path=/models/x"], environment={}).config
    with pytest.raises(ConfigError, match="the manifest sets it"):
        serving_manifest(config, "/models/x", [flag], **WHERE)
    with pytest.raises(ConfigError, match="Kubernetes wants a letter"):
        serving_manifest(config, "/models/x", [], **(WHERE | {"name": "No"}))


def test_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--image", "i", "--claim", "c", "--secret", "s", "--limits.tokens", "0"]
    assert run(["render", "serve", "/models/x", *arguments]) == 2
    assert "limits.tokens" in capsys.readouterr().err
    assert run(["render", "serve", "/models/x", *arguments[:-2]]) == 0
    assert "kind: Deployment" in capsys.readouterr().out
    assert run(["render", "containerfile"]) == 0
    assert 'ENTRYPOINT ["burnish", "serve"]' in capsys.readouterr().out


def test_vllm_is_refused_where_its_image_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--image", "i", "--claim", "c", "--secret", "s", "--engine", "vllm"]
    assert run(["render", "serve", "/models/x", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert "engine.kind=vllm: the image of burnish has no vLLM" in said.err
    assert run(["render", "serve", "/models/x", *arguments[:-1], "native"]) == 0
