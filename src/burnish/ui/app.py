"""The page and its API: read-only, for this machine alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from burnish.errors import BurnishError
from burnish.ui.answers import (
    BandKind,
    ComparisonAnswer,
    Curves,
    ErrorAnswer,
    EventList,
    Group,
    Replicate,
    RunDetail,
    RunList,
    Serving,
    Step,
    StoreDetail,
    StoreList,
)
from burnish.ui.curves import read_curves
from burnish.ui.evaluations import Evaluations
from burnish.ui.events import read_events
from burnish.ui.reading import NotFoundError
from burnish.ui.rollouts import read_group, read_step
from burnish.ui.runbooks import runbooks_html
from burnish.ui.runs import Runs
from burnish.ui.serving import ask_server

STATIC = Path(__file__).parent / "static"
_MOST_METRICS = 100
_HOSTS = ("127.0.0.1", "localhost")
_HEADERS = {
    # nothing but what this server sends, and no text can become a part of the page
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the page looks. `serve_url` None asks no server."""

    runs_folder: Path
    evals_folder: Path
    serve_url: str | None


def create_app(places: Places) -> FastAPI:
    """The routes."""
    app = FastAPI(title="burnish ui", docs_url=None, redoc_url=None, openapi_url="/api/openapi.json", responses=_ERRORS)
    _add_errors(app)
    _add_runs(app, Runs(places.runs_folder))
    _add_evaluations(app, Evaluations(places.evals_folder))

    @app.get("/api/serving")
    def serving() -> Serving:
        if places.serve_url is None:
            return Serving(url=None, answers=False, reason="no server is asked: start with --serve-url ADDRESS")
        return ask_server(places.serve_url)

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    @app.get("/runbooks", include_in_schema=False)
    def runbooks() -> HTMLResponse:
        return HTMLResponse(runbooks_html())

    app.mount("/static", StaticFiles(directory=STATIC))

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        # a page of another site may name a host of its own that leads to this machine
        host = request.headers.get("host", "").rpartition(":")[0] or request.headers.get("host", "")
        is_ours = host in _HOSTS
        answer = await call_next(request) if is_ours else _error(400, f"the host {host!r} is not this machine")
        answer.headers.update(_HEADERS)
        return answer

    return app


def _add_runs(app: FastAPI, runs: Runs) -> None:
    @app.get("/api/runs")
    def list_runs() -> RunList:
        return runs.all()

    @app.get("/api/runs/{name}")
    def run(name: str) -> RunDetail:
        return runs.detail(runs.find(name))

    @app.get("/api/runs/{name}/replicates")
    def replicates(name: str) -> list[Replicate]:
        return runs.seeds(runs.find(name))

    @app.get("/api/runs/{name}/curves")
    def curves(
        name: str,
        metric: Annotated[list[str], Query(min_length=1, max_length=_MOST_METRICS)],
        with_replicates: bool = False,
        band: BandKind = "range",
    ) -> Curves:
        found = runs.find(name)
        return read_curves(runs.replicates(found) if with_replicates else [found], metric, band)

    @app.get("/api/runs/{name}/rollouts/{step}")
    def step(name: str, step: int) -> Step:
        return read_step(runs.find(name), step)

    @app.get("/api/runs/{name}/rollouts/{step}/{number}")
    def group(name: str, step: int, number: int) -> Group:
        return read_group(runs.find(name), step, number)

    @app.get("/api/runs/{name}/events")
    def events(name: str) -> EventList:
        return read_events(runs.find(name))


def _add_evaluations(app: FastAPI, evaluations: Evaluations) -> None:
    @app.get("/api/evaluations")
    def list_evaluations() -> StoreList:
        return evaluations.all()

    @app.get("/api/evaluations/{name}")
    def evaluation(name: str) -> StoreDetail:
        return evaluations.detail(name)

    @app.get("/api/comparison")
    def comparison(a: str, b: str, margin: float | None = None) -> ComparisonAnswer:
        return evaluations.compare(a, b, margin)


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse(ErrorAnswer(error=message).model_dump(), status)


_ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorAnswer} for status in (400, 404)}


def _add_errors(app: FastAPI) -> None:
    """Whatever goes wrong is one line of JSON."""

    @app.exception_handler(BurnishError)
    async def on_burnish(request: Request, error: BurnishError) -> JSONResponse:
        return _error(404 if isinstance(error, NotFoundError) else 400, str(error))

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return _error(400, f"{first['loc'][-1]}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        return _error(error.status_code, str(error.detail))

    @app.exception_handler(Exception)
    async def on_fault(request: Request, error: Exception) -> JSONResponse:
        return _error(500, "the page's server made a mistake; its log says which")
