"""A message to whoever wants to know, without holding up what it is about."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

from burnish.errors import ConfigError

WEBHOOK_SECONDS = 10.0


def read_webhook(file: Path) -> str:
    """The URL that a file holds: it is a secret, so it stands in no setting and in no record.

    Raises:
        ConfigError: the file holds none.
    """
    try:
        url = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"guards.webhook_file={file}: cannot be read as text") from error
    if not url.startswith(("http://", "https://")) or any(letter.isspace() for letter in url):
        raise ConfigError(f"guards.webhook_file={file}: must hold a URL alone, with http:// or https://")
    return url


def post(url: str, message: Mapping[str, Any], on_failure: Callable[[str], None]) -> threading.Thread:
    """Post a message as JSON in a thread, within ten seconds; `on_failure` hears if it did not arrive."""

    def send() -> None:
        request = urllib.request.Request(
            url, json.dumps(message).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=WEBHOOK_SECONDS):
                pass
        except (OSError, ValueError, HTTPException) as error:
            on_failure(f"the webhook did not take a message: {type(error).__name__}")  # the URL is a secret

    thread = threading.Thread(target=send, name="burnish-webhook", daemon=True)
    thread.start()
    return thread
