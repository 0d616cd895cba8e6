"""GLM-4.7-Flash (GLM-4.5 is arXiv:2508.06471): GLM's mixtures with DeepSeek-V3's attention.

Differs from DeepSeek-V3: `mlp_layer_types` says which layers are mixtures, all but the first by
default; norms of 1e-5, except those of the latents.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLA, MLP, Config, Layer, MoE, Norm, Rope, stack_layers
from zoo.hf.keys import Keys
from zoo.models import latent, parts, tables
from zoo.models.family import Family

DEFAULTS = {
    **latent.DEFAULTS,
    **latent.MOE_DEFAULTS,
    "vocab_size": 154880,
    "hidden_size": 2048,
    "intermediate_size": 10240,
    "moe_intermediate_size": 1536,
    "num_hidden_layers": 47,
    "num_attention_heads": 20,
    "num_key_value_heads": 20,
    "n_routed_experts": 64,
    "num_experts_per_tok": 4,
    "routed_scaling_factor": 1.8,
    "q_lora_rank": 768,
    "v_head_dim": 256,
    "qk_nope_head_dim": 192,
    "mlp_layer_types": None,
    "first_k_dense_replace": 1,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 202752,
}


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type glm4_moe_lite."""
    keys = Keys(hf, DEFAULTS, latent.UNUSED)
    sparse = parts.sparse_layers(keys, dense=1)
    mixer = latent.attention(keys, latent.rotation(keys))
    moe = latent.mixture(keys, **latent.NOAUX, **latent.groups(keys))
    return latent.model(keys, [mixer] * len(sparse), moe, sparse)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type glm4_moe_lite."""
    return {**latent.keys_of(cfg), **parts.ffn_types(cfg), **latent.depths(cfg)}


def _flash() -> Config:
    norm = Norm(1e-5)
    mixer = MLA(20, 768, 512, 192, 64, 256, Rope(64, 1e6, interleaved=True))
    moe = Layer(mixer, MoE(64, 4, 1536, scale=1.8, shared=MLP(1536), **latent.NOAUX), norm)
    stacks = stack_layers((Layer(mixer, MLP(10240), norm), *(moe,) * 46))
    length, family = 202752, "glm4_moe_lite"
    return Config(154880, 2048, stacks, norm, max_length=length, family=family, mtp=(moe,))


FAMILY = Family(
    model_type="glm4_moe_lite",
    architecture="Glm4MoeLiteForCausalLM",
    table=latent.PREDICTING,
    from_hf=from_hf,
    to_hf=to_hf,
    presets={"glm-4.7-flash": _flash()},
    extras=latent.PREDICTORS,
    copies=tables.PREDICTOR_COPIES,
)
