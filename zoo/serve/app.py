"""The application: which path is answered by what, who may ask, and how much of it is read."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import re
import traceback
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from importlib import resources
from typing import Any

from absl import logging
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route as Path
from starlette.types import Receive

from zoo.serve import chat, completions, fields, tokens
from zoo.serve.errors import ApiError
from zoo.serve.model import Model
from zoo.serve.routing import Route
from zoo.serve.schema import check, parse
from zoo.serve.server import Server
from zoo.serve.settings import Settings

Answer = Callable[[Server, Mapping[str, Any], Request], Awaitable[Response]]

POSTS: dict[str, Answer] = {
    "/v1/chat/completions": chat.answer,
    "/v1/completions": completions.answer,
    "/v1/embeddings": tokens.embeddings,
    "/tokenize": tokens.tokenize,
    "/detokenize": tokens.detokenize,
}
SMALL = 2**14
"""Bytes of a body that is read at once: a thread would take longer."""
CLIENT_LEFT = 499
"""nginx's status for a client that did not wait; it is counted, nobody reads it."""


def make_app(
    models: Mapping[str, Model], routes: Mapping[str, Route], settings: Settings
) -> Starlette:
    """The application. It closes the models when it ends."""
    server = Server(models, routes, settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        for model in models.values():
            model.pulse.bind()
        yield
        await asyncio.to_thread(server.close)

    posts = [
        Path(path, _endpoint(server, path, _posted(path, answer)), methods=["POST"])
        for path, answer in POSTS.items()
    ]
    gets = [
        Path(path, _endpoint(server, path, answer, free=free), methods=["GET"])
        for path, (answer, free) in GETS.items()
    ]
    app = Starlette(
        routes=[*posts, *gets],
        lifespan=lifespan,
        exception_handlers={HTTPException: _refuse},
    )
    app.state.server = server
    return app


def _endpoint(
    server: Server,
    path: str,
    answer: Callable[[Server, Request], Awaitable[Response]],
    free: bool = False,
) -> Callable[[Request], Awaitable[Response]]:
    """A handler that answers errors in OpenAI's shape and counts; `free` ones need no key."""

    async def handle(request: Request) -> Response:
        try:
            _check_host(request, server.settings)
            if not free:
                _check_key(request, server.settings)
            response = await answer(server, request)
        except ApiError as e:
            response = e.response()
        except ClientDisconnect:
            response = Response(status_code=CLIENT_LEFT)
        except Exception as e:  # a message could have a prompt in it: the log has the place alone
            where = "".join(traceback.format_tb(e.__traceback__))
            logging.error("%s failed with %s\n%s", path, type(e).__name__, where)
            response = ApiError("the server failed; its log says where", 500).response()
        status = str(response.status_code)
        server.metrics.add("zoo_requests_total", path=path, status=status)
        return response

    return handle


def _posted(path: str, answer: Answer) -> Callable[[Server, Request], Awaitable[Response]]:
    async def handle(server: Server, request: Request) -> Response:
        raw = await _body(request, server.settings)
        if len(raw) > SMALL:
            body = await asyncio.to_thread(_checked, raw, path)  # others need not wait for it
        else:
            body = _checked(raw, path)
        return await _unless_gone(request.receive, answer(server, body, request))

    return handle


def _checked(raw: bytes, path: str) -> Any:
    body = parse(raw)
    check(body, fields.BODIES[path])
    return body


def _check_host(request: Request, settings: Settings) -> None:
    """Refuses names that are not the server's: a foreign page can have its own lead here.

    An address is nobody's to lead elsewhere, so whoever calls by one has reached what was meant;
    and browsers say by what they call, so whoever says nothing is none. `request.url` would not do:
    in place of a name that it cannot read it has the server's own.
    """
    said = request.headers.get("host")
    found = HOST.fullmatch(said or "")
    host = found["host"].strip("[]").lower() if found else ""
    known = {name.lower() for name in settings.hosts}
    if not (said is None or "*" in known or host in known or _is_address(host)):
        raise ApiError(
            f"this server does not go by the name {said[:80]!r}: start it with --hosts", 403
        )


HOST = re.compile(r"(?P<host>\[[^\[\]]+\]|[^:\[\]]+)(?::\d*)?")
"""What a header Host has: a name or an address, and perhaps a port."""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _check_key(request: Request, settings: Settings) -> None:
    """Compares with every key, in the same time whichever is right, if any."""
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    digest = hashlib.sha256(given.strip().encode()).digest()
    same = [
        hmac.compare_digest(digest, hashlib.sha256(key.encode()).digest()) for key in settings.keys
    ]
    if settings.keys and not (kind.lower() == "bearer" and any(same)):
        raise ApiError(
            "give an API key of this server: Authorization: Bearer KEY", 401,
            code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"},
        )  # fmt: skip


async def _body(request: Request, settings: Settings) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # what a foreign page can send unasked has other types
        raise ApiError(f"the body must be application/json, not {kind[:80]!r}", 415)
    raw, most = bytearray(), settings.body_mib * 2**20
    large = ApiError(f"the body has more than {settings.body_mib} MiB", 413)
    if int(request.headers.get("content-length", 0)) > most:
        raise large
    try:
        async with asyncio.timeout(settings.body_timeout):
            async for chunk in request.stream():
                raw += chunk
                if len(raw) > most:
                    raise large
    except TimeoutError:
        raise ApiError(f"the body took over {settings.body_timeout:g} s to arrive", 408) from None
    return bytes(raw)


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, Response]) -> Response:
    """What `work` returns; it is cancelled when the client leaves before.

    Raises:
        ClientDisconnect: it left.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _listed(server: Server) -> list[dict[str, Any]]:
    """Models, then routes, as OpenAI lists models."""

    def shown(name: str, created: int, **more: Any) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": created, "owned_by": "zoo", **more}

    found = [
        shown(m.name, m.created, max_model_len=m.length, chat=m.parts.chat is not None)
        for m in server.models.values()
    ]
    since = min(m.created for m in server.models.values())
    found += [
        shown(name, since, routes_to=route.names, chat=True)
        for name, route in server.routes.items()
    ]
    return found


async def _models(server: Server, request: Request) -> Response:
    return JSONResponse({"object": "list", "data": _listed(server)})


async def _model(server: Server, request: Request) -> Response:
    name = request.path_params["name"]
    found = next((model for model in _listed(server) if model["id"] == name), None)
    if found is None:
        raise ApiError(f"there is no model {name[:80]!r}", 404, code="model_not_found")
    return JSONResponse(found)


async def _health(server: Server, request: Request) -> Response:
    failures = server.failures
    gone = len(failures) == len(server.models)
    status = "failed" if gone else "degraded" if failures else "ok"
    return JSONResponse({"status": status, "failed": failures}, 503 if gone else 200)


async def _metrics(server: Server, request: Request) -> Response:
    return PlainTextResponse(server.measure(), media_type="text/plain; version=0.0.4")


async def _openapi(server: Server, request: Request) -> Response:
    return JSONResponse(fields.openapi())


async def _page(server: Server, request: Request) -> Response:
    """The chat page, which may load nothing and talk to nobody else."""
    return HTMLResponse(PAGE, headers={"Content-Security-Policy": POLICY,
                                       "Referrer-Policy": "no-referrer"})  # fmt: skip


def _policy(page: str) -> str:
    """Allows the page's own script and style, by their hashes."""

    def allowed(tag: str) -> str:
        inside = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        return f"'sha256-{b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; script-src {allowed('script')}; style-src {allowed('style')}; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


PAGE = resources.files("zoo.serve").joinpath("page.html").read_text(encoding="utf-8")
POLICY = _policy(PAGE)
GETS = {
    "/": (_page, True),
    "/health": (_health, True),
    "/openapi.json": (_openapi, True),
    "/v1/models": (_models, False),
    "/v1/models/{name:path}": (_model, False),
    "/metrics": (_metrics, False),
    "/tokenizer_info": (tokens.tokenizer_info, False),
}
"""Who answers, and whether it needs no key."""


async def _refuse(request: Request, error: HTTPException) -> Response:
    known = ", ".join((*(f"POST {path}" for path in POSTS), *(f"GET {path}" for path in GETS)))
    message = f"{request.method} {request.url.path[:80]} is not served; there are {known}"
    return ApiError(message, error.status_code, headers=error.headers).response()
