"""`verify`: is a checkpoint read and written exactly, and does it say what transformers says?"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from zoo.hf.hub import resolve
from zoo.hf.load import load
from zoo.hf.save import save_hf
from zoo.hf.source import OTHER_WEIGHTS, named_templates
from zoo.models import wrapper
from zoo.quantized import is_quantized

CHUNK = 1 << 24


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        files: files that the folder has and we write.
        bytes: their size together.
        differing: names of those that did not come back byte for byte.
        logits_error: largest difference of logits over their largest magnitude, both models in
            float32; None without torch and transformers.
        greedy_equal: whether greedy text agreed token for token; None without them.
    """

    files: int
    bytes: int
    differing: tuple[str, ...]
    logits_error: float | None = None
    greedy_equal: bool | None = None

    @property
    def exact(self) -> bool:
        return not self.differing


def verify(
    path_or_repo: str | os.PathLike, length: int = 32, new_tokens: int = 32, seed: int = 0
) -> Report:
    """Loads a checkpoint, saves it again and compares; then, if it is there, with transformers.

    Quantised weights are kept for the round trip, and dequantised by us for both models: what
    transformers needs for them is mostly a GPU.

    Args:
        path_or_repo: a folder, or a repo id.
        length: random tokens of the prompt.
        new_tokens: tokens to generate greedily after it.
        seed: of the prompt.
    """
    folder = resolve(path_or_repo)
    ckpt = load(folder)
    with tempfile.TemporaryDirectory() as scratch:
        again = Path(scratch) / "again"
        save_hf(again, ckpt.config, ckpt.params, source=ckpt.source)
        kept = {p.name: p for p in sorted(folder.iterdir()) if _kept(p)} | named_templates(folder)
        differing = tuple(name for name, p in kept.items() if not _equal(p, again / name))
    report = Report(len(kept), sum(p.stat().st_size for p in kept.values()), differing)
    if not all(map(importlib.util.find_spec, ("torch", "transformers"))):
        return report
    tokens = np.random.default_rng(seed).integers(0, ckpt.config.vocab_size, (1, length))
    with tempfile.TemporaryDirectory() as scratch:
        floats = folder
        if is_quantized(ckpt.params):
            floats = Path(scratch) / "floats"
            wide = load(folder, dtype=jnp.float32)
            save_hf(floats, wide.config, wide.params, source=wide.source)
        whole = wrapper(ckpt.source.config) is not None
        error, equal = _against_transformers(floats, whole, tokens, new_tokens)
    return Report(report.files, report.bytes, differing, error, equal)


def _against_transformers(
    folder: Path, whole: bool, tokens: np.ndarray, new_tokens: int
) -> tuple[float, bool]:
    """The error of logits, and whether text is equal; `whole` folders have parts beside text."""
    import torch
    import transformers

    from zoo.decoder import Decoder
    from zoo.inference.generate import generate

    auto = transformers.AutoModelForImageTextToText if whole else transformers.AutoModelForCausalLM
    reference = auto.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    with torch.no_grad():
        ids = torch.tensor(tokens)
        wanted = reference(ids).logits.numpy()
        text = reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[0, tokens.shape[1] :].tolist()
    del reference
    ckpt = load(folder, dtype=jnp.float32)
    model = Decoder(ckpt.config, dtype=jnp.float32)
    found = np.asarray(jax.jit(model.apply)(ckpt.params, jnp.asarray(tokens, jnp.int32)).logits)
    error = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    ours = generate(model, ckpt.params, tokens.tolist(), max_new_tokens=new_tokens, temperature=0.0)
    return error, list(map(int, ours[0])) == text


def _kept(path: Path) -> bool:
    return path.is_file() and not path.name.endswith((*OTHER_WEIGHTS, ".tmp"))


def _equal(a: Path, b: Path) -> bool:
    if not b.exists() or a.stat().st_size != b.stat().st_size:
        return False
    with open(a, "rb") as f, open(b, "rb") as g:
        while chunk := f.read(CHUNK):
            if chunk != g.read(CHUNK):
                return False
    return True
