"""`burnish serve`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from burnish.cli.models import environment_for, model_path, whole
from burnish.config.extras import requires_extra
from burnish.config.loading import resolve_layers
from burnish.config.serving import ServeConfig


def serve_model(model: str, settings: Sequence[str], runs_folder: Path) -> int:
    """Resolve the settings and serve until it is told to stop."""
    path = model_path(model, runs_folder)
    flags = [f"--model.path={path}", *map(whole, settings)]
    config = resolve_layers(ServeConfig, [], flags=flags, environment=environment_for(ServeConfig)).config
    with requires_extra("serve", "burnish serve needs more packages"):
        from burnish.serving.server import serve
    serve(config, config.name or Path(path).resolve().name, lambda text: print(text, file=sys.stderr, flush=True))
    return 0
