"""What transformers makes of the conversations in `tests.hf.conversations`.

    python -m tests.parity.chat

writes it to `tests/hf/chat/golden.json`, which `tests/hf/test_chat.py` reads without transformers.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import transformers

from tests.hf import conversations as talks

transformers.logging.set_verbosity_error()


def rendered(folder: Path, talk: dict) -> str | dict[str, str]:
    """Text of a conversation, or {"refused": why}."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    options = {"add_generation_prompt": True, **talks.DATES, **talk}
    try:
        return tokenizer.apply_chat_template(options.pop("messages"), tokenize=False, **options)
    except Exception as e:  # what a template raises
        return {"refused": str(e)}


def main() -> None:
    found = {}
    for template in talks.TEMPLATES:
        with tempfile.TemporaryDirectory() as scratch:
            folder = talks.folder(template, Path(scratch))
            found[template] = {
                name: rendered(folder, talk) for name, talk in talks.CONVERSATIONS.items()
            }
    text = json.dumps(found, indent=1, ensure_ascii=False, sort_keys=True)
    talks.GOLDEN.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
