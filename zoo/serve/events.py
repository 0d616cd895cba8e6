"""Responses: what every answer begins with, and streams of server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from absl import logging
from starlette.responses import StreamingResponse
from starlette.types import Send

from zoo.serve.errors import ApiError
from zoo.serve.speech import Speech

SPOKE = "x-zoo-model"
"""A header: the model that answered, whatever name was asked for."""
LEFT = 10.0
"""Seconds in which the end of a stream must be read."""


def head(kind: str, prefix: str, model: str) -> dict[str, Any]:
    """The fields that every answer has; `model` is the one that spoke."""
    name = f"{prefix}-{secrets.token_hex(12)}"
    return {"id": name, "object": kind, "created": int(time.time()), "model": model}


def headers(model: str) -> dict[str, str]:
    return {SPOKE: model.encode("ascii", "backslashreplace").decode()}


class EventStream(StreamingResponse):
    """Chunks as server-sent events, "[DONE]" last; an error is an event and the end.

    However it ends, the speech is closed at once, which frees its slots. A client that does not
    read is left a while after the answer's own time is up.
    """

    def __init__(self, chunks: AsyncIterator[dict], speech: Speech):
        more = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(
            _encoded(chunks),
            media_type="text/event-stream",
            headers={**headers(speech.model.name), **more},
        )
        self._speech = speech

    async def stream_response(self, send: Send) -> None:
        try:
            async with (
                asyncio.timeout(self._speech.seconds + LEFT),
                contextlib.aclosing(self.body_iterator),
            ):
                await super().stream_response(send)
        except TimeoutError:
            logging.warning("A client does not read its stream: the connection is closed")
        finally:
            self._speech.close()


async def _encoded(chunks: AsyncIterator[dict]) -> AsyncIterator[str]:
    async with contextlib.aclosing(chunks):
        try:
            async for chunk in chunks:
                yield _event(chunk)
        except ApiError as e:
            yield _event(e.body)
        except asyncio.CancelledError:
            raise
        except Exception as e:
            logging.error("A stream ended with %s", type(e).__name__)  # its message may have text
            yield _event(ApiError("the server failed", 500).body)
        else:
            yield "data: [DONE]\n\n"


def _event(value: dict) -> str:
    return f"data: {json.dumps(value)}\n\n"
