"""DeepSeek-V3 (arXiv:2412.19437), R1 (arXiv:2501.12948), V3.1, and Kimi K2 (arXiv:2507.20534),
which is also the text part of Kimi K2.5.

Differs from Llama: multi-head latent attention with interleaved rotary positions; YaRN, whose
temperature multiplies the softmax scale; `first_k_dense_replace` dense layers, then mixtures of
experts with a sigmoid router in float32, a selection bias, groups, and shared experts (one MLP of
their width). The latent norms' eps is 1e-6 whatever rms_norm_eps is. Layers of multi-token
prediction follow the last layer; transformers leaves them out when it saves.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLA, MLP, Config, Layer, MoE, Norm, Rope, YarnScaling, stack_layers
from zoo.hf.keys import Keys
from zoo.models import latent, tables
from zoo.models.family import Family, Wrapper

DEFAULTS = {
    **latent.DEFAULTS,
    **latent.MOE_DEFAULTS,
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_routed_experts": 256,
    "routed_scaling_factor": 2.5,
    "q_lora_rank": 1536,
    "n_group": 8,
    "topk_group": 4,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "max_position_embeddings": 4096,
}


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type deepseek_v3 (or kimi_k2, which has the same keys)."""
    keys = Keys({**hf, "model_type": "deepseek_v3"}, DEFAULTS, latent.UNUSED)
    sparse = latent.first_dense(keys)
    mixer = latent.attention(keys, latent.rotation(keys))
    moe = latent.mixture(keys, **latent.NOAUX, **latent.groups(keys))
    return latent.model(keys, [mixer] * len(sparse), moe, sparse)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type deepseek_v3."""
    return {**latent.keys_of(cfg), **latent.dense_first(cfg), **latent.depths(cfg)}


def _preset(vocab, heads, dense, theta, length, scaling, moe, depths, eps=1e-6) -> Config:
    norm, rope = Norm(eps), Rope(64, theta, interleaved=True, scaling=scaling)
    mixer = MLA(heads, 1536, 512, 128, 64, 128, rope, scale=latent.softmax_scale(rope, 128))
    layers = (Layer(mixer, MLP(18432), norm),) * dense + (Layer(mixer, moe, norm),) * (61 - dense)
    predictors = (Layer(mixer, moe, norm),) * depths
    return Config(
        vocab, 7168, stack_layers(layers), norm, max_length=length, family="deepseek_v3",
        mtp=predictors,
    )  # fmt: skip


def _moe(experts, scale, groups, top_groups) -> MoE:
    fields = dict(scale=scale, groups=groups, top_groups=top_groups, shared=MLP(2048))
    return MoE(experts, 8, 2048, **latent.NOAUX, **fields)


def _moonlight() -> Config:
    """Moonlight-16B-A3B (arXiv:2502.16982), whose queries have no latent.

    Length, theta and eps are also those of a config for Megatron.
    """
    norm = Norm(1e-5)
    mixer = MLA(16, None, 512, 128, 64, 128, Rope(64, 5e4, interleaved=True))
    moe = MoE(64, 6, 1408, scale=2.446, shared=MLP(2 * 1408), **latent.NOAUX)
    stacks = stack_layers((Layer(mixer, MLP(11264), norm), *(Layer(mixer, moe, norm),) * 26))
    return Config(163840, 2048, stacks, norm, max_length=8192, family="deepseek_v3")


_V3_YARN = YarnScaling(40.0, 4096, 32.0, 1.0, 1.0, 1.0)
_K2_YARN = YarnScaling(32.0, 4096, 1.0, 1.0, 1.0, 1.0)
_K2_LONG_YARN = YarnScaling(64.0, 4096, 1.0, 1.0, 1.0, 1.0)
_K25_YARN = YarnScaling(64.0, 4096, 32.0, 1.0, 1.0, 1.0)
_V3 = _preset(129280, 128, 3, 1e4, 163840, _V3_YARN, _moe(256, 2.5, 8, 4), 1)
_K2 = _preset(163840, 64, 1, 5e4, 131072, _K2_YARN, _moe(384, 2.827, 1, 1), 0)
_K2_LONG = _preset(163840, 64, 1, 5e4, 262144, _K2_LONG_YARN, _moe(384, 2.827, 1, 1), 0)
# Its eps and factor are those of a config for Megatron.
_K2_THINKING = _preset(
    163840, 64, 1, 5e4, 262144, _K2_LONG_YARN, _moe(384, 2.827, 1, 1), 0, eps=1e-5
)
_K25 = _preset(163840, 64, 1, 5e4, 262144, _K25_YARN, _moe(384, 2.827, 1, 1), 0, eps=1e-5)

FAMILY = Family(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    table=latent.PREDICTING,
    from_hf=from_hf,
    to_hf=to_hf,
    presets={
        "deepseek-v3": _V3,
        "deepseek-v3-0324": _V3,
        "deepseek-r1": _V3,
        "deepseek-r1-0528": _V3,
        "deepseek-v3.1": _V3,
        "deepseek-v3.1-terminus": _V3,
        "moonlight-16b-a3b": _moonlight(),
        "kimi-k2": _K2,
        "kimi-k2-0905": _K2_LONG,
        "kimi-k2-thinking": _K2_THINKING,  # from memory: YaRN's betas, which are 0905's
        "kimi-k2.5": _K25,
        "kimi-k2.6": _K25,
        "kimi-k2.7-code": _K25,
    },
    aliases=("kimi_k2",),
    extras=latent.PREDICTORS,
    copies=tables.PREDICTOR_COPIES,
)

# transformers writes layers as blocks here, which is what the files call those of the vision tower
_IN_WHOLE = {"model.": "language_model.model.", "lm_head.": "language_model.lm_head."}
WRAPPER = Wrapper(
    model_type="kimi_k25",
    architecture="Kimi_K25ForConditionalGeneration",
    families=("deepseek_v3", "kimi_k2"),
    prefixes=(_IN_WHOLE, {**_IN_WHOLE, "model.layers.": "language_model.model.blocks."}),
    extras=(r"(model\.)?vision_tower\..*", r"(model\.)?mm_projector\..*"),
    keys=frozenset({
        "ignore_index", "image_token_id", "media_placeholder_token_id", "projection_hidden_size",
        "projection_layer_norm_eps", "use_unified_vision_chunk", "video_placeholder",
        "video_token_id", "vision_config", "vision_end_token_id", "vision_start_token_id",
    }),
    other_architectures=("KimiK25ForConditionalGeneration",),
)  # fmt: skip
