"""Phi-3 and Phi-3.5-mini (arXiv:2404.14219), Phi-4 (arXiv:2412.08905), Phi-4-mini
(arXiv:2503.01743).

Differs from Llama: q, k and v are one tensor on disk, and so are gate and up. A window covers all
layers. Long contexts are LongRoPE: texts beyond the original length turn all their keys with other
divisors than shorter ones. Phi-4-mini rotates three quarters of each head.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Attention, Config, Layer, LongRope, Norm, Rope, stack_layers
from zoo.hf.keys import Keys, longrope_factor, read_rope
from zoo.models import tables
from zoo.models.family import Family
from zoo.models.parts import attention, common, dense, head_dim, heads, uniform

DEFAULTS = {
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "sliding_window": None,
    "attention_bias": False,  # the class lacks this and what follows; released files have it
    "mlp_bias": False,
    "lm_head_bias": False,
    "full_attn_mod": 1,
    "interpolate_factor": 1,
}


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type phi3."""
    keys = Keys(hf, DEFAULTS)
    norm = Norm(keys.number("rms_norm_eps"))
    rope = read_rope(
        keys, head_dim(keys), partial=True, take=lambda fields: _standardize(keys, fields.left)
    )
    mixer = attention(keys, rope=rope, window=keys["sliding_window"])
    ffn = MLP(keys.integer("intermediate_size"), keys.activation())
    return uniform(keys, mixer, ffn, norm)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type phi3."""
    mixer = cfg.layers[0].mixer
    return {
        **common(cfg),
        **heads(mixer),
        **_rope_keys(mixer.rope, cfg.max_length),
        "partial_rotary_factor": mixer.rope.dim / mixer.head_dim,
        "sliding_window": mixer.window,
        **dense(cfg.layers[0].ffn),
    }


def _standardize(keys: Keys, rope: dict) -> None:
    """The length stands outside of the dict, and "su" and "yarn" are LongRoPE (`Phi3Config`)."""
    length = keys["original_max_position_embeddings"]
    if rope.pop("original_max_position_embeddings", length) != length:
        raise keys.error("original_max_position_embeddings", "the rotation's says otherwise")
    rope |= {k: "longrope" for k in ("type", "rope_type") if rope.get(k) in ("su", "yarn")}


def _rope_keys(rope: Rope, longest: int) -> dict:
    """`rope_scaling` has three keys only, or transformers 4 refuses it."""
    scaling = rope.scaling
    if not isinstance(scaling, LongRope):
        return {"original_max_position_embeddings": longest}
    keys = {"type": "longrope", "short_factor": scaling.short, "long_factor": scaling.long}
    if scaling.short_factor != longrope_factor(
        longest / scaling.original_length, scaling.original_length
    ):
        keys["attention_factor"] = scaling.short_factor
    return {
        "original_max_position_embeddings": scaling.original_length,
        "rope_scaling": {k: list(v) if isinstance(v, tuple) else v for k, v in keys.items()},
    }


def _preset(d, n, k, f, vocab, length, layers=32, rope=None, window=None, tied=False) -> Config:
    h, norm = d // n, Norm(1e-5)
    layer = Layer(Attention(n, k, h, rope or Rope(h), window), MLP(f), norm)
    return Config(vocab, d, stack_layers((layer,) * layers), norm, tied, length, "phi3")


def _longrope(short: tuple[float, ...], long: tuple[float, ...]) -> Rope:
    factor = longrope_factor(32.0, 4096)
    return Rope(2 * len(long), scaling=LongRope(short, long, 4096, factor, factor))


_3_SHORT = (
    *(3 * (1.1,)), 1.3000000000000003, 1.3500000000000003, 1.3500000000000003, 1.4000000000000004,
    1.5500000000000005, *(17 * (2.000000000000001,)), *(6 * (2.0500000000000007,)),
    2.1000000000000005, 2.1000000000000005, 2.1500000000000004, *(5 * (2.25,)), 2.3999999999999995,
    2.4499999999999993, 2.499999999999999, 2.6999999999999984, 2.6999999999999984,
    2.7499999999999982, 2.799999999999998, 2.8999999999999977, 3.049999999999997,
)  # fmt: skip
_3_LONG = (
    1.0700000524520874, 1.1200000047683716, 1.149999976158142, 1.4199999570846558,
    1.5699999332427979, 1.7999999523162842, 2.129999876022339, 2.129999876022339, 3.009999990463257,
    5.910000324249268, 6.950000286102295, 9.070000648498535, 9.930000305175781, 10.710000038146973,
    11.130000114440918, 14.609999656677246, 15.409998893737793, 19.809999465942383,
    37.279998779296875, 38.279998779296875, 38.599998474121094, 40.12000274658203,
    46.20000457763672, 50.940006256103516, 53.66000747680664, 54.9373893737793, 56.89738845825195,
    57.28738784790039, 59.98738479614258, 60.86738586425781, 60.887386322021484, 61.71739196777344,
    62.91739273071289, 62.957393646240234, 63.41739273071289, 63.8173942565918, 63.83739471435547,
    63.897396087646484, 63.93739700317383, 64.06739807128906, 64.11434936523438, 64.12435150146484,
    64.15435028076172, 64.19435119628906, 64.24435424804688, 64.57435607910156, 64.69000244140625,
    64.76000213623047,
)  # fmt: skip
_35_SHORT = (
    1.0, 1.0199999809265137, 1.0299999713897705, 1.0299999713897705, *(5 * (1.0499999523162842,)),
    1.0699999332427979, 1.0999999046325684, 1.1099998950958252, 1.1599998474121094,
    1.1599998474121094, 1.1699998378753662, 1.2899998426437378, 1.339999794960022,
    1.679999828338623, 1.7899998426437378, 1.8199998140335083, 1.8499997854232788,
    1.8799997568130493, 1.9099997282028198, 1.9399996995925903, 1.9899996519088745,
    *(6 * (2.0199997425079346,)), *(9 * (2.0299997329711914,)), 2.0799996852874756,
    2.0899996757507324, 2.189999580383301, 2.2199995517730713, 2.5899994373321533,
    2.729999542236328, 2.749999523162842, 2.8399994373321533,
)  # fmt: skip
_35_LONG = (
    1.0800000429153442, 1.1100000143051147, 1.1399999856948853, 1.340000033378601,
    1.5899999141693115, 1.600000023841858, 1.6200000047683716, 2.620000123977661,
    3.2300000190734863, 3.2300000190734863, 4.789999961853027, 7.400000095367432,
    7.700000286102295, 9.09000015258789, 12.199999809265137, 17.670000076293945,
    24.46000099182129, 28.57000160217285, 30.420001983642578, 30.840002059936523,
    32.590003967285156, 32.93000411987305, 42.320003509521484, 44.96000289916992,
    50.340003967285156, 50.45000457763672, 57.55000305175781, 57.93000411987305,
    58.21000289916992, 60.1400032043457, 62.61000442504883, 62.62000274658203,
    62.71000289916992, 63.1400032043457, 63.1400032043457, 63.77000427246094,
    63.93000411987305, 63.96000289916992, 63.970001220703125, 64.02999877929688,
    64.06999969482422, 64.08000183105469, 64.12000274658203, 64.41000366210938,
    64.4800033569336, 64.51000213623047, 64.52999877929688, 64.83999633789062,
)  # fmt: skip
_4_LONG = (
    1.0, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649,
    2.446418898, 2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845,
    5.351743533, 5.984965424, 6.693110555, 7.485043894, 8.370679318, 9.36110372, 10.4687158,
    11.70738129, 13.09260651, 14.64173252, 16.37415215, 18.31155283, 20.47818807, 22.90118105,
    25.61086418, 28.64115884, 32.03, 32.1, 32.13, 32.23, 32.6, 32.61, 32.64, 32.66, 32.7, 32.71,
    32.93, 32.97, 33.28, 33.49, 33.5, 44.16, 47.77,
)  # fmt: skip

FAMILY = Family(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    table=(*tables.FUSED_QKV, *tables.FUSED_GATE_UP, *tables.LLAMA),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={
        "phi-3-mini-4k": _preset(3072, 32, 32, 8192, 32064, 4096, window=2047),
        "phi-3-mini-128k": _preset(
            3072, 32, 32, 8192, 32064, 131072,
            rope=_longrope(_3_SHORT, _3_LONG), window=262144,
        ),
        "phi-3.5-mini": _preset(
            3072, 32, 32, 8192, 32064, 131072,
            rope=_longrope(_35_SHORT, _35_LONG), window=262144,
        ),
        "phi-4": _preset(5120, 40, 10, 17920, 100352, 16384, layers=40, rope=Rope(128, 250_000.0)),
        "phi-4-reasoning": _preset(
            5120, 40, 10, 17920, 100352, 32768, layers=40, rope=Rope(128, 500_000.0)
        ),
        "phi-4-mini": _preset(
            3072, 24, 8, 8192, 200064, 131072,
            rope=_longrope((1.0,) * 48, _4_LONG), window=262144, tied=True,
        ),
    },
)  # fmt: skip
