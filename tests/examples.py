"""Small configs of each kind, and parameters in which nothing is zero or one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.config import (
    MLA,
    MLP,
    Attention,
    ClampedSwiGLU,
    Config,
    GatedDelta,
    Indexer,
    Layer,
    LayerNorm,
    Llama3Scaling,
    MoE,
    Norm,
    Rope,
    Stack,
    Temperature,
    YarnScaling,
)
from zoo.decoder import Decoder
from zoo.describe import shapes

DIM, VOCAB = 48, 97

_LLAMA3 = Rope(16, 500_000.0, scaling=Llama3Scaling(8.0, 1.0, 4.0, 16))
_YARN = Rope(8, interleaved=True, scaling=YarnScaling(40.0, 16, mscale=1.0, mscale_all_dim=0.8))
_GQA = Attention(6, 2, 16, _LLAMA3)
_QWEN = Attention(4, 2, 16, Rope(16), window=5, qk_norm=Norm(1e-5), qkv_bias=True, o_bias=True)
_MLA = MLA(4, 20, 24, 12, 8, 10, _YARN, scale=0.3)
_GDN = GatedDelta(2, 6, 8, 10, 4)
_KDA = GatedDelta(
    3, 3, 12, 12, 3, norm=Norm(wide=True), gate_act="sigmoid", decay_rank=7, gate_rank=5
)
_INDEXED = replace(_MLA, indexer=Indexer(6, 10, 5))
_FOLLOWER = replace(_MLA, follows=True)
_SOFTMAX = MoE(8, 3, 28)
_SIGMOID = MoE(
    8, 2, 28, score="sigmoid", scale=2.5, select_bias=True, groups=4, top_groups=2,
    fp32_router=True, shared=MLP(20),
)  # fmt: skip

_FEATURES = Config(
    VOCAB, DIM,
    (
        Stack(2, (
            Layer(
                Attention(
                    6, 2, 16, Rope(8, wide=True), chunk=7, softcap=20.0, sinks=True, gated=True,
                    gate_act="softplus", gate_heads=True, v_dim=14, v_scale=0.7, clip=3.0,
                    qk_norm=Norm(offset=1.0, wide=True), norm_heads=True,
                    norm_after_rope=True, temperature=Temperature(0.1, 4.0, 1),
                ),
                MoE(
                    8, 2, 28, ClampedSwiGLU(), router_bias=True, bias=True, weigh_input=True,
                    choose_logits=True, shared=MLP(20), shared_gate=True,
                ),
                LayerNorm(), "sandwich",
            ),
            Layer(
                Attention(4, 4, 12, None, qk_norm=Norm(scaled=False)),
                MoE(8, 2, 28, score="sparsemixer"), placement="post", ffn_placement="sandwich",
                residual_scale=0.5,
            ),
            Layer(MLA(4, None, 24, 12, 8, 10, None, temperature=Temperature(0.1, 4.0)), MLP(20)),
            Layer(
                Attention(8, 4, 12, None, window=6, qk_norm=Norm(), qkv_bias=True, share_kv=2),
                MLP(20),
            ),
        )),
    ),
    LayerNorm(), embed_scale=2.0, logit_scale=0.5, logit_softcap=30.0, head_bias=True,
    mtp=(Layer(_GQA, MoE(4, 2, 28)), Layer(_MLA, MLP(20))),
)  # fmt: skip
"""What no family has all of: every field of the config away from its default."""

CONFIGS = {
    "dense": Config(
        VOCAB, DIM, (Stack(3, (Layer(_GQA, MLP(80, bias=True)),)),), tie_embeddings=True
    ),
    "moe": Config(VOCAB, DIM, (Stack(2, (Layer(_QWEN, _SOFTMAX), Layer(_GQA, MLP(80)))),)),
    "mla": Config(VOCAB, DIM, (Stack(2, (Layer(MLA(4, None, 24, 12, 8, 10, Rope(8)), MLP(80)),)),)),
    "mla_moe": Config(
        VOCAB, DIM, (Stack(1, (Layer(_MLA, MLP(80)),)), Stack(2, (Layer(_MLA, _SIGMOID),)))
    ),
    "indexed": Config(
        VOCAB,
        DIM,
        (
            Stack(1, (Layer(_INDEXED, MLP(80)),)),
            Stack(
                2,
                (
                    Layer(_FOLLOWER, MLP(80)),
                    Layer(_INDEXED, MLP(80)),
                    Layer(_FOLLOWER, MLP(80)),
                ),
            ),
        ),
    ),
    "features": _FEATURES,
    "delta": Config(
        VOCAB, DIM, (Stack(2, (Layer(_GDN, MLP(80)), Layer(_KDA, MLP(80)), Layer(_GQA, MLP(80)))),)
    ),
}


_SPREAD = {
    "w": (0.0, 0.15),
    "b": (0.0, 0.1),
    "sinks": (0.0, 1.0),
    "a_log": (0.0, 1.0),
    "dt_bias": (0.0, 1.0),
    "scale": (1.0, 0.1),
    "table": (0.0, 0.3),
}


def random_params(model: Decoder, seed: int = 0) -> dict:
    """Parameters in the layout of `init`, made without compiling: no zero bias, no unit scale."""
    rng = np.random.default_rng(seed)

    def make(path, leaf):
        mean, spread = _SPREAD[path[-1].key]
        return jnp.asarray(rng.normal(mean, spread, leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(make, shapes(model.cfg, model.param_dtype))


@contextmanager
def bfloat16_products() -> Iterator[None]:
    """Skips a test where XLA lacks its products of bfloat16 on CPU, as that of jax 0.7.2 does."""
    try:
        yield
    except jax.errors.JaxRuntimeError as e:
        if not re.search("unsupported .*(BF16 in op dot|DotThunk.*BF16)", str(e), re.IGNORECASE):
            raise
        pytest.skip("XLA has no such product of bfloat16 on CPU here")
