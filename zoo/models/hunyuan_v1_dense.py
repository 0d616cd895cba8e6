"""Hunyuan dense (Tencent, 2025): 0.5B, 1.8B, 4B and 7B, and Hunyuan-MT.

Differs from Llama: RMSNorm on each head of q and k after the rotation, and a theta that `alpha`
stretches (NTK-aware scaling): rope_scaling calls that "dynamic", but it depends on no length.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Attention, Config, Layer, Norm, Rope, stack_layers
from zoo.hf.keys import Keys
from zoo.hf.ropes import Fields, read_rope
from zoo.hf.table import Row, Same
from zoo.models import llama, parts, tables
from zoo.models.family import Family

DEFAULTS = {
    **llama.DEFAULTS,
    "vocab_size": 290943,
    "rms_norm_eps": 1e-5,
    # Released files have keys of the authors' own code, which the class takes for granted.
    "norm_type": "rms",
    "position_embedding_xdrope": False,
    "use_cla": False,
    "use_qk_norm": True,
    "use_rotary_pos_emb": True,
}
UNUSED = frozenset({
    "add_classification_head", "attention_dropout", "attention_head_dim", "cla_share_factor",
    "class_num", "dense_list",
    "enable_lm_head_fp32", "eod_token_id", "im_end_id", "im_newline_id", "im_start_id",
    "image_token_id", "mask_init_id", "num_media_embeds", "org_vocab_size", "pad_id", "pool_type",
    "skip_cls_token", "text_end_id", "text_start_id", "video_end_id", "video_start_id",
})  # fmt: skip
QK_NORM = (
    Row(tables.IN_ATTENTION + "query_layernorm.weight", "attn/q_norm/scale", Same()),
    Row(tables.IN_ATTENTION + "key_layernorm.weight", "attn/k_norm/scale", Same()),
)


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type hunyuan_v1_dense."""
    keys = Keys(hf, DEFAULTS, UNUSED)
    norm = Norm(keys.number("rms_norm_eps"))
    mixer = parts.attention(
        keys, keys["attention_bias"], rope=stretched_rope(keys), qk_norm=norm, norm_after_rope=True
    )
    ffn = MLP(keys.integer("intermediate_size"), keys.activation())
    return parts.uniform(keys, mixer, ffn, norm)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type hunyuan_v1_dense, with the stretched theta as rope_theta."""
    layer = cfg.layers[0]
    return {**parts.common(cfg), **parts.heads(layer.mixer), **parts.dense(layer.ffn)}


def stretched_theta(alpha: float, dim: int, theta: float = 1e4) -> float:
    """theta * alpha**(dim / (dim - 2)), so that the longest wave grows alpha times."""
    return theta * alpha ** (dim / (dim - 2))


def stretched_rope(keys: Keys) -> Rope:
    """The rotation, with `alpha` of a "dynamic" one worked into theta."""
    dim, theta = parts.head_dim(keys), keys.number("rope_theta")

    def take(fields: Fields) -> None:
        left = fields.left
        if left.get("rope_type", left.get("type")) == "dynamic" and left.get("alpha"):
            own = fields.number("rope_theta", theta)
            stretched = stretched_theta(fields.number("alpha"), dim, own)
            left.clear()  # factor, beta_fast and others have no effect beside alpha
            left["rope_theta"] = stretched

    return read_rope(keys, dim, take=take)


def _preset(layers, d, n, k, f, vocab=120818, length=262144, alpha=1000.0) -> Config:
    norm, rope = Norm(1e-5), Rope(128, stretched_theta(alpha, 128))
    mixer = Attention(n, k, 128, rope, qk_norm=norm, norm_after_rope=True)
    stacks = stack_layers((Layer(mixer, MLP(f), norm),) * layers)
    return Config(vocab, d, stacks, norm, True, length, "hunyuan_v1_dense")


FAMILY = Family(
    model_type="hunyuan_v1_dense",
    architecture="HunYuanDenseV1ForCausalLM",
    table=(*tables.LLAMA, *QK_NORM),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={  # alpha, heads and lengths are also those of two surveys of the released configs
        "hunyuan-0.5b": _preset(24, 1024, 16, 8, 3584),
        "hunyuan-1.8b": _preset(32, 2048, 16, 4, 6144),
        "hunyuan-4b": _preset(36, 3072, 32, 8, 8192),
        "hunyuan-7b": _preset(32, 4096, 32, 8, 14336, 128167, 32768),
        "hunyuan-mt-7b": _preset(32, 4096, 32, 8, 14336, 128256, 32768, alpha=100_000.0),
    },
)
