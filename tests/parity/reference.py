"""What transformers computes: models with random weights, logits, gradients and greedy text.

All in float32 with the readable implementations of attention and experts.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
import transformers

from tests.hf.cases import CASES

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def build(name: str, seed: int = 0, **changes) -> torch.nn.Module:
    """A model of `CASES[name]` with random weights: no zeros, no ones, no ties.

    Of several modalities where the config has a part of its own for text.
    """
    kind, kwargs = CASES[name]
    kwargs = kwargs | changes
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**kwargs)
    whole = "text_config" in kwargs
    auto = transformers.AutoModelForImageTextToText if whole else transformers.AutoModelForCausalLM
    model = auto.from_config(config).float().eval()
    generator, stored = torch.Generator().manual_seed(seed), model.state_dict().keys()
    with torch.no_grad():
        for path, value in (*model.named_parameters(), *model.named_buffers()):
            if path not in stored:  # frequencies, Gemma's factor on embeddings
                continue
            noise = torch.randn(value.shape, generator=generator)
            if "norm" in path:
                value.copy_(1 + 0.3 * noise)
            elif value.ndim < 2:
                value.copy_(0.3 * noise)
            elif "embed_tokens" in path:
                value.copy_(noise)
            else:
                value.copy_(1.5 * noise / value.shape[-1] ** 0.5)
    return model


def save(model: torch.nn.Module, folder: Path, **kwargs) -> Path:
    model.save_pretrained(folder, **kwargs)
    return folder


def save_as(model: torch.nn.Module, folder: Path, dtype: str = "float32", **kwargs) -> Path:
    """Saves a copy of the model in another type, as a fresh process would that had loaded it."""
    first = save(model, folder.with_name(folder.name + "-float32"))
    kind = getattr(torch, dtype)
    return save(type(model).from_pretrained(first, dtype=kind), folder, **kwargs)


def tokens(model: torch.nn.Module, batch: int, length: int, seed: int = 1) -> np.ndarray:
    """Random ids, i64[B, T]."""
    vocab_size = model.config.get_text_config().vocab_size
    return np.random.default_rng(seed).integers(3, vocab_size, (batch, length))


def logits(model: torch.nn.Module, ids: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """f32[B, T, V]."""
    with torch.no_grad():
        mask = None if mask is None else torch.tensor(mask)
        return model(torch.tensor(ids), attention_mask=mask, use_cache=False).logits.numpy()


def cached_logits(model: torch.nn.Module, ids: np.ndarray, prompt: int) -> np.ndarray:
    """f32[B, T, V] from a prompt and then one token at a time."""
    with torch.no_grad():
        out = model(torch.tensor(ids[:, :prompt]), use_cache=True)
        found = [out.logits]
        for t in range(prompt, ids.shape[1]):
            step = torch.tensor(ids[:, t : t + 1])
            out = model(step, past_key_values=out.past_key_values, use_cache=True)
            found.append(out.logits)
        return torch.cat(found, 1).numpy()


def greedy(model: torch.nn.Module, prompt: list[int], new: int = 64) -> list[int]:
    """The likeliest continuation, not stopping at the end-of-text token."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


def loss_and_gradients(model: torch.nn.Module, ids: np.ndarray, folder: Path) -> float:
    """Next-token loss; a checkpoint in `folder` then holds its gradients where weights would be.

    Writing gradients as weights lets transformers itself undo the layout that it has in memory.
    """
    model.zero_grad()
    found = model(torch.tensor(ids), use_cache=False).logits
    targets = torch.tensor(ids[:, 1:]).reshape(-1)
    loss = torch.nn.functional.cross_entropy(found[:, :-1].flatten(0, 1), targets)
    loss.backward()
    kept = {path: value.detach().clone() for path, value in model.named_parameters()}
    with torch.no_grad():
        for _, value in model.named_parameters():
            value.copy_(torch.zeros_like(value) if value.grad is None else value.grad)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    with torch.no_grad():
        for path, value in model.named_parameters():
            value.copy_(kept[path])
    return loss.item()
