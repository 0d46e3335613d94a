"""The server's door for HTTP: OpenAI's routes, and whether the server lives, may be asked, and gets on."""

import asyncio
import functools
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from burnish.errors import MachineError
from burnish.monitoring.exporter import CONTENT_TYPE
from burnish.serving.answers import Answers
from burnish.serving.asking import ask_for
from burnish.serving.body import Body
from burnish.serving.keys import Key, Role, owner_of
from burnish.serving.metrics import CountRequests, ServeMetrics
from burnish.serving.openai import BodyT, ChatRequest, CompletionRequest, FeedbackRequest, Writer, checked
from burnish.serving.openapi import ANSWER, BODY, CHAT, COMPLETION, KEPT, MODELS, PROGRESS, PROMPT, TOKENS, takes, told
from burnish.serving.parts import Parts
from burnish.serving.refusals import Kind, RefusedError
from burnish.serving.service import Service

_BODY_SECONDS = 30.0  # for a request to arrive
_LOOK_SECONDS = 0.25  # how often is looked whether the client is still there
_STORE_SECONDS = 20.0  # for a rating to be written
_STALLED_SECONDS = 30.0  # without a step while there is work
_LEFT = 499  # the client has left and reads nothing: nginx's number for it
_STATUS: dict[Kind, tuple[int, str]] = {
    "invalid": (400, "invalid_request_error"),
    "not_found": (404, "invalid_request_error"),
    "too_many": (429, "rate_limit_error"),
    "busy": (503, "server_error"),
    "too_slow": (504, "server_error"),
    "failed": (500, "server_error"),
}


class TokenizeRequest(Body):
    """POST /tokenize."""

    model: str
    prompt: str


class DetokenizeRequest(Body):
    """POST /detokenize."""

    model: str
    tokens: Annotated[list[int], Field(fail_fast=True)]


def error_body(message: str, kind: str, *, parameter: str | None = None) -> dict[str, Any]:
    """An error as OpenAI tells it."""
    return {"error": {"message": message, "type": kind, "param": parameter, "code": None}}


def refused(error: RefusedError) -> JSONResponse:
    """An answer that is none."""
    status, kind = _STATUS[error.kind]
    headers = {} if error.retry_after is None else {"Retry-After": error.retry_after}
    return JSONResponse(error_body(str(error), kind, parameter=error.parameter), status, headers)


def key_of(request: Request, keys: Sequence[Key], roles: Sequence[Role]) -> Key:
    """Whose key a request holds.

    Raises:
        HTTPException: it holds none, or one of another role.
    """
    key = owner_of(request.headers.get("authorization", ""), keys)
    if key is None:
        raise HTTPException(401, "an API key is needed: Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"})
    if key.role not in roles:
        raise HTTPException(403, f"this needs a key of the role {' or '.join(roles)}")
    return key


async def read_body(request: Request, kind: type[BodyT], limit_bytes: int) -> BodyT:
    """The body of a request, checked.

    Raises:
        HTTPException: it is too large, not JSON, or does not arrive.
        RefusedError: it is not what was expected.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "the body must be application/json")
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for piece in request.stream():
                body += piece
                if len(body) > limit_bytes:
                    raise HTTPException(413, f"the body is larger than {limit_bytes:,} bytes")
    except TimeoutError as error:
        raise HTTPException(408, f"the body did not arrive within {_BODY_SECONDS:g} s") from error
    return checked(kind, bytes(body))


def create_app(parts: Parts) -> FastAPI:
    """The routes."""
    service, metrics, has_keys = parts.service, parts.metrics, bool(parts.keys)
    app = FastAPI(title="burnish", docs_url=None, redoc_url=None)
    app.add_middleware(CountRequests, metrics=metrics)
    add_errors(app, metrics)
    _add_health(app, service)
    _add_metrics(app, parts.keys, metrics)

    async def owner(request: Request, key: Annotated[Any, Depends(_scheme(parts.keys))]) -> str:
        return key_of(request, parts.keys, ("user", "admin")).name if parts.keys else "anyone"

    async def asker(owner: Annotated[str, Depends(owner)]) -> str:
        service.count(owner)
        return owner

    Asker = Annotated[str, Depends(asker)]

    @app.get("/v1/models", dependencies=[Depends(owner)], responses=told(MODELS, has_keys=has_keys))
    async def models() -> dict[str, Any]:
        data = [
            {"id": name, "object": "model", "owned_by": "burnish", "version": it.version, "fingerprint": it.fingerprint}
            for name, it in service.engine.models().items()
        ]
        return {"object": "list", "data": data}

    def answers_as(schema: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
        return told(schema, *ANSWER, has_keys=has_keys, streams=True)

    @app.post("/v1/chat/completions", openapi_extra=takes(ChatRequest), responses=answers_as(CHAT))
    async def chat_completions(request: Request, asker: Asker) -> Response:
        body = await read_body(request, ChatRequest, service.limits.body_bytes)
        wish = body.as_wish()
        answers = await ask_for(parts, body, wish, owner=asker, traceparent=request.headers.get("traceparent"))
        writer = Writer(answers, wish, _decoder(answers), body)
        return await _answer(request, answers, writer, streams=bool(body.stream), usage=body.counts_usage)

    @app.post("/v1/completions", openapi_extra=takes(CompletionRequest), responses=answers_as(COMPLETION))
    async def completions(request: Request, asker: Asker) -> Response:
        body = await read_body(request, CompletionRequest, service.limits.body_bytes)
        wish = body.as_wish()
        answers = await ask_for(parts, body, wish, owner=asker, traceparent=request.headers.get("traceparent"))
        writer = Writer(answers, wish, _decoder(answers), body)
        return await _answer(request, answers, writer, streams=bool(body.stream), usage=body.counts_usage)

    _add_feedback(app, parts, asker)
    _add_tokenizer(app, service, asker, has_keys=has_keys)
    return app


def _scheme(keys: Sequence[Key]) -> Callable[..., Any]:
    """What says in /openapi.json that a route asks for a key, where there are keys; `key_of` does the asking."""
    return HTTPBearer(auto_error=False, scheme_name="key") if keys else lambda: None


def _add_feedback(app: FastAPI, parts: Parts, asker: Any) -> None:
    count, journal = parts.metrics.exporter.count, parts.journal

    responses = told(KEPT, *BODY, has_keys=bool(parts.keys))

    @app.post("/v1/feedback", openapi_extra=takes(FeedbackRequest), responses=responses)
    async def feedback(request: Request, asker: Annotated[str, Depends(asker)]) -> dict[str, str]:
        body = await read_body(request, FeedbackRequest, parts.service.limits.body_bytes)
        if journal is None:
            raise RefusedError("invalid", "this server keeps no answers: it was started without store.url")
        telling = asyncio.wrap_future(journal.tell(body.feedback(asker)))
        try:
            found = await asyncio.wait_for(telling, _STORE_SECONDS)
        except (MachineError, TimeoutError) as error:
            message = "the store does not answer: the feedback may not be kept"
            raise RefusedError("busy", message, retry_seconds=5) from error
        if found is None:
            raise RefusedError("not_found", "no such answer of yours is kept", parameter="response_id")
        for kind in [*([body.rating] if body.rating else []), *(["best"] if body.best else [])]:
            count("burnish_serve_feedback_total", 1, found.model, found.arm, kind)
        if body.rating is not None:
            parts.deployments.rated(found, is_good=body.rating == "good")
        return {"status": "kept"}


def _add_tokenizer(app: FastAPI, service: Service, asker: Any, *, has_keys: bool) -> None:
    def post(path: str, kind: type[BaseModel], answer: dict[str, Any]) -> Callable[[Any], Any]:
        responses = told(answer, *BODY, has_keys=has_keys)
        return app.post(path, dependencies=[Depends(asker)], openapi_extra=takes(kind), responses=responses)

    @post("/tokenize", TokenizeRequest, TOKENS)
    async def tokenize(request: Request) -> dict[str, Any]:
        body = await read_body(request, TokenizeRequest, service.limits.body_bytes)
        policy = service.weights(body.model).policy
        tokens = await service.tokenize(lambda: policy.tokenizer(body.prompt)["input_ids"])
        return {"tokens": tokens, "count": len(tokens), "max_model_len": policy.context_length}

    @post("/detokenize", DetokenizeRequest, PROMPT)
    async def detokenize(request: Request) -> dict[str, Any]:
        body = await read_body(request, DetokenizeRequest, service.limits.body_bytes)
        policy = service.weights(body.model).policy
        if any(not 0 <= token < policy.head.weight_VH.shape[0] for token in body.tokens):
            raise RefusedError("invalid", "tokens: one is not the model's", parameter="tokens")
        return {"prompt": await service.tokenize(lambda: policy.tokenizer.decode(body.tokens))}


async def _answer(request: Request, answers: Answers, writer: Writer, *, streams: bool, usage: bool) -> Response:
    weights = answers.weights
    headers = {"X-Weight-Version": str(weights.version), "X-Weight-Fingerprint": weights.fingerprint}
    if streams:
        pieces = _pieces(answers, writer, usage=usage)
        return StreamingResponse(pieces, media_type="text/event-stream", headers=headers)

    async def collect() -> None:
        async for number, event in answers.events():
            writer.take(number, event)

    collecting = asyncio.ensure_future(collect())
    try:
        while not (await asyncio.wait({collecting}, timeout=_LOOK_SECONDS))[0]:
            if await request.is_disconnected():
                return Response(status_code=_LEFT)
        collecting.result()
    finally:
        collecting.cancel()
    # an answer with all its log-probabilities may be large: others need not wait while it is written
    content = await asyncio.to_thread(lambda: json.dumps(writer.whole(), ensure_ascii=False).encode())
    return Response(content, media_type="application/json", headers=headers)


async def _pieces(answers: Answers, writer: Writer, *, usage: bool) -> AsyncIterator[str]:
    try:
        for piece in writer.opening():
            yield _event(piece)
        async for number, event in answers.events():
            if (said := writer.piece(number, event, writer.take(number, event))) is not None:
                yield _event(said)
    except RefusedError as error:
        yield _event(error_body(str(error), _STATUS[error.kind][1]))
        return
    finally:
        answers.close()  # whoever left during the opening never listened to the answers
    if usage:
        yield _event(writer.closing())
    yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _decoder(answers: Answers) -> Any:
    tokenizer = answers.weights.policy.tokenizer
    return functools.cache(lambda token_id: str(tokenizer.decode([token_id])))


def _add_health(app: FastAPI, service: Service) -> None:
    engine = service.engine

    no: dict[int | str, dict[str, Any]] = {503: {"description": "No."}}

    @app.get("/livez", response_class=PlainTextResponse, responses=no)
    async def live() -> Response:
        return PlainTextResponse("ok" if engine.is_alive else "the engine is gone", 200 if engine.is_alive else 503)

    @app.get("/health", response_class=PlainTextResponse, responses=no)  # where others' clients look
    @app.get("/readyz", response_class=PlainTextResponse, responses=no)
    async def ready() -> Response:
        return PlainTextResponse("ok" if service.is_ready else "not now", 200 if service.is_ready else 503)

    @app.get("/progress", responses=told(PROGRESS, has_keys=False) | no)
    async def progress() -> JSONResponse:
        since = time.monotonic() - engine.stepped_at
        content = {"steps": engine.num_steps, "running": engine.num_running, "waiting": engine.num_waiting}
        return JSONResponse(content | {"seconds_since_step": round(since, 3)}, 503 if since > _STALLED_SECONDS else 200)


def _add_metrics(app: FastAPI, keys: Sequence[Key], metrics: ServeMetrics) -> None:
    responses = told(None, has_keys=bool(keys))

    @app.get("/metrics", response_class=PlainTextResponse, responses=responses)
    async def tell_metrics(request: Request, key: Annotated[Any, Depends(_scheme(keys))]) -> Response:
        if keys:
            key_of(request, keys, ("monitor", "admin"))
        return Response(await asyncio.to_thread(metrics.exporter.text), media_type=CONTENT_TYPE)


def add_errors(app: FastAPI, metrics: ServeMetrics) -> None:
    """Whatever goes wrong is told as OpenAI tells it, and counted."""

    @app.exception_handler(RefusedError)
    async def on_refused(request: Request, error: RefusedError) -> JSONResponse:
        metrics.refused(error.kind)
        return refused(error)

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        kind = "authentication_error" if error.status_code == 401 else "invalid_request_error"
        return JSONResponse(error_body(str(error.detail), kind), error.status_code, error.headers)

    @app.exception_handler(ClientDisconnect)
    async def on_left(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=_LEFT)  # before its body was there

    @app.exception_handler(Exception)
    async def on_fault(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(error_body("the server made a mistake; its log says which", "server_error"), 500)
