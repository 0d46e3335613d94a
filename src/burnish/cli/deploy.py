"""`burnish deploy`: try new weights on a server beside those that serve, and let them take over."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from burnish.cli.arguments import AsJson, EvalsFolder
from burnish.cli.json_output import print_json
from burnish.errors import ConfigError, MachineError, UserError

deploy_app = App(
    name="deploy",
    help="""Try new weights on a running server; promote them, or roll them back.

    Example: burnish deploy start sums sums-1a2b3c/checkpoints/step-000040
    """,
)

_SECONDS = 60.0  # for what is done at once
_KEY = "BURNISH_ADMIN_KEY"

Url = Annotated[str, Parameter(help="The server's admin port.")]
KeyFile = Annotated[Path | None, Parameter(help=f"File that holds the admin key alone; else {_KEY} holds it.")]
Model = Annotated[str, Parameter(help="Name that requests call the model.")]
_DEFAULT_URL = "http://127.0.0.1:8001"


@deploy_app.command
def register(
    checkpoint: str,
    *,
    weights_folder: Annotated[Path, Parameter(help="The server's admin.weights_folder.")],
    evals: Annotated[
        tuple[str, ...], Parameter(name="--eval", negative="", help="Eval stores of just these weights.")
    ] = (),
    evals_folder: EvalsFolder = Path("evals"),
    force: Annotated[bool, Parameter(negative="", help="Register without an evaluation.")] = False,
) -> int:
    """Note that a checkpoint may be deployed, with the evaluation that speaks for it.

    Example: burnish deploy register runs/sums-1a2b3c --weights-folder runs --eval after

    Parameters
    ----------
    checkpoint
        Checkpoint, model folder, or run below the weights folder.
    """
    from burnish.cli.models import model_path
    from burnish.evaluation.store import EvalStore
    from burnish.serving.registry import register as note

    stores = [EvalStore.find(each, evals_folder) for each in evals]
    entry = note(weights_folder, model_path(checkpoint, weights_folder), stores, is_forced=force)
    for found in entry["evaluations"]:
        low, high = found["interval"]
        print(f"{found['measure']} {found['value']:.3f} [{low:.3f}, {high:.3f}], n {found['n']}: {found['store']}")
    if entry["forced"]:
        print("forced: no evaluation speaks for it")
    print(f"registered {entry['path']} ({entry['fingerprint'][:16]})")
    return 0


@deploy_app.command
def start(
    model: Model,
    path: str,
    *,
    arm: Annotated[Literal["canary", "shadow"], Parameter(help="Answer a share of requests, or none.")] = "canary",
    share: Annotated[float, Parameter(help="Share of the requests.")] = 0.1,
    force: Annotated[bool, Parameter(negative="", help="Weights that are not registered, too.")] = False,
    url: Url = _DEFAULT_URL,
    key_file: KeyFile = None,
) -> int:
    """Try weights beside those that serve.

    Example: burnish deploy start sums better --share 0.2

    Parameters
    ----------
    path
        Folder of the weights, or name of a run, from the server's admin.weights_folder.
    """
    from burnish.config.serving import LOAD_SECONDS

    if not 0 < share <= 1:
        raise UserError(f"--share {share:g}: must be above 0 and at most 1")
    body = {"path": path, "arm": arm, "share": share, "force": force}
    _print_status(_ask(url, key_file, model, "trial", body, seconds=LOAD_SECONDS))
    return 0


@deploy_app.command
def status(model: Model, *, url: Url = _DEFAULT_URL, key_file: KeyFile = None, as_json: AsJson = False) -> int:
    """Say what is tried, how it does, and what happened so far.

    Example: burnish deploy status sums
    """
    found = _ask(url, key_file, model, "trial", None)
    if as_json:
        print_json(found)
    else:
        _print_status(found)
    return 0


@deploy_app.command
def promote(model: Model, *, reason: str = "as told", url: Url = _DEFAULT_URL, key_file: KeyFile = None) -> int:
    """Let what is tried serve from here on.

    Example: burnish deploy promote sums --reason 'better on our own questions'
    """
    _print_status(_ask(url, key_file, model, "trial/end", {"how": "promote", "reason": reason}))
    return 0


@deploy_app.command
def rollback(model: Model, *, reason: str = "as told", url: Url = _DEFAULT_URL, key_file: KeyFile = None) -> int:
    """End what is tried; what serves goes on.

    Example: burnish deploy rollback sums
    """
    _print_status(_ask(url, key_file, model, "trial/end", {"how": "roll_back", "reason": reason}))
    return 0


def _ask(
    url: str,
    key_file: Path | None,
    model: str,
    route: str,
    body: dict[str, Any] | None,
    *,
    seconds: float = _SECONDS,
) -> dict[str, Any]:
    if not url.startswith(("http://", "https://")):
        raise UserError(f"--url {url}: must begin with http:// or https://")
    request = urllib.request.Request(
        f"{url.rstrip('/')}/admin/models/{urllib.parse.quote(model)}/{route}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {_key(key_file)}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            found: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        raise UserError(f"the server says: {_message(error)}") from error
    except TimeoutError as error:
        raise MachineError(
            f"{url}: no answer in {seconds:g} s; weights may still be loading: ask `burnish deploy status {model}`"
        ) from error
    except (OSError, ValueError) as error:
        raise MachineError(f"{url}: no server answers there: {error}") from error
    return found


def _key(file: Path | None) -> str:
    if file is None:
        if not (key := os.environ.get(_KEY, "")):
            raise ConfigError(f"give the admin key: --key-file FILE, or {_KEY}")
        return key
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--key-file {file}: cannot be read as text") from error


def _message(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"status {error.code}"


def _print_status(found: dict[str, Any]) -> None:
    if (trial := found["trial"]) is None:
        print("nothing is being tried")
    else:
        counts = ", ".join(f"{name} {count}" for name, count in trial["answers"].items() if count)
        print(
            f"{trial['arm']}: version {trial['version']} from {trial['source']}, share {trial['share']:g}, since "
            f"{trial['seconds']:.0f} s; answers: {counts or 'none yet'}"
        )
        for measure in trial.get("measures", {}).values():
            if "verdict" in measure:
                print(
                    f"  {measure['meaning']}: stable {measure['stable']:.3f}, canary {measure['canary']:.3f}, "
                    f"difference [{measure['low']:+.3f}, {measure['high']:+.3f}] in {measure['n']} pairs"
                )
            else:
                print(f"  {measure['meaning']}: {measure['pairs']} pairs")
        for name, value in trial.get("compared", {}).items():
            print(f"  {name}: {value:g}")
    for event in found["events"][-10:]:
        reason = f": {event['reason']}" if "reason" in event else ""
        print(f"{event['time']} {event['event']}{reason}")
