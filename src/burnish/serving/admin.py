"""The door of those who run the server: exchange the weights while it answers, try new ones beside them. On a port of
its own, off by default.
"""

from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Request
from pydantic import Field

from burnish.serving.body import Body
from burnish.serving.loading import WeightLoader
from burnish.serving.parts import Parts
from burnish.serving.refusals import RefusedError
from burnish.serving.registry import find_entry
from burnish.serving.rest import add_errors, key_of, read_body

_BODY_BYTES = 10_000


class SwapRequest(Body):
    """POST /admin/models/NAME/weights."""

    path: Annotated[str, Field(min_length=1, max_length=1000)]
    """A model's folder or a run below admin.weights_folder, from there."""


class TrialRequest(SwapRequest):
    """POST /admin/models/NAME/trial."""

    arm: Literal["canary", "shadow"]
    share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Of the requests: those that the canary gets, or that are repeated in the shadow."""
    force: bool = False
    """Try weights that were not registered with an evaluation."""


class EndRequest(Body):
    """POST /admin/models/NAME/trial/end."""

    how: Literal["promote", "roll_back"]
    reason: Annotated[str, Field(max_length=1000)] = "as told"


def create_admin_app(parts: Parts, loader: WeightLoader) -> FastAPI:
    """The routes."""
    service, deployments = parts.service, parts.deployments
    app = FastAPI(title="burnish admin", docs_url=None, redoc_url=None)
    add_errors(app, parts.metrics)

    async def admin(request: Request) -> str:
        return key_of(request, parts.keys, ("admin",)).name

    Admin = Annotated[str, Depends(admin)]

    @app.get("/admin/models")
    async def models(admin: Admin) -> dict[str, Any]:
        return {
            name: {"version": each.version, "fingerprint": each.fingerprint, "source": each.policy.source}
            for name, each in service.engine.models().items()
        }

    @app.post("/admin/models/{name:path}/weights")
    async def swap(name: str, request: Request, admin: Admin) -> dict[str, Any]:
        body = await read_body(request, SwapRequest, _BODY_BYTES)
        service.weights(name)
        deployments.require_free(name)
        weights = await loader.swap(name, body.path)
        return {"model": name, "version": weights.version, "fingerprint": weights.fingerprint}

    @app.post("/admin/models/{name:path}/trial/end")
    async def end(name: str, request: Request, admin: Admin) -> dict[str, Any]:
        body = await read_body(request, EndRequest, _BODY_BYTES)
        (deployments.promote if body.how == "promote" else deployments.roll_back)(name, f"{admin}: {body.reason}")
        return deployments.status(name)

    @app.post("/admin/models/{name:path}/trial")
    async def try_out(name: str, request: Request, admin: Admin) -> dict[str, Any]:
        body = await read_body(request, TrialRequest, _BODY_BYTES)
        service.weights(name)
        deployments.require_free(name)
        async with loader.load(name, body.path, body.arm) as weights:
            entry = find_entry(loader.weights_folder, weights.fingerprint)
            if entry is None and not body.force:
                raise RefusedError(
                    "invalid",
                    "path: these weights are not registered: `burnish deploy register` them with their evaluation, "
                    "or give force",
                    parameter="path",
                )
            await deployments.start(weights, body.path, body.share, entry)
        return deployments.status(name)

    @app.get("/admin/models/{name:path}/trial")
    async def trial(name: str, admin: Admin) -> dict[str, Any]:
        service.weights(name)
        return deployments.status(name)

    return app
