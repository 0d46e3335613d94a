"""The door of those who run the server: exchange the weights while it answers. On a port of its own, off by default."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from burnish.config.schema import ModelConfig
from burnish.errors import BurnishError
from burnish.serving.asks import Weights
from burnish.serving.keys import Key, owner_of
from burnish.serving.rest import add_errors, read_body
from burnish.serving.service import RefusedError, Service
from burnish.serving.weights import load_weights

_BODY_BYTES = 10_000


class SwapRequest(BaseModel):
    """POST /admin/models/NAME/weights."""

    model_config = ConfigDict(extra="forbid", strict=True)
    path: Annotated[str, Field(min_length=1, max_length=1000)]
    """A folder below admin.weights_folder, from there."""


class Exchange:
    """Exchanges weights for those of a folder, one set at a time. One for all doors."""

    def __init__(self, service: Service, model: ModelConfig, weights_folder: Path) -> None:
        """`model` says how weights are loaded."""
        self._service, self._model, self._weights_folder = service, model, weights_folder
        self._one_at_a_time = asyncio.Lock()

    async def swap(self, name: str, path: str) -> Weights:
        """From here on the weights of a folder below the folder of weights answer for a name.

        Raises:
            RefusedError: they cannot be used, or others are being loaded.
        """
        self._service.weights(name)
        folder = inside(self._weights_folder, path)
        if self._one_at_a_time.locked():
            raise RefusedError("busy", "other weights are being loaded")
        async with self._one_at_a_time:
            version = self._service.weights(name).version + 1
            config = self._model.model_copy(update={"path": str(folder)})
            try:
                weights = await asyncio.to_thread(load_weights, config, name, version)
                await asyncio.to_thread(self._service.engine.install, weights)
            except BurnishError as error:
                raise RefusedError("invalid", f"{error}; version {version - 1} goes on", parameter="path") from error
        return weights


def create_admin_app(service: Service, keys: Sequence[Key], exchange: Exchange) -> FastAPI:
    """The routes."""
    app = FastAPI(title="burnish admin", docs_url=None, redoc_url=None)
    add_errors(app)

    async def admin(request: Request) -> str:
        key = owner_of(request.headers.get("authorization", ""), keys)
        if key is None:
            raise HTTPException(401, "an API key is needed: Authorization: Bearer KEY")
        if key.role != "admin":
            raise HTTPException(403, "this needs a key of the role admin")
        return key.name

    Admin = Annotated[str, Depends(admin)]

    @app.post("/admin/models/{name:path}/weights")
    async def swap(name: str, request: Request, admin: Admin) -> JSONResponse:
        body = await read_body(request, SwapRequest, _BODY_BYTES)
        weights = await exchange.swap(name, body.path)
        return JSONResponse({"model": name, "version": weights.version, "fingerprint": weights.fingerprint})

    @app.get("/admin/models")
    async def models(admin: Admin) -> dict[str, Any]:
        return {
            name: {"version": each.version, "fingerprint": each.fingerprint, "source": each.policy.source}
            for name, each in service.engine.models().items()
        }

    return app


def inside(folder: Path, path: str) -> Path:
    """A folder below another one, wherever links lead.

    Raises:
        RefusedError: it is none.
    """
    root = folder.resolve()
    try:
        found = (root / path).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):  # none there, a NUL, a ring of links
        found = None
    if found is None or not found.is_relative_to(root) or not found.is_dir():
        raise RefusedError("invalid", "path: no folder below admin.weights_folder", parameter="path")
    if any(not file.resolve().is_relative_to(root) for file in found.rglob("*")):
        raise RefusedError("invalid", "path: a link in it leads out of admin.weights_folder", parameter="path")
    if (found / "adapter_config.json").is_file():  # it would name a base, from anywhere
        raise RefusedError("invalid", "path: an adapter cannot be exchanged, only whole weights", parameter="path")
    return found
