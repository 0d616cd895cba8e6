"""Phi-3 and Phi-3.5-mini (arXiv:2404.14219), Phi-4 (arXiv:2412.08905), Phi-4-mini
(arXiv:2503.01743).

Differs from Llama: q, k and v are one tensor on disk, and so are gate and up. A window covers all
layers. Long contexts are LongRoPE: texts beyond the original length turn all their keys with other
divisors than shorter ones. Phi-4-mini rotates three quarters of each head.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Attention, Config, Layer, LongRope, Norm, Rope, stack_layers
from zoo.hf.keys import Keys
from zoo.hf.ropes import Fields, longrope_factor, read_rope
from zoo.models import parts, tables
from zoo.models.family import Family

DEFAULTS = {
    **parts.DEFAULTS,
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "sliding_window": None,
    "mlp_bias": False,  # released files have this and what follows; the class does not
    "lm_head_bias": False,
    "full_attn_mod": 1,
    "interpolate_factor": 1,
}


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type phi3."""
    keys = Keys(hf, DEFAULTS)
    norm = Norm(keys.number("rms_norm_eps"))
    rope = read_rope(keys, parts.head_dim(keys), partial=True, take=_standardize)
    mixer = parts.attention(keys, rope=rope, window=keys["sliding_window"])
    ffn = MLP(keys.integer("intermediate_size"), keys.activation())
    return parts.uniform(keys, mixer, ffn, norm)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type phi3."""
    mixer = cfg.layers[0].mixer
    return {
        **parts.common(cfg),
        **parts.heads(mixer),
        **_rope_keys(mixer.rope, cfg.max_length),
        "partial_rotary_factor": mixer.rope.dim / mixer.head_dim,
        "sliding_window": mixer.window,
        **parts.dense(cfg.layers[0].ffn),
    }


def _standardize(fields: Fields) -> None:
    """The length stands outside of the dict, and "su" and "yarn" are LongRoPE (`Phi3Config`)."""
    keys, rope = fields.keys, fields.left
    length = keys["original_max_position_embeddings"]
    if rope.pop("original_max_position_embeddings", length) != length:
        raise keys.error("original_max_position_embeddings", "the rotation's says otherwise")
    rope |= {k: "longrope" for k in ("type", "rope_type") if rope.get(k) in ("su", "yarn")}


def _rope_keys(rope: Rope, longest: int) -> dict:
    """`rope_scaling` has three keys only, or transformers 4 refuses it."""
    scaling = rope.scaling
    if not isinstance(scaling, LongRope):
        return {"original_max_position_embeddings": longest}
    original, short, far = scaling.original_length, list(scaling.short), list(scaling.long)
    keys = {"type": "longrope", "short_factor": short, "long_factor": far}
    if scaling.short_factor != longrope_factor(longest / original, original):
        keys["attention_factor"] = scaling.short_factor
    return {"original_max_position_embeddings": original, "rope_scaling": keys}


def _preset(d, n, k, f, vocab, length, layers=32, rope=None, window=None, tied=False) -> Config:
    h, norm = d // n, Norm(1e-5)
    layer = Layer(Attention(n, k, h, rope or Rope(h), window), MLP(f), norm)
    return Config(vocab, d, stack_layers((layer,) * layers), norm, tied, length, "phi3")


def _long(sizes, short: tuple[float, ...], long: tuple[float, ...], tied=False) -> Config:
    """The preset of a text of 131072 tokens after training on 4096."""
    factor = longrope_factor(32.0, 4096)
    rope = Rope(2 * len(long), scaling=LongRope(short, long, 4096, factor, factor))
    return _preset(*sizes, 131072, rope=rope, window=262144, tied=tied)


_3_SHORT = (
    *(3 * (1.1,)), 1.3000000000000003, 1.3500000000000003, 1.3500000000000003, 1.4000000000000004,
    1.5500000000000005, *(17 * (2.000000000000001,)), *(6 * (2.0500000000000007,)),
    2.1000000000000005, 2.1000000000000005, 2.1500000000000004, *(5 * (2.25,)), 2.3999999999999995,
    2.4499999999999993, 2.499999999999999, 2.6999999999999984, 2.6999999999999984,
    2.7499999999999982, 2.799999999999998, 2.8999999999999977, 3.049999999999997,
)  # fmt: skip
_3_LONG = parts.float32s(
    1.07, 1.12, 1.15, 1.42, 1.5699999, 1.8, 2.1299999, 2.1299999, 3.01, 5.9100003, 6.9500003,
    9.070001, 9.93, 10.71, 11.13, 14.61, 15.409999, 19.81, 37.28, 38.28, 38.6, 40.120003, 46.200005,
    50.940006, 53.660007, 54.93739, 56.89739, 57.287388, 59.987385, 60.867386, 60.887386, 61.717392,
    62.917393, 62.957394, 63.417393, 63.817394, 63.837395, 63.897396, 63.937397, 64.0674, 64.11435,
    64.12435, 64.15435, 64.19435, 64.244354, 64.574356, 64.69, 64.76,
)  # fmt: skip
_35_SHORT = parts.float32s(
    1.0, 1.02, 1.03, 1.03, *(5 * (1.05,)), 1.0699999, 1.0999999, 1.1099999, 1.1599998, 1.1599998,
    1.1699998, 1.2899998, 1.3399998, 1.6799998, 1.7899998, 1.8199998, 1.8499998, 1.8799998,
    1.9099997, 1.9399997, 1.9899997, *(6 * (2.0199997,)), *(9 * (2.0299997,)), 2.0799997, 2.0899997,
    2.1899996, 2.2199996, 2.5899994, 2.7299995, 2.7499995, 2.8399994,
)  # fmt: skip
_35_LONG = parts.float32s(
    1.08, 1.11, 1.14, 1.34, 1.5899999, 1.6, 1.62, 2.6200001, 3.23, 3.23, 4.79, 7.4, 7.7000003, 9.09,
    12.2, 17.67, 24.460001, 28.570002, 30.420002, 30.840002, 32.590004, 32.930004, 42.320004,
    44.960003, 50.340004, 50.450005, 57.550003, 57.930004, 58.210003, 60.140003, 62.610004,
    62.620003, 62.710003, 63.140003, 63.140003, 63.770004, 63.930004, 63.960003, 63.97, 64.03,
    64.07, 64.08, 64.12, 64.41, 64.48, 64.51, 64.53, 64.84,
)  # fmt: skip
_4_LONG = (
    1.0, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649,
    2.446418898, 2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845,
    5.351743533, 5.984965424, 6.693110555, 7.485043894, 8.370679318, 9.36110372, 10.4687158,
    11.70738129, 13.09260651, 14.64173252, 16.37415215, 18.31155283, 20.47818807, 22.90118105,
    25.61086418, 28.64115884, 32.03, 32.1, 32.13, 32.23, 32.6, 32.61, 32.64, 32.66, 32.7, 32.71,
    32.93, 32.97, 33.28, 33.49, 33.5, 44.16, 47.77,
)  # fmt: skip

_MINI, _4 = (3072, 32, 32, 8192, 32064), (5120, 40, 10, 17920, 100352)

FAMILY = Family(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    table=(*tables.FUSED_QKV, *tables.FUSED_GATE_UP, *tables.LLAMA),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={
        "phi-3-mini-4k": _preset(*_MINI, 4096, window=2047),
        "phi-3-mini-128k": _long(_MINI, _3_SHORT, _3_LONG),
        "phi-3.5-mini": _long(_MINI, _35_SHORT, _35_LONG),
        "phi-4": _preset(*_4, 16384, layers=40, rope=Rope(128, 250_000.0)),
        "phi-4-reasoning": _preset(*_4, 32768, layers=40, rope=Rope(128, 500_000.0)),
        "phi-4-mini": _long((3072, 24, 8, 8192, 200064), (1.0,) * 48, _4_LONG, tied=True),
    },
)
