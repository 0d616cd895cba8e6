"""Conversations that chat templates are tried with, and the variables that go with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "chat"
GOLDEN = FOLDER / "golden.json"
TEMPLATES = sorted(path.stem for path in FOLDER.glob("*.jinja"))

SPECIAL = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "cls_token": {"content": "<cls>", "lstrip": False, "__type": "AddedToken"},
    "sep_token": "<sep>",
}

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tomorrow's weather, <hot> & 'cold'",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": 'A town, e.g. "Zürich"'},
                "days": {"type": ["integer", "string"], "default": 1},
                "units": {"type": "string", "enum": ["°C", "°F"], "nullable": True},
                "where": {
                    "type": "object",
                    "properties": {"lat": {"type": "number"}, "path": {"type": "array"}},
                    "required": ["lat"],
                },
            },
            "required": ["place"],
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {"name": "clock", "description": "What time it is", "parameters": {}},
}
CALL = {
    "id": "abcdef123",
    "type": "function",
    "function": {"name": "weather", "arguments": {"place": "Zürich", "days": 2}},
}
SYSTEM = {"role": "system", "content": "  Answer in one line. "}
HELLO = {"role": "user", "content": "Hello\tthere,\n <b>you</b> & 'I' "}
USED = [
    {"role": "user", "content": "Will it rain?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "rain ☔", "name": "weather", "tool_call_id": "abcdef123"},
    {"role": "assistant", "content": "Yes, it will."},
    {"role": "user", "content": "谢谢 👩‍🚀"},
]
REASONED = [
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "Two.", "reasoning_content": "\nOne and one.\n"},
]

CONVERSATIONS: dict[str, dict[str, Any]] = {
    "user": dict(messages=[HELLO]),
    "system": dict(messages=[SYSTEM, HELLO]),
    "turns": dict(
        messages=[
            SYSTEM,
            HELLO,
            {"role": "assistant", "content": "  Grüezi! {{ not a template }} {% if %}\n"},
            {"role": "user", "content": "안녕 <|im_end|></s>[/INST]"},
        ]
    ),
    "unanswered": dict(messages=[HELLO, HELLO]),
    "answered": dict(messages=REASONED, add_generation_prompt=False),
    "reasoning": dict(messages=[*REASONED, {"role": "user", "content": "Sure?"}]),
    "thinking": dict(
        messages=[REASONED[0], {"role": "assistant", "content": "2", "thinking": "hm"}],
        add_generation_prompt=False,
    ),
    "inline_thinking": dict(
        messages=[
            REASONED[0],
            {"role": "assistant", "content": "<think>\nhm\n</think>\n\n2"},
            {"role": "user", "content": "Sure?"},
        ],
        enable_thinking=False,
    ),
    "tools": dict(messages=[SYSTEM, USED[0]], tools=[WEATHER, CLOCK]),
    "tools_used": dict(messages=[SYSTEM, *USED], tools=[WEATHER]),
    "tool_result_last": dict(messages=USED[:3], tools=[CLOCK]),
    "no_content": dict(
        messages=[USED[0], {**USED[1], "content": None, "name": None}, USED[2]],
        add_generation_prompt=False,
    ),
    "parts": dict(
        messages=[
            {"role": "user", "content": [{"type": "text", "text": " a "}, {"type": "image"}]},
        ]
    ),
    "documents": dict(
        messages=[HELLO],
        documents=[
            {"title": "tides", "text": "Water rises and falls twice a day."},
            {"title": "ebb", "text": "It falls."},
        ],
        bos_token="<bos>",
    ),
}
DATES = {"date_string": "24 Jul 2026", "today": "2026-07-24", "reasoning_effort": "low"}


def folder(template: str, where: Path) -> Path:
    """A folder with a template of ours, special tokens, and a tokenizer of printable ASCII."""
    shutil.copy(FOLDER.parent.parent / "golden" / "llama" / "tokenizer.json", where)
    shutil.copy(FOLDER / f"{template}.jinja", where / "chat_template.jinja")
    config = {**SPECIAL, "tokenizer_class": "PreTrainedTokenizerFast"}
    (where / "tokenizer_config.json").write_text(json.dumps(config))
    return where


def check(chat, name: str, wanted: str | dict[str, str]) -> None:
    """Asserts that `chat` says what transformers says, or refuses for the same reason."""
    try:
        found = chat.render(**{**DATES, **CONVERSATIONS[name]})
    except ValueError as e:
        found = {"refused": str(e)}
    if isinstance(wanted, str):
        assert found == wanted, name
    else:
        assert wanted["refused"] in found["refused"], name
