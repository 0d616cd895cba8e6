"""Mistral Small 4 (119B), the text part of model type mistral3: latent attention and experts.

Differs from DeepSeek-V3: the router is a softmax in the model's type, without a selection bias,
renormalised by default; queries are multiplied by Ministral 3's temperature; files hold the
experts of a layer in one tensor.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import (
    MLA,
    MLP,
    Config,
    Layer,
    MoE,
    Norm,
    Rope,
    Stack,
    Temperature,
    YarnScaling,
)
from zoo.hf.keys import Keys
from zoo.hf.table import Linear, Row, Split
from zoo.models import latent, ministral3, tables
from zoo.models.family import Family
from zoo.models.tables import IN_MLP

DEFAULTS = {
    **latent.DEFAULTS,
    "vocab_size": 131072,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "n_shared_experts": 1,
    "n_routed_experts": 128,
    "num_experts_per_tok": 4,
    "routed_scaling_factor": 1.0,
    "kv_lora_rank": 256,
    "q_lora_rank": 1024,
    "qk_nope_head_dim": 64,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "first_k_dense_replace": 0,
    "max_position_embeddings": 1048576,
    "sliding_window": None,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 128.0,
        "original_max_position_embeddings": 8192,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale_all_dim": 1.0,
        "mscale": 1.0,
        ministral3.BETA: 0.1,
    },
}

EXPERTS = (
    Row(IN_MLP + "gate.weight", "moe/router/w", Linear()),
    Row(IN_MLP + "experts.gate_up_proj", ("moe/gate/w", "moe/up/w"), Split(-1, Linear(lead=1))),
    Row(IN_MLP + "experts.down_proj", "moe/down/w", Linear(lead=1)),
)


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type mistral4."""
    keys = Keys(hf, DEFAULTS, latent.UNUSED)
    sparse, rope_dim = latent.first_dense(keys), keys.integer("qk_rope_head_dim")
    dim = keys.integer("qk_nope_head_dim") + rope_dim
    interleaved = bool(keys["rope_interleave"])
    rope, temperature = ministral3.positions(keys, dim, interleaved, rope_dim / dim)
    if rope.dim != rope_dim:
        raise keys.error("qk_rope_head_dim", f"partial_rotary_factor of {dim} is {rope.dim}")
    mixer = latent.attention(keys, rope, temperature=temperature)
    moe = latent.mixture(keys, **latent.groups(keys))
    return latent.model(keys, [mixer] * len(sparse), moe, sparse)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type mistral4; its rotation has new keys only."""
    a = cfg.layers[0].mixer
    hf = {**latent.keys_of(cfg), **latent.dense_first(cfg)}
    hf = ministral3.position_keys(hf, a.temperature)
    hf["rope_parameters"]["partial_rotary_factor"] = a.rope_dim / (a.nope_dim + a.rope_dim)
    return hf


def _preset() -> Config:
    norm, yarn = Norm(1e-6), YarnScaling(128.0, 8192, mscale=1.0, mscale_all_dim=1.0)
    rope = Rope(64, 1e4, interleaved=True, scaling=yarn)
    scale, temperature = latent.softmax_scale(rope, 64), Temperature(0.1, 8192.0)
    mixer = MLA(32, 1024, 256, 64, 64, 128, rope, scale=scale, temperature=temperature)
    layer = Layer(mixer, MoE(128, 4, 2048, shared=MLP(2048)), norm)
    stacks = (Stack(36, (layer,)),)
    return Config(131072, 4096, stacks, norm, max_length=1048576, family="mistral4")


FAMILY = Family(
    model_type="mistral4",
    architecture="Mistral4ForCausalLM",
    table=(
        *tables.TOP,
        *tables.NORMS,
        *latent.LATENT,
        *tables.FFN,
        *EXPERTS,
        *tables.shared_expert("shared_experts"),
    ),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={"mistral-small-4-119b": _preset()},
)
