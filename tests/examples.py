"""Small configs of each kind, and parameters in which nothing is zero or one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from zoo.config import (
    MLA,
    MLP,
    Attention,
    Config,
    Layer,
    Llama3Scaling,
    MoE,
    Norm,
    Rope,
    Stack,
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
_SOFTMAX = MoE(8, 3, 28)
_SIGMOID = MoE(
    8, 2, 28, score="sigmoid", scale=2.5, select_bias=True, groups=4, top_groups=2,
    fp32_router=True, shared=MLP(20),
)  # fmt: skip

CONFIGS = {
    "dense": Config(
        VOCAB, DIM, (Stack(3, (Layer(_GQA, MLP(80, bias=True)),)),), tie_embeddings=True
    ),
    "moe": Config(VOCAB, DIM, (Stack(2, (Layer(_QWEN, _SOFTMAX), Layer(_GQA, MLP(80)))),)),
    "mla": Config(VOCAB, DIM, (Stack(2, (Layer(MLA(4, None, 24, 12, 8, 10, Rope(8)), MLP(80)),)),)),
    "mla_moe": Config(
        VOCAB, DIM, (Stack(1, (Layer(_MLA, MLP(80)),)), Stack(2, (Layer(_MLA, _SIGMOID),)))
    ),
}


_SPREAD = {"w": (0.0, 0.15), "b": (0.0, 0.1), "scale": (1.0, 0.1), "table": (0.0, 0.3)}


def random_params(model: Decoder, seed: int = 0) -> dict:
    """Parameters in the layout of `init`, made without compiling: no zero bias, no unit scale."""
    rng = np.random.default_rng(seed)

    def make(path, leaf):
        mean, spread = _SPREAD[path[-1].key]
        return jnp.asarray(rng.normal(mean, spread, leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(make, shapes(model.cfg, model.param_dtype))
