"""A model over HTTP: pictures in, classes out. FastAPI and uvicorn are the extra ``[serve]``."""

from __future__ import annotations

import asyncio
import functools
import hmac
import json
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from importlib.resources import files
from typing import Annotated, Any

import prometheus_client as prometheus
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.datastructures import State
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fitwithin.inference.model import Model
from fitwithin.inference.predictions import MOST_CLASSES, Answer, prediction
from fitwithin.inference.service import Limits, Service
from fitwithin.machine import DeviceName
from fitwithin.version import __version__


def create_app(
    model: Model, device: DeviceName, *, limits: Limits | None = None, token: str = "", hosts: Sequence[str] = ()
) -> FastAPI:
    """The service. With a ``token`` predictions, facts and metrics need ``Authorization: Bearer TOKEN``; requests for
    other ``hosts`` than these are refused."""
    limits = limits or Limits()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = app.state.service = Service(model, device, limits)
        app.state.loading = asyncio.create_task(asyncio.to_thread(service.load))
        yield
        with suppress(Exception):
            await app.state.loading
        await asyncio.to_thread(service.close)

    app = FastAPI(title="fitwithin", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.token = token
    app.include_router(router)
    app.add_middleware(_BodyLimit, limits=limits)
    app.add_middleware(_Counted, state=app.state)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts) or ["*"])
    return app


def run(model: Model, device: DeviceName, *, host: str, port: int, token: str, hosts: Sequence[str]) -> None:
    """Serve until the process is asked to end."""
    import uvicorn

    app = create_app(model, device, token=token, hosts=hosts)
    uvicorn.run(app, host=host, port=port, log_level="warning", timeout_keep_alive=10, server_header=False)


router = APIRouter()


def _ready(request: Request) -> Service:
    """The service; 503 until its model is loaded."""
    service: Service = request.app.state.service
    if not service.ready:
        loading = request.app.state.loading
        failed = loading.exception() if loading.done() else None
        said = f"the model cannot be loaded: {failed}" if failed else "the model is being loaded"
        raise HTTPException(503, said, {"Retry-After": "2"})
    return service


def _allowed(request: Request) -> None:
    """401 without the token, if there is one."""
    token, given = request.app.state.token, request.headers.get("authorization", "")
    if token and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
        raise HTTPException(401, "give the token: Authorization: Bearer ...", {"WWW-Authenticate": "Bearer"})


Ready = Annotated[Service, Depends(_ready)]

#: The body of a prediction request, for OpenAPI.
_PICTURE = {"type": "string", "format": "binary"}
_FORM = {"type": "object", "properties": {"files": {"type": "array", "items": _PICTURE}}}
_BODY = {"image/*": {"schema": _PICTURE}, "multipart/form-data": {"schema": _FORM}}


@router.post(
    "/predict",
    dependencies=[Depends(_allowed)],
    openapi_extra={"requestBody": {"required": True, "content": _BODY}},
)
async def predict(
    request: Request,
    service: Ready,
    top: Annotated[int, Query(ge=1, le=1000, description="Classes that are named.")] = MOST_CLASSES,
) -> dict[str, Any]:
    """The classes of one picture (its bytes as the body) or of several (a form with files)."""
    began_at = time.perf_counter()
    pictures = await _pictures(request, service.limits)
    answers = await service.predict([content for _, content in pictures])
    if all(isinstance(answer, str) for answer in answers):
        raise HTTPException(422, f"the picture cannot be read: {answers[0]}")
    took_s = time.perf_counter() - began_at
    service.counters.seconds.observe(took_s)
    service.counters.pictures.inc(len(answers))
    novel = sum(1 for each in answers if isinstance(each, Answer) and (each.novelty or 0.0) > 1)
    service.counters.novel.inc(novel)
    named = zip((name for name, _ in pictures), answers, strict=True)
    found = [_answer(name, answer, service.model.classes, top) for name, answer in named]
    return {"predictions": found, "took_ms": round(1e3 * took_s, 2)}


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Whether the process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(service: Ready) -> dict[str, str]:
    """Whether the model is loaded."""
    return {"status": "ready"}


@router.get("/info", dependencies=[Depends(_allowed)])
async def info(service: Ready) -> dict[str, Any]:
    """The model: classes, how it is used, what a pass takes; its card, and the receipt of its run if it is near."""
    model = service.model
    card, receipt = model.folder / "README.md", model.folder.parent / "receipt.json"
    return {
        "classes": model.classes,
        "views": [view.name for view in model.ensemble.views],
        "temperature": model.ensemble.temperature,
        "device": str(service.device),
        "passes": [point._asdict() for point in service.curve],
        "card": card.read_text(encoding="utf-8") if card.is_file() else "",
        "receipt": json.loads(receipt.read_text(encoding="utf-8")) if receipt.is_file() else None,
    }


@router.get("/metrics", dependencies=[Depends(_allowed)], response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Counts and times, in Prometheus' text format."""
    return Response(request.app.state.service.counters.text(), media_type=prometheus.CONTENT_TYPE_LATEST)


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
async def front() -> Response:
    """The page."""
    return HTMLResponse(_page(), headers={"Content-Security-Policy": _policy(_page())})


class _Counted:
    """Counts answers, by the route and not by what was asked for, which could be anything."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self.app, self.state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = getattr(scope.get("route"), "path", "other")
                self.state.service.counters.requests.labels(path, str(message["status"])).inc()
                message["headers"] = [*message.get("headers", ()), (b"x-content-type-options", b"nosniff")]
            await send(message)

        await self.app(scope, receive, counted)


async def _pictures(request: Request, limits: Limits) -> list[tuple[str, bytes]]:
    """The pictures of a request, with their names."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        async with request.form(max_files=limits.files, max_fields=limits.files) as form:
            found = [
                (each.filename or f"picture {place + 1}", await each.read())
                for place, (_, each) in enumerate(form.multi_items())
                if not isinstance(each, str)
            ]
        if not found:
            raise HTTPException(422, "the form has no file")
        return found
    if kind.startswith("image/") or kind == "application/octet-stream":
        if content := await request.body():
            return [("picture", content)]
        raise HTTPException(422, "the body is empty; send the bytes of a picture")
    raise HTTPException(
        415, f"{kind or 'a body without a type'} is not taken; send image/*, or multipart/form-data with files"
    )


def _answer(name: str, answer: Answer | str, classes: Sequence[str], top: int) -> dict[str, Any]:
    """The JSON of one picture."""
    if isinstance(answer, str):
        return {"name": name, "class": None, "probability": None, "novelty": None, "top": [], "error": answer}
    found = prediction(name, answer, classes, "", top)
    best = [{"class": each, "probability": round(probability, 6)} for each, probability in found.top]
    novelty = None if found.novelty is None else round(found.novelty, 4)
    return {"name": name, **best[0], "novelty": novelty, "top": best, "error": None}


class _BodyLimit:
    """Refuses bodies that are too large, or that do not arrive in time."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        ends_at, taken, whole = time.monotonic() + self.limits.body_s, 0, False
        too_large = HTTPException(413, f"the body is larger than {self.limits.body_bytes:,} bytes")
        said = dict(scope["headers"]).get(b"content-length", b"0")
        if said.isdigit() and int(said) > self.limits.body_bytes:
            await JSONResponse({"detail": too_large.detail}, 413)(scope, receive, send)
            return

        async def limited() -> Message:
            nonlocal taken, whole
            if whole:  # what comes now is the end of the connection
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.001, ends_at - time.monotonic()))
            except TimeoutError:
                raise HTTPException(408, f"the body did not arrive within {self.limits.body_s:g} s") from None
            taken += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if taken > self.limits.body_bytes:
                raise too_large
            return message

        await self.app(scope, limited, send)


@functools.cache
def _page() -> str:
    return (files("fitwithin") / "inference" / "templates" / "page.html").read_text(encoding="utf-8")


def _policy(page: str) -> str:
    """No script or style runs but the page's own, and nothing is asked of any other host."""

    def own(tag: str) -> str:
        text = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; img-src blob: data:; connect-src 'self'; script-src {own('script')}; "
        f"style-src {own('style')}; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
    )
