"""What each endpoint takes, as JSON Schema, and the OpenAPI document that publishes it."""

from __future__ import annotations

from typing import Any

import zoo
from zoo.inference.requests import MOST_LOGPROBS

MOST_CHOICES, MOST_PROMPTS, MOST_STOPS = 128, 1024, 16


def _text(**bounds: Any) -> dict:
    return {"type": "string", **bounds}


def _integer(low: int | None = None, high: int | None = None, **more: Any) -> dict:
    return {"type": "integer", **_range(low, high), **more}


def _number(low: float | None = None, high: float | None = None, **more: Any) -> dict:
    return {"type": "number", **_range(low, high), **more}


def _range(low: float | None, high: float | None) -> dict:
    return {k: v for k, v in (("minimum", low), ("maximum", high)) if v is not None}


def _array(items: dict, low: int = 0, high: int | None = None) -> dict:
    most = {} if high is None else {"maxItems": high}
    return {"type": "array", "items": items, "minItems": low, **most}


def _object(properties: dict, required: tuple[str, ...] = (), others: Any = False) -> dict:
    needs = {"required": list(required)} if required else {}
    return {
        "type": "object", "properties": properties, **needs, "additionalProperties": others
    }  # fmt: skip


BOOLEAN = {"type": "boolean"}
ANYTHING = {"type": "object"}
TOKENS = _array(_integer(0), 1)
STOP = {
    "anyOf": [
        _text(minLength=1, maxLength=1000),
        _array(_text(minLength=1, maxLength=1000), 0, MOST_STOPS),
    ]
}
FORMAT = {
    "anyOf": [
        _object({"type": {"type": "string", "enum": ["text", "json_object"]}}, ("type",)),
        _object(
            {"type": {"type": "string", "enum": ["regex"]}, "pattern": _text(minLength=1)},
            ("type", "pattern"),
        ),
        _object(
            {
                "type": {"type": "string", "enum": ["json_schema"]},
                "json_schema": _object(
                    {
                        "name": _text(), "schema": ANYTHING, "strict": BOOLEAN,
                        "description": _text(),
                    },
                    ("schema",),
                ),
            },
            ("type", "json_schema"),
        ),
    ]
}  # fmt: skip

COMMON = {
    "model": _text(minLength=1, maxLength=512),
    "max_tokens": _integer(0),
    "temperature": _number(0, 2),
    "top_p": _number(0, 1, exclusiveMinimum=0),
    "top_k": _integer(-1),
    "min_p": _number(0, 1),
    "n": _integer(1, MOST_CHOICES),
    "stop": STOP,
    "seed": _integer(-(2**63), 2**63 - 1),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "repetition_penalty": _number(0, 10, exclusiveMinimum=0),
    "logit_bias": {"type": "object", "additionalProperties": _number(-100, 100)},
    "stream": BOOLEAN,
    "stream_options": _object({"include_usage": BOOLEAN, "include_obfuscation": BOOLEAN}),
    "response_format": FORMAT,
    "user": _text(maxLength=512),
    "metadata": ANYTHING,
    "store": BOOLEAN,
    "service_tier": _text(),
    "prompt_cache_key": _text(),
    "safety_identifier": _text(),
}
"""Of both ways to ask for text. Those from `user` on are taken and mean nothing here."""

PART = _object({"type": {"type": "string", "enum": ["text"]}, "text": _text()}, ("type", "text"))
CALL = _object(
    {
        "id": _text(),
        "type": {"type": "string", "enum": ["function"]},
        "function": _object({"name": _text(), "arguments": _text()}, ("name", "arguments")),
    },
    ("function",),
    ANYTHING,
)
MESSAGE = _object(
    {
        "role": {
            "type": "string",
            "enum": ["system", "developer", "user", "assistant", "tool"],
        },
        "content": {"anyOf": [_text(), _array(PART)]},
        "name": _text(),
        "tool_calls": _array(CALL),
        "tool_call_id": _text(),
        "reasoning_content": _text(),
        "refusal": _text(),
        "annotations": _array(ANYTHING),
    },
    ("role",),
)
TOOL = _object(
    {
        "type": {"type": "string", "enum": ["function"]},
        "function": _object(
            {
                "name": _text(minLength=1, maxLength=256), "description": _text(),
                "parameters": ANYTHING, "strict": BOOLEAN,
            },
            ("name",),
        ),
    },
    ("type", "function"),
)  # fmt: skip
CHOICE = {
    "anyOf": [
        {"type": "string", "enum": ["none", "auto", "required"]},
        _object(
            {
                "type": {"type": "string", "enum": ["function"]},
                "function": _object({"name": _text(minLength=1, maxLength=256)}, ("name",)),
            },
            ("type", "function"),
        ),
    ]
}
CHAT = _object(
    {
        **COMMON,
        "messages": _array(MESSAGE, 1),
        "max_tokens": _integer(1),
        "max_completion_tokens": _integer(1),
        "logprobs": BOOLEAN,
        "top_logprobs": _integer(0, MOST_LOGPROBS),
        "tools": _array(TOOL, 0, 128),
        "tool_choice": CHOICE,
        "parallel_tool_calls": BOOLEAN,
        "reasoning_effort": _text(maxLength=32),
        "chat_template_kwargs": ANYTHING,
    },
    ("model", "messages"),
)
PROMPT = {
    "anyOf": [
        _text(),
        TOKENS,
        _array(_text(), 1, MOST_PROMPTS),
        _array(TOKENS, 1, MOST_PROMPTS),
    ]
}
COMPLETION = _object(
    {
        **COMMON,
        "prompt": PROMPT,
        "echo": BOOLEAN,
        "logprobs": _integer(0, MOST_LOGPROBS),
        "best_of": _integer(1, MOST_CHOICES),
    },
    ("model", "prompt"),
)
EMBEDDINGS = _object(
    {
        "model": COMMON["model"],
        "input": PROMPT,
        "dimensions": _integer(1),
        "encoding_format": {"type": "string", "enum": ["float", "base64"]},
        "user": COMMON["user"],
    },
    ("model", "input"),
)
TOKENIZE = _object(
    {
        "model": COMMON["model"],
        "prompt": _text(),
        "messages": _array(MESSAGE, 1),
        "tools": CHAT["properties"]["tools"],
        "add_special_tokens": BOOLEAN,
        "add_generation_prompt": BOOLEAN,
        "chat_template_kwargs": ANYTHING,
    }
)
DETOKENIZE = _object({"model": COMMON["model"], "tokens": _array(_integer(0))}, ("tokens",))
"""Of the first model where none is named, as of `TOKENIZE`."""

BODIES = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETION,
    "/v1/embeddings": EMBEDDINGS,
    "/tokenize": TOKENIZE,
    "/detokenize": DETOKENIZE,
}
"""By path of the endpoints that take one, by POST."""

READS = {
    "/v1/models": "The models and routes that can be named.",
    "/health": "200 while any model can answer, 503 otherwise.",
    "/metrics": "Counts in Prometheus' text format.",
    "/tokenizer_info": "Special tokens and the chat template, of ?model= or of the first.",
}


def openapi() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    error = {"description": "Not answered; the body says why.", "content": {"application/json": {}}}
    answers = {"200": {"description": "OK"}, "default": error}
    posts = {
        path: {
            "post": {
                "requestBody": {"required": True, "content": {"application/json": {"schema": s}}},
                "responses": answers,
            }
        }
        for path, s in BODIES.items()
    }
    gets = {path: {"get": {"summary": s, "responses": answers}} for path, s in READS.items()}
    info = {"title": "zoo", "version": zoo.__version__}
    key = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": info,
        "paths": posts | gets,
        "components": {"securitySchemes": key},
        "security": [{}, {"key": []}],
    }
