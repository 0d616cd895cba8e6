"""Solar Open (Upstage, 2026): 100B-A12B.

Differs from GLM-4.5: every layer is a mixture, heads rotate whole and have no norms, and no layer
predicts further tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Attention, Config, Layer, MoE, Norm, Rope, stack_layers
from zoo.hf.keys import Keys
from zoo.hf.ropes import read_rope
from zoo.models import parts, tables
from zoo.models.family import Family
from zoo.models.glm4_moe import MOE_DEFAULTS, ROUTED, ROUTER, mixture, mixture_keys
from zoo.models.parts import attention, common, head_dim, heads

DEFAULTS = {
    **parts.DEFAULTS,
    "vocab_size": 196608,
    "hidden_size": 4096,
    "num_hidden_layers": 48,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1_000_000.0,
    "moe_intermediate_size": 1280,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "first_k_dense_replace": 0,
    "use_qk_norm": False,
    **MOE_DEFAULTS,
}
UNUSED = frozenset({"intermediate_size"})  # of dense layers, which there are none of


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type solar_open."""
    keys = Keys(hf, DEFAULTS, UNUSED)
    norm = Norm(keys.number("rms_norm_eps"))
    mixer = attention(keys, rope=read_rope(keys, head_dim(keys), partial=True))
    moe = mixture(keys, keys.alias("n_routed_experts", "num_local_experts"), "n_shared_experts")
    return parts.uniform(keys, mixer, moe, norm)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type solar_open."""
    a, moe = cfg.layers[0].mixer, cfg.layers[0].ffn
    return {
        **common(cfg),
        **heads(a),
        "partial_rotary_factor": a.rope.dim / a.head_dim,
        **mixture_keys(moe, "n_routed_experts", "n_shared_experts"),
    }


_NORM = Norm(1e-5)
_MOE = MoE(128, 8, 1280, shared=MLP(1280), **ROUTER)
_LAYER = Layer(Attention(64, 8, 128, Rope(128, 1e6)), _MOE, _NORM)

FAMILY = Family(
    model_type="solar_open",
    architecture="SolarOpenForCausalLM",
    table=(*tables.TOP, *tables.NORMS, *tables.ATTENTION, *ROUTED),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={
        # the defaults of the config class, which names this checkpoint
        "solar-open-100b": Config(
            196608, 4096, stack_layers((_LAYER,) * 48), _NORM, max_length=131072,
            family="solar_open",
        ),
    },
)  # fmt: skip
