"""/v1/embeddings, /tokenize, /detokenize, /tokenizer_info: what needs no answer of the model."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from zoo.serve import chat, completions
from zoo.serve.errors import ApiError
from zoo.serve.events import headers
from zoo.serve.model import Model
from zoo.serve.server import Server
from zoo.serve.speech import RETRY_AFTER, known

Body = Mapping[str, Any]


async def embeddings(server: Server, body: Body, request: Request) -> Response:
    """The mean of the final hidden states over each input's tokens, of length one.

    The first `dimensions` of it, if so asked, are of length one again, as OpenAI has it.
    """
    model = _model(server, body)
    if model.embedder is None:
        raise ApiError("this server was started without embeddings (embed_tokens=0)", 404)
    if server.embedding > server.settings.queue:
        raise ApiError(f"{model.name} is busy: {server.embedding} requests to embed wait", 429,
                       code="queue_full", headers={"Retry-After": RETRY_AFTER})  # fmt: skip
    width = model.parts.decoder.cfg.embed_dim
    if (size := body.get("dimensions") or width) > width:
        raise ApiError(f"dimensions={size} must be at most {width}, which is what {model.name} has",
                       param="dimensions")  # fmt: skip
    inputs = [
        await completions.encode(model, said, "input") for said in completions.split(body["input"])
    ]
    server.embedding += 1
    vectors: list[np.ndarray] = []
    try:
        for tokens in inputs:
            vectors.append(await asyncio.to_thread(model.embedder, tokens))
    except ValueError as e:
        where = "input" if len(inputs) == 1 else f"input[{len(vectors)}]"
        raise ApiError(f"{where}: {e}", param=where) from e
    finally:
        server.embedding -= 1
    if size < width:
        vectors = [v[:size] / max(np.linalg.norm(v[:size]), 1e-12) for v in vectors]
    read = sum(map(len, inputs))

    def response() -> JSONResponse:
        shown = _base64 if body.get("encoding_format") == "base64" else np.ndarray.tolist
        data = [
            {"object": "embedding", "index": i, "embedding": shown(v)}
            for i, v in enumerate(vectors)
        ]
        usage = {"prompt_tokens": read, "total_tokens": read}
        found = {"object": "list", "data": data, "model": model.name, "usage": usage}
        return JSONResponse(found, headers=headers(model.name))

    return await asyncio.to_thread(response)  # a thousand vectors take their time


async def tokenize(server: Server, body: Body, request: Request) -> Response:
    """Token ids of a text, or of a conversation as the chat template writes it."""
    model = _model(server, body)
    if (body.get("prompt") is None) == (body.get("messages") is None):
        raise ApiError("give either a prompt or messages", param="prompt")
    if body.get("messages") is None:
        special = body.get("add_special_tokens")
        tokens = await completions.encode(
            model, body["prompt"], add_special_tokens=special is not False
        )
    else:
        begins = body.get("add_generation_prompt") is not False
        said = {**(body.get("chat_template_kwargs") or {}), "add_generation_prompt": begins}
        tokens = await chat.encode(model, {**body, "chat_template_kwargs": said})
    return JSONResponse({"tokens": tokens, "count": len(tokens), "max_model_len": model.length})


async def detokenize(server: Server, body: Body, request: Request) -> Response:
    """The text of token ids, special ones shown."""
    model = _model(server, body)

    def response() -> JSONResponse:
        known(model, body["tokens"], "tokens")
        text = model.tokenizer.decode(body["tokens"], skip_special_tokens=False)
        return JSONResponse({"prompt": text})

    return await asyncio.to_thread(response)


async def tokenizer_info(server: Server, request: Request) -> Response:
    """What lm-eval's remote tokenizer asks for: special tokens and the chat template."""
    model = _model(server, request.query_params)
    chat = model.parts.chat
    template = None if chat is None else chat.templates.get("default")
    shown = {"bos_token": None, "eos_token": None, "pad_token": None, **model.parts.special}
    return JSONResponse({**shown, "chat_template": template and template.text})


def _model(server: Server, said: Mapping[str, Any]) -> Model:
    """The model that is named, else the first.

    Raises:
        ApiError: there is none, or a route, whose models have tokens and vectors of their own.
    """
    name = said.get("model") or next(iter(server.models))
    if name in server.routes:
        raise ApiError(
            f"{name} is a route, whose models have tokens and vectors of their own: name one of "
            f"{', '.join(server.routes[name].names)}",
            param="model",
        )
    return server.order(name, "", 0, None)[0]


def _base64(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
