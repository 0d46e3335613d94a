"""Alertmanager's configuration: who is told of what, and nothing of what only follows from something worse."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, model_validator

from burnish.config.schema import Section
from burnish.errors import ConfigError
from burnish.monitoring.conditions import Severity
from burnish.monitoring.reading import checked, read_yaml

_LOUDER: dict[Severity, tuple[Severity, ...]] = {
    "info": ("info", "warning", "critical"),
    "warning": ("warning", "critical"),
    "critical": ("critical",),
}


class Slack(Section):
    """A channel of Slack."""

    url_file: Path
    """A file that holds the incoming webhook's URL."""
    channel: str
    """#name."""
    least: Severity = "warning"
    """Alerts of this severity and above."""


class Email(Section):
    """Mail."""

    to: str
    """Address."""
    sender: str
    """Address that it comes from."""
    smarthost: str
    """host:port of the server that takes it."""
    username: str | None = None
    """Name to log in with."""
    password_file: Path | None = None
    """A file that holds the password."""
    least: Severity = "warning"
    """Alerts of this severity and above."""


class PagerDuty(Section):
    """A service of PagerDuty."""

    key_file: Path
    """A file that holds the integration's routing key."""
    least: Severity = "critical"
    """Alerts of this severity and above."""


class Webhook(Section):
    """A URL of your own."""

    url: str = Field(pattern="^https?://")
    """Where alerts are posted."""
    token_file: Path | None = None
    """A file that holds a token, sent as Authorization: Bearer."""
    least: Severity = "info"
    """Alerts of this severity and above."""


class Receivers(Section):
    """Who is told. Secrets stand in files, never here."""

    slack: Slack | None = None
    """A channel of Slack; null is none, as for the others. At least one is needed."""
    email: Email | None = None
    """An address."""
    pagerduty: PagerDuty | None = None
    """A service of PagerDuty."""
    webhook: Webhook | None = None
    """A URL of your own."""
    wait_seconds: Annotated[int, Field(ge=0)] = 30
    """After a first alert, how long others are waited for, to tell them together."""
    change_seconds: Annotated[int, Field(ge=1)] = 300
    """Time between what was told and its change: that more alerts came to it, or that it is over."""
    again_hours: Annotated[float, Field(ge=1 / 60)] = 4.0
    """What still fires is told again after so long."""

    @model_validator(mode="after")
    def _need_one(self) -> Receivers:
        if not (self.slack or self.email or self.pagerduty or self.webhook):
            raise ValueError("name at least one of slack, email, pagerduty, webhook")
        return self


def read_receivers(file: Path) -> Receivers:
    """The receivers of a YAML file.

    Raises:
        ConfigError: it cannot be read, or is another one; or a secret's file is not there.
    """
    found = checked(Receivers, read_yaml(file), str(file))
    for name, path in _secrets(found).items():
        if not path.is_file():
            raise ConfigError(f"{file}: {name}: {path} is not there")
    return found


def alertmanager_yaml(receivers: Receivers) -> str:
    """The configuration. Every receiver gets what is at least as severe as it asks for; a run's or a server's critical
    alert silences its milder ones, one that is down silences the rest of it, and a budget that burns fast silences
    those that burn slowly. What is of no server, a sum over all, silences nothing else.
    """
    parts = {
        "slack": receivers.slack and _slack(receivers.slack),
        "email": receivers.email and _email(receivers.email),
        "pagerduty": receivers.pagerduty and _pagerduty(receivers.pagerduty),
        "webhook": receivers.webhook and _webhook(receivers.webhook),
    }
    used = {name: part for name, part in parts.items() if part}
    tree = {
        "route": {
            "receiver": "nobody",
            "group_by": ["alertname", "run", "model", "instance"],
            "group_wait": f"{receivers.wait_seconds}s",
            "group_interval": f"{receivers.change_seconds}s",
            "repeat_interval": f"{int(receivers.again_hours * 60)}m",
            "routes": [
                {
                    "receiver": name,
                    "matchers": [f'severity=~"{"|".join(_LOUDER[getattr(receivers, name).least])}"'],
                    "continue": True,
                }
                for name in used
            ],
        },
        "inhibit_rules": [
            _inhibit('severity="critical",instance!=""', 'severity=~"warning|info"', "run", "instance"),
            _inhibit('alertname=~"Slo.*",severity="critical"', 'alertname=~"Slo.*",severity="warning"'),
            _inhibit('alertname="TrainingDown"', 'alertname=~"Training.*",alertname!="TrainingDown"', "instance"),
            _inhibit('alertname="ServingDown"', 'alertname=~"Serving.*",alertname!="ServingDown"', "instance"),
        ],
        "receivers": [{"name": "nobody"}, *({"name": name, **part} for name, part in used.items())],
    }
    return yaml.safe_dump(tree, sort_keys=False, width=1000)


def _inhibit(source: str, target: str, *equal: str) -> dict[str, Any]:
    return {"source_matchers": source.split(","), "target_matchers": target.split(","), "equal": list(equal)}


def _secrets(receivers: Receivers) -> Mapping[str, Path]:
    named = {
        f"{name}.{key}": getattr(part, key)
        for name, part in receivers
        if isinstance(part, Section)
        for key in type(part).model_fields
    }
    return {name: value for name, value in named.items() if isinstance(value, Path)}


def _slack(slack: Slack) -> dict[str, Any]:
    config = {
        "api_url_file": str(slack.url_file.resolve()),
        "channel": slack.channel,
        "send_resolved": True,
        "title": "{{ .Status | toUpper }}: {{ .CommonLabels.alertname }}",
        "text": "{{ range .Alerts }}{{ .Annotations.summary }}\n{{ .Annotations.runbook_url }}\n{{ end }}",
    }
    return {"slack_configs": [config]}


def _email(email: Email) -> dict[str, Any]:
    config: dict[str, Any] = {
        "to": email.to,
        "from": email.sender,
        "smarthost": email.smarthost,
        "send_resolved": True,
    }
    if email.username is not None:
        config["auth_username"] = email.username
    if email.password_file is not None:
        config["auth_password_file"] = str(email.password_file.resolve())
    return {"email_configs": [config]}


def _pagerduty(pagerduty: PagerDuty) -> dict[str, Any]:
    return {"pagerduty_configs": [{"routing_key_file": str(pagerduty.key_file.resolve()), "send_resolved": True}]}


def _webhook(webhook: Webhook) -> dict[str, Any]:
    config: dict[str, Any] = {"url": webhook.url, "send_resolved": True}
    if webhook.token_file is not None:
        config["http_config"] = {"authorization": {"credentials_file": str(webhook.token_file.resolve())}}
    return {"webhook_configs": [config]}
