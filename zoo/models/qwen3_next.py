"""Qwen3-Next (Qwen3-Next-80B-A3B).

Differs from Qwen3-MoE: its layers are a hybrid's (`zoo.models.hybrid`). On disk the DeltaNet's
projections are grouped by key head. No key of released configs counts the layer of multi-token
prediction that their files have (mtp.*), which attends like every fourth layer: without
mtp_num_hidden_layers there is one, if the file has it.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Config, MoE
from zoo.hf.keys import Keys
from zoo.hf.table import PerHead, Row
from zoo.models import hybrid, parts, tables
from zoo.models.family import Family
from zoo.models.hybrid import IN_LINEAR
from zoo.models.qwen2_moe import SHARED as SHARED_EXPERT

DEFAULTS = {
    **parts.DEFAULTS,
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "partial_rotary_factor": 0.25,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "layer_types": None,
    "full_attention_interval": 4,
    "decoder_sparse_step": 1,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "num_experts_per_tok": 10,
    "num_experts": 512,
    "norm_topk_prob": True,
    "mlp_only_layers": None,
    # The class has no such keys: in released files, and ours.
    "use_sliding_window": False,
    "mtp_num_hidden_layers": 1,
}

GROUPED = (
    Row(
        IN_LINEAR + "in_proj_qkvz.weight",
        ("delta/q/w", "delta/k/w", "delta/v/w", "delta/gate/w"),
        PerHead(),
    ),
    Row(IN_LINEAR + "in_proj_ba.weight", ("delta/beta/w", "delta/decay/w"), PerHead()),
)


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type qwen3_next."""
    keys = Keys(hf, DEFAULTS)
    moe = hybrid.mixture(keys, bool(keys["norm_topk_prob"]))
    dense, sparse = MLP(keys.integer("intermediate_size"), moe.act), parts.stepped_layers(keys)
    return hybrid.model(keys, lambda i: moe if sparse[i] else dense)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type qwen3_next."""
    moe, dense = parts.ffns(cfg)
    return {
        **hybrid.keys_of(cfg),
        **hybrid.mixture_keys(moe),
        "intermediate_size": dense.hidden,
        **parts.write_stepped_layers(cfg),
        "norm_topk_prob": moe.renormalize,
        "mtp_num_hidden_layers": len(cfg.mtp),
    }


_MOE = MoE(512, 10, 512, shared=MLP(512), shared_gate=True)
_80B = hybrid.preset("qwen3_next", 151936, 48, 2048, 16, 2, 32, _MOE)
_TABLE = (*hybrid.TABLE, *GROUPED, *tables.FFN, *tables.EXPERTS, *SHARED_EXPERT)

FAMILY = Family(
    model_type="qwen3_next",
    architecture="Qwen3NextForCausalLM",
    table=(*_TABLE, *tables.named_predictor(_TABLE)),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={"qwen3-next-80b-a3b": _80B},
    extras=hybrid.EXTRAS,
)
