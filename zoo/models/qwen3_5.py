"""Qwen3.5, and Qwen3.6 under the same model types: dense and mixture of experts, text parts.

Differs from Qwen3-Next: the DeltaNet's projections are one below the other on disk, the weights of
the chosen experts are always renormalised, and released files fuse all experts of a layer. The text
part is inside a whole that also sees images, whose rotation has three positions per token; in text
they are equal. A layer of multi-token prediction attends like every fourth layer. Tensors of vision
are carried along unused.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Config, MoE
from zoo.hf.keys import Keys
from zoo.hf.ropes import Fields
from zoo.hf.table import Linear, Row, Rows
from zoo.models import hybrid, qwen3_next, qwen_vl, tables
from zoo.models.family import Family
from zoo.models.hybrid import IN_LINEAR
from zoo.models.qwen3_next import SHARED_EXPERT

_ABSENT = ("decoder_sparse_step", "norm_topk_prob", "intermediate_size")
_MOE_ONLY = (
    "moe_intermediate_size", "num_experts", "num_experts_per_tok",
    "shared_expert_intermediate_size",
)  # fmt: skip
MOE_DEFAULTS = {
    **{key: value for key, value in qwen3_next.DEFAULTS.items() if key not in _ABSENT},
    "vocab_size": 248320,
    "num_hidden_layers": 40,
    "num_experts_per_tok": 8,
    "num_experts": 256,
    # In released files; the classes have no such keys.
    "attn_output_gate": True,
    "mamba_ssm_dtype": "float32",
    "mtp_num_hidden_layers": 0,
    "mtp_use_dedicated_embeddings": False,
}
DEFAULTS = {
    **{key: value for key, value in MOE_DEFAULTS.items() if key not in _MOE_ONLY},
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_key_value_heads": 4,
}
UNUSED = frozenset({"mlp_only_layers"})

FLAT = (
    Row(IN_LINEAR + "in_proj_qkv.weight", ("delta/q/w", "delta/k/w", "delta/v/w"), Rows(Linear())),
    Row(IN_LINEAR + "in_proj_z.weight", "delta/gate/w", Linear()),
    Row(IN_LINEAR + "in_proj_b.weight", "delta/beta/w", Linear()),
    Row(IN_LINEAR + "in_proj_a.weight", "delta/decay/w", Linear()),
)


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type qwen3_5_text."""
    keys = Keys(hf, DEFAULTS, UNUSED)
    ffn = MLP(keys.integer("intermediate_size"), keys.activation())
    return hybrid.model(keys, lambda i: ffn, _without_images)


def moe_from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type qwen3_5_moe_text."""
    keys = Keys(hf, MOE_DEFAULTS, UNUSED | {"intermediate_size"})
    ffn = hybrid.mixture(keys)
    return hybrid.model(keys, lambda i: ffn, _without_images)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type qwen3_5_text."""
    return {**_keys(cfg), "intermediate_size": cfg.layers[0].ffn.hidden}


def moe_to_hf(cfg: Config) -> dict:
    """The config keys of model_type qwen3_5_moe_text."""
    return {**_keys(cfg), **hybrid.mixture_keys(cfg.layers[0].ffn)}


def _keys(cfg: Config) -> dict:
    return {**hybrid.keys_of(cfg), "mtp_num_hidden_layers": len(cfg.mtp)}


def _without_images(rope: Fields) -> None:
    """Which pairs turn by which of the three positions."""
    rope.pop("mrope_section", [int])
    rope.pop("mrope_interleaved", bool)


def _dense(layers, d, heads, kv, v_heads, f, tied=False) -> Config:
    return hybrid.preset("qwen3_5_text", 248320, layers, d, heads, kv, v_heads, MLP(f), tied)


def _moe(layers, d, heads, v_heads, experts, top_k, f) -> Config:
    ffn = MoE(experts, top_k, f, shared=MLP(f), shared_gate=True)
    return hybrid.preset("qwen3_5_moe_text", 248320, layers, d, heads, 2, v_heads, ffn)


_27B = _dense(64, 5120, 24, 4, 48, 17408)
_35B = _moe(40, 2048, 16, 32, 256, 8, 512)
_TABLE = (*hybrid.TABLE, *FLAT, *tables.FFN)
_MOE_TABLE = (*hybrid.TABLE, *FLAT, *tables.FUSED_EXPERTS, *tables.EXPERTS, *SHARED_EXPERT)

FAMILY = Family(
    model_type="qwen3_5_text",
    architecture="Qwen3_5ForCausalLM",
    table=(*_TABLE, *tables.named_predictor(_TABLE)),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={
        "qwen3.5-0.8b": _dense(24, 1024, 8, 2, 16, 3584, tied=True),
        "qwen3.5-2b": _dense(24, 2048, 8, 2, 16, 6144, tied=True),
        "qwen3.5-4b": _dense(32, 2560, 16, 4, 32, 9216, tied=True),
        "qwen3.5-9b": _dense(32, 4096, 16, 4, 32, 12288),
        "qwen3.5-27b": _27B,
        "qwen3.6-27b": _27B,
    },
    extras=hybrid.EXTRAS,
)
MOE_FAMILY = Family(
    model_type="qwen3_5_moe_text",
    architecture="Qwen3_5MoeForCausalLM",
    table=(*_MOE_TABLE, *tables.named_predictor(_MOE_TABLE)),
    from_hf=moe_from_hf,
    to_hf=moe_to_hf,
    presets={
        "qwen3.5-35b-a3b": _35B,
        "qwen3.6-35b-a3b": _35B,
        "qwen3.5-122b-a10b": _moe(48, 3072, 32, 64, 256, 8, 1024),
        "qwen3.5-397b-a17b": _moe(60, 4096, 32, 64, 512, 10, 1024),
    },
    extras=hybrid.EXTRAS,
)

_WHOLE = dict(
    prefixes=({**qwen_vl.NESTED, "mtp.": "mtp."},),
    keys=qwen_vl.IMAGE_KEYS | {"language_model_only"},
)
WRAPPER = qwen_vl.whole("qwen3_5", "Qwen3_5", **_WHOLE)
MOE_WRAPPER = qwen_vl.whole("qwen3_5_moe", "Qwen3_5Moe", **_WHOLE)
