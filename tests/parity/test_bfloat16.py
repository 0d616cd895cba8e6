"""In bfloat16, where two right implementations differ: ours rounds no worse than transformers' own.

The judge is transformers in float32, with the same weights, rounded to bfloat16. What each of its
bfloat16 implementations is off by is what the type costs, and ours must cost the same.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.hf.load import load

reference = pytest.importorskip(
    "tests.parity.reference", reason="live parity needs torch and transformers"
)
CASES = ("llama", "gemma2", "gpt_oss", "deepseek_v3_yarn", "qwen3_moe", "llama4_scout")


def error(found, wanted) -> float:
    """The median over tokens, so that one which a router sends elsewhere does not decide."""
    return float(np.median(np.sqrt(np.square(found - wanted).mean(-1))))


@pytest.mark.parametrize("name", CASES)
def test_logits_are_as_near_to_float32_as_those_of_transformers(name, tmp_path):
    import torch

    model = reference.build(name)
    folder = reference.save_as(model, tmp_path / "model", "bfloat16")
    ids = reference.tokens(model, 8, 24)

    def theirs(dtype: str, attention: str, experts: str) -> np.ndarray:
        found = type(model).from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            experts_implementation=experts,
        )
        with torch.no_grad():
            return found.eval()(torch.tensor(ids), use_cache=False).logits.float().numpy()

    wanted = theirs("float32", "eager", "eager")
    attentions = ("eager", "sdpa") if model._supports_sdpa else ("eager",)
    experts = ("eager", "grouped_mm") if model._can_set_experts_implementation() else ("eager",)
    costs = [error(theirs("bfloat16", a, e), wanted) for a in attentions for e in experts]
    ckpt = load(folder)
    decoder = zoo.Decoder(ckpt.config, dtype=jnp.bfloat16)
    ours = error(np.asarray(jax.jit(decoder.apply)(ckpt.params, ids).logits), wanted)
    assert min(costs) / 1.5 < ours < 1.5 * max(costs), (ours, costs)
