"""`verify`: is a checkpoint read and written exactly, and does it say what transformers says?"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.hf.hub import resolve
from zoo.hf.load import load
from zoo.hf.save import save_hf
from zoo.hf.source import CONFIG, INDEX, Source
from zoo.models import config_to_hf, wrapper
from zoo.quantized import is_quantized

CHUNK = 1 << 24


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        files: files that the folder has and we write.
        bytes: their size together.
        differing: names of those that did not come back byte for byte.
        left_out: names of files that we do not write: weights in other formats, which would not
            follow a change of these.
        logits_error: largest difference of logits over their largest magnitude, both models in
            float32; None if they were not compared.
        greedy_equal: whether greedy text agreed token for token; None likewise.
        reason: why logits and text were not compared.
    """

    files: int
    bytes: int
    differing: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    logits_error: float | None = None
    greedy_equal: bool | None = None
    reason: str = ""

    @property
    def exact(self) -> bool:
        return not self.differing


def verify(
    path_or_repo: str | os.PathLike, length: int = 32, new_tokens: int = 32, seed: int = 0
) -> Report:
    """Loads a checkpoint, saves it again and compares; then, if it is there, with transformers.

    Quantised weights are kept for the round trip, and dequantised by us for both models: what
    transformers needs for them is mostly a GPU. A folder of a model type that only code of its own
    reads (Kimi K2) is compared as the one that it is read as here.

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
        kept = _kept(ckpt.source)
        differing = tuple(name for name in kept if not _equal(folder / name, again / name))
    there = {p.name for p in folder.iterdir() if p.is_file() and not p.name.endswith(".tmp")}
    size = sum((folder / name).stat().st_size for name in kept)
    report = Report(len(kept), size, differing, tuple(sorted(there - set(kept))))
    if not all(map(importlib.util.find_spec, ("torch", "transformers"))):
        return replace(report, reason="install torch and transformers to do it")
    from transformers import CONFIG_MAPPING

    hf, ours = ckpt.source.config, config_to_hf(ckpt.config)
    alone = hf["model_type"] not in CONFIG_MAPPING  # then as a folder without what we do not read
    if alone and ours["model_type"] not in CONFIG_MAPPING:
        return replace(report, reason=f"transformers has no model_type {hf['model_type']!r}")
    tokens = np.random.default_rng(seed).integers(0, ckpt.config.vocab_size, (1, length))
    with tempfile.TemporaryDirectory() as scratch:
        floats = folder
        if alone or is_quantized(ckpt.params):
            floats = Path(scratch) / "floats"
            wide = load(folder, dtype=jnp.float32)
            save_hf(floats, wide.config, wide.params, source=None if alone else wide.source)
        whole = not alone and wrapper(hf) is not None
        try:
            reference = _reference(floats, whole)
        except (ImportError, OSError, RuntimeError, ValueError) as e:
            return replace(report, reason=f"transformers does not load it: {e}")
        error, equal = _compare(floats, reference, tokens, new_tokens)
    return replace(report, logits_error=error, greedy_equal=equal)


def _reference(folder: Path, whole: bool) -> Any:
    """transformers' model; `whole` folders have parts beside text."""
    import torch
    import transformers

    auto = transformers.AutoModelForImageTextToText if whole else transformers.AutoModelForCausalLM
    return auto.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    ).eval()


def _compare(
    folder: Path, reference: Any, tokens: np.ndarray, new_tokens: int
) -> tuple[float, bool]:
    """The error of logits, and whether text is equal."""
    import torch

    from zoo.decoder import Decoder
    from zoo.inference.generate import generate

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


def _kept(source: Source) -> list[str]:
    """Names of the files that come back, within the folder."""
    others = [p.relative_to(source.folder).as_posix() for p in source.others]
    index = [] if source.index_bytes is None else [INDEX]
    return [CONFIG, *index, *(file.path.name for file in source.files), *others]


def _equal(a: Path, b: Path) -> bool:
    if not b.exists() or a.stat().st_size != b.stat().st_size:
        return False
    with open(a, "rb") as f, open(b, "rb") as g:
        while chunk := f.read(CHUNK):
            if chunk != g.read(CHUNK):
                return False
    return True
