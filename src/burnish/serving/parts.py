"""What every door of the server needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from burnish.serving.deployments import Deployments
from burnish.serving.journal import Journal
from burnish.serving.keys import Key
from burnish.serving.metrics import ServeMetrics
from burnish.serving.service import Service


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of a server. Without keys whoever reaches a port may ask; without a journal nothing is kept."""

    service: Service
    keys: Sequence[Key]
    metrics: ServeMetrics
    deployments: Deployments
    journal: Journal | None = None
