"""burnish.v1.Admin: which weights answer, and others in their place."""

from __future__ import annotations

import asyncio
from typing import Any

from burnish.serving.admin import SwapRequest
from burnish.serving.asks import Weights
from burnish.serving.loading import WeightLoader
from burnish.serving.openai import checked
from burnish.serving.parts import Parts
from burnish.serving.proto import burnish_pb2 as pb
from burnish.serving.proto.burnish_pb2_grpc import AdminServicer
from burnish.serving.rpc.door import Context, owner_in


class Admin(AdminServicer):
    """The service, for the admin port."""

    def __init__(self, parts: Parts, loader: WeightLoader) -> None:
        self._parts, self._keys, self._loader = parts, parts.keys, loader

    async def ListModels(self, request: pb.ListModelsRequest, context: Context[Any, Any]) -> pb.ListModelsResponse:
        """What answers now."""
        await owner_in(context, self._keys, is_admin=True)
        return pb.ListModelsResponse(models=map(_model, self._parts.service.engine.models().values()))

    async def SwapWeights(self, request: pb.SwapWeightsRequest, context: Context[Any, Any]) -> pb.SwapWeightsResponse:
        """Exchange the weights of a model."""
        await owner_in(context, self._keys, is_admin=True)
        body = checked(SwapRequest, {"path": request.path})
        self._parts.service.weights(request.model)
        self._parts.deployments.require_free(request.model)
        # loading cannot be broken off: it ends, and the next one waits for it, when whoever called is gone
        swapping = asyncio.ensure_future(self._loader.swap(request.model, body.path))
        return pb.SwapWeightsResponse(model=_model(await asyncio.shield(swapping)))


def _model(weights: Weights) -> pb.Model:
    return pb.Model(
        name=weights.name,
        weights=pb.Weights(version=weights.version, fingerprint=weights.fingerprint),
        source=weights.policy.source,
    )
