"""A.X-K1 (SK Telecom): DeepSeek-V3 with a norm behind each mixture.

Differs from DeepSeek-V3: what a mixture adds is normalised first; queries always have a latent;
`mlp_layer_types`, or first_k_dense_replace and moe_layer_freq, say which layers are mixtures.
Released files hold that norm for dense layers too, where it is carried along unused, and no
selection biases, which are then zeros, as in transformers.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLA, MLP, Config, Layer, MoE, Norm, Rope, YarnScaling, stack_layers
from zoo.hf.keys import Keys
from zoo.hf.table import Row, Same
from zoo.models import latent, parts
from zoo.models.family import INV_FREQ, Family
from zoo.models.tables import IN_LAYER

DEFAULTS = {
    **latent.DEFAULTS,
    **latent.MOE_DEFAULTS,
    "vocab_size": 163840,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "n_routed_experts": 192,
    "num_experts_per_tok": 8,
    "routed_scaling_factor": 2.5,
    "q_lora_rank": 1536,
    "n_group": 8,
    "topk_group": 4,
    "mlp_layer_types": None,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 32768,
}


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type axk1."""
    keys = Keys(hf, DEFAULTS, latent.UNUSED)
    keys.integer("q_lora_rank")
    sparse = parts.sparse_layers(keys, keys.integer("first_k_dense_replace", 0))
    if keys["mlp_layer_types"] is None:
        step = keys.integer("moe_layer_freq")
        sparse = [routed and i % step == 0 for i, routed in enumerate(sparse)]
    mixer = latent.attention(keys, latent.rotation(keys))
    moe = latent.mixture(keys, **latent.NOAUX, **latent.groups(keys))
    return latent.model(keys, [mixer] * len(sparse), moe, sparse, ffn_placement="sandwich")


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type axk1."""
    return {**latent.keys_of(cfg), **parts.ffn_types(cfg)}


def _preset() -> Config:
    """Sizes give exactly the 518,983,059,456 elements of the released files.

    Length and rotation are those of copies of the first config; the class's length is 32768.
    """
    yarn = YarnScaling(4.0, 32768, 32.0, 1.0, mscale=1.0)
    norm, rope = Norm(1e-6), Rope(64, 1e4, interleaved=True, scaling=yarn)
    mixer = MLA(64, 1536, 512, 128, 64, 128, rope)
    groups = dict(groups=8, top_groups=4)
    moe = MoE(192, 8, 2048, scale=2.5, shared=MLP(2048), **latent.NOAUX, **groups)
    routed = Layer(mixer, moe, norm, ffn_placement="sandwich")
    stacks = stack_layers((Layer(mixer, MLP(18432), norm), *(routed,) * 60))
    return Config(163840, 7168, stacks, norm, max_length=131072, family="axk1")


FAMILY = Family(
    model_type="axk1",
    architecture="AXK1ForCausalLM",
    table=(
        *latent.TABLE,
        Row(IN_LAYER + "post_mlp_layernorm.weight", "ffn_post_norm/scale", Same()),
    ),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={"a.x-k1": _preset()},
    aliases=("AXK1",),  # as the first files say
    extras=(INV_FREQ, r"model\.layers\.\d+\.post_mlp_layernorm\.weight"),
    zeros=r"model\.layers\.\d+\.mlp\.gate\.e_score_correction_bias",
)
