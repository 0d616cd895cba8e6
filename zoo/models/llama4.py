"""Llama 4 Scout and Maverick (Meta, "The Llama 4 herd", April 2025), the text part.

Differs from Llama: three of four layers have rotary positions, interleaved and turned in float32,
and see their own chunk of 8192 tokens; the others have no positions, see everything, and scale
their queries with the position (arXiv:2501.19399). Scout normalises rotated queries and keys
without a parameter. Experts are weighed by the sigmoid of their logit, on the way in, beside a
shared one; Maverick's every other layer is dense, and wider. Files hold experts as [in, out], gate
and up side by side.

Released files are the whole with vision (`llama4`); its text part alone is `llama4_text`.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Attention, Config, Layer, Llama3Scaling, MoE, Norm, Rope, Temperature
from zoo.hf.keys import Keys, activation_name
from zoo.hf.ropes import read_rope, write_rope
from zoo.hf.table import Linear, Row, Same, Split
from zoo.models import parts, tables
from zoo.models.family import Family, Wrapper

DEFAULTS = {
    **parts.DEFAULTS,
    "vocab_size": 202048,
    "hidden_size": 5120,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "num_experts_per_tok": 1,
    "num_local_experts": 16,
    "moe_layers": None,
    "interleave_moe_layer_step": 1,
    "use_qk_norm": True,
    "no_rope_layers": None,
    "no_rope_layer_interval": 4,
    "layer_types": None,
    "attention_chunk_size": 8192,
    "attn_temperature_tuning": True,
    "floor_scale": 8192,
    "attn_scale": 0.1,
    "rope_theta": 500_000.0,
}
# How the models were trained and are served.
UNUSED = frozenset({"cache_implementation", "for_llm_compressor", "router_jitter_noise"})
KINDS = ("chunked_attention", "full_attention")
ROUTER = dict(score="sigmoid", renormalize=False, weigh_input=True)  # as fields of `MoE`
SIZES = "num_local_experts", "intermediate_size"

IN_FFN = tables.IN_LAYER + "feed_forward."
FFN = (
    *tables.gated_mlp(IN_FFN, "mlp"),
    Row(IN_FFN + "router.weight", "moe/router/w", Linear()),
    Row(IN_FFN + "experts.gate_up_proj", ("moe/gate/w", "moe/up/w"), Split(-1, Same())),
    Row(IN_FFN + "experts.down_proj", "moe/down/w", Same()),
    *tables.shared_expert("shared_expert", IN_FFN),
)


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type llama4_text."""
    keys = Keys(hf, DEFAULTS, UNUSED)
    norm, step = Norm(keys.number("rms_norm_eps")), keys.integer("interleave_moe_layer_step")
    keys.agree("nope_layer_interval", keys.integer("no_rope_layer_interval"), "other keys")
    turned, sparse = parts.turned(keys, keys["no_rope_layers"] or None), keys["moe_layers"]
    kinds = parts.kinds(keys, "layer_types", KINDS, [KINDS[0] if on else KINDS[1] for on in turned])
    sparse = range(step - 1, len(kinds), step) if sparse is None else sparse
    shared = MLP(keys.integer("intermediate_size"), keys.activation())
    moe = parts.experts(keys, *SIZES, other=None, shared=shared, **ROUTER)
    dense = MLP(keys.integer("intermediate_size_mlp"), keys.activation())
    layers = tuple(
        Layer(_attention(keys, on, kind == KINDS[0]), moe if i in sparse else dense, norm)
        for i, (on, kind) in enumerate(zip(turned, kinds, strict=True))
    )
    return parts.decoder(keys, layers, norm)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type llama4_text; sizes of what no layer has are left out."""
    mixers, ffns = [la.mixer for la in cfg.layers], [la.ffn for la in cfg.layers]
    turned = next(a for a in mixers if a.rope is not None)
    keys = {
        **parts.common(cfg),
        **parts.heads(turned),
        "use_qk_norm": turned.qk_norm is not None,
        **parts.write_turned(cfg),
        "layer_types": [KINDS[a.chunk is None] for a in mixers],
        "attention_chunk_size": next((a.chunk for a in mixers if a.chunk is not None), 8192),
        "attn_temperature_tuning": any(a.temperature is not None for a in mixers),
        "hidden_act": activation_name(ffns[0].act),
        "moe_layers": [i for i, f in enumerate(ffns) if isinstance(f, MoE)],
        "interleave_moe_layer_step": 1,
    }
    for warmth in (a.temperature for a in mixers if a.temperature is not None):
        keys |= {"attn_scale": warmth.beta, "floor_scale": int(warmth.length)}
    for ffn in ffns:
        dense = {"intermediate_size_mlp": ffn.hidden}
        keys |= parts.write_experts(ffn, *SIZES) if isinstance(ffn, MoE) else dense
    return keys


def _attention(keys: Keys, turned: bool, chunked: bool) -> Attention:
    rope = read_rope(keys, parts.head_dim(keys), interleaved=True, wide=True)
    warmth = Temperature(keys.number("attn_scale"), keys.integer("floor_scale"), 1)
    normed, warmed = bool(keys["use_qk_norm"]), keys["attn_temperature_tuning"]
    norm = Norm(keys.number("rms_norm_eps"), scaled=False) if normed else None
    if turned:
        fields = dict(rope=rope, qk_norm=norm, norm_after_rope=normed)
    else:
        fields = dict(rope=None, temperature=warmth if warmed else None)
    chunk = keys.integer("attention_chunk_size") if chunked else None
    return parts.attention(keys, keys["attention_bias"], chunk=chunk, **fields)


def _preset(**released) -> Config:
    """What a release says that the config class does not have by default."""
    return from_hf({"model_type": "llama4_text", **released})


_ROPE = Rope(128, 5e5, scaling=Llama3Scaling(16.0, 1.0, 1.0, 8192))

FAMILY = Family(
    model_type="llama4_text",
    architecture="Llama4ForCausalLM",
    table=(*tables.TOP, *tables.NORMS, *tables.ATTENTION, *FFN),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={
        "llama-4-scout": _preset(max_position_embeddings=10485760, **write_rope(_ROPE)),
        "llama-4-maverick": _preset(
            max_position_embeddings=1048576, num_local_experts=128, interleave_moe_layer_step=2,
            use_qk_norm=False,
        ),
    },
)  # fmt: skip
WRAPPER = Wrapper(
    model_type="llama4",
    architecture="Llama4ForConditionalGeneration",
    families=("llama4_text",),
    prefixes=({"model.": "language_model.model.", "lm_head.": "language_model.lm_head."},),
    extras=(r"vision_model\..*", r"multi_modal_projector\..*"),
    keys=frozenset({"vision_config", "boi_token_index", "eoi_token_index", "image_token_index"}),
)
