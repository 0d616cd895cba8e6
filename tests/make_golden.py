"""Writes `tests/golden`: tiny checkpoints by transformers, and what transformers makes of them.

    python -m tests.make_golden [NAME ...]

Needs torch and transformers; the tests that read the files need neither. Each folder is as
`save_pretrained` leaves it, in bfloat16, float16 or float32, one file or shards, with generation
config and tokenizer; `tests/golden/NAME.npz` holds, for the same weights in float32, ids, logits,
greedy text and the gradients of the loss.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers

from tests.hf.cases import GOLDEN
from tests.parity import reference
from tests.programs import LENGTH, PIECE, prompts
from zoo.hf.load import flatten, load

FOLDER = Path(__file__).parent / "golden"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or GOLDEN:
        make(name)
        print(name, sum(p.stat().st_size for p in FOLDER.glob(f"{name}*/**/*")), "bytes")


def make(name: str) -> None:
    folder, stored = FOLDER / name, GOLDEN[name]
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        built = reference.build(name)
        first, auto = reference.save(built, scratch / "first"), type(built)
        small = auto.from_pretrained(first, dtype=getattr(torch, stored["dtype"]))
        size = {k: v for k, v in stored.items() if k == "max_shard_size"}
        reference.save(small, folder, **size)
        tokenizer(folder)
        model = auto.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            experts_implementation="eager",
        ).eval()
        ids = reference.tokens(model, 2, LENGTH)
        loss = reference.loss_and_gradients(model, ids, scratch / "gradients")
        gradients = flatten(load(scratch / "gradients").params["params"])
        text = [reference.greedy(model, prompt) for prompt in prompts(ids)]
        np.savez_compressed(
            FOLDER / f"{name}.npz",
            ids=ids,
            logits=reference.logits(model, ids),
            cached=reference.cached_logits(model, ids, PIECE),
            greedy=np.asarray(text),
            loss=np.float32(loss),
            **{f"gradient/{path}": summary(g) for path, g in gradients.items()},
        )


def summary(gradient) -> np.ndarray:
    """f32[18]: the norm, the largest magnitude, and 16 evenly spread values."""
    flat = np.asarray(gradient, np.float32).reshape(-1)
    spread = flat[np.linspace(0, flat.size - 1, 16).astype(int)]
    return np.concatenate([[np.linalg.norm(flat), np.abs(flat).max()], spread]).astype(np.float32)


def tokenizer(folder: Path) -> None:
    """A byte-level tokenizer with a chat template, written by transformers beside the model."""
    vocab = {chr(33 + i): i for i in range(90)}
    fast = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [], unk_token="!"))
    fast.add_special_tokens(["<s>", "</s>"])
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast, bos_token="<s>", eos_token="</s>", unk_token="!"
    )
    wrapped.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    wrapped.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"], config


if __name__ == "__main__":
    main()
