"""What families share: rows of the weight table, and the keys of configs that they agree on."""

from __future__ import annotations

from zoo.config import Attention, Config, Layer, Norm, stack_layers
from zoo.hf.keys import Keys, read_rope, write_rope
from zoo.hf.table import Flat, Linear, Row, Same

IN_LAYER = "model.layers.{l}."
IN_ATTENTION, IN_MLP = IN_LAYER + "self_attn.", IN_LAYER + "mlp."

TOP = (
    Row("model.embed_tokens.weight", "embed/table", Same()),
    Row("model.norm.weight", "final_norm/scale", Same()),
    Row("lm_head.weight", "head/w", Linear()),
)
NORMS = (
    Row(IN_LAYER + "input_layernorm.weight", "attn_norm/scale", Same()),
    Row(IN_LAYER + "post_attention_layernorm.weight", "ffn_norm/scale", Same()),
)
ATTENTION = (
    Row(IN_ATTENTION + "q_proj.weight", "attn/q/w", Linear()),
    Row(IN_ATTENTION + "k_proj.weight", "attn/k/w", Linear()),
    Row(IN_ATTENTION + "v_proj.weight", "attn/v/w", Linear()),
    Row(IN_ATTENTION + "o_proj.weight", "attn/o/w", Linear(ins=2)),
    Row(IN_ATTENTION + "q_proj.bias", "attn/q/b", Flat()),
    Row(IN_ATTENTION + "k_proj.bias", "attn/k/b", Flat()),
    Row(IN_ATTENTION + "v_proj.bias", "attn/v/b", Flat()),
    Row(IN_ATTENTION + "o_proj.bias", "attn/o/b", Same()),
)
QK_NORM = (
    Row(IN_ATTENTION + "q_norm.weight", "attn/q_norm/scale", Same()),
    Row(IN_ATTENTION + "k_norm.weight", "attn/k_norm/scale", Same()),
)
FFN = (
    Row(IN_MLP + "gate_proj.weight", "mlp/gate/w", Linear()),
    Row(IN_MLP + "up_proj.weight", "mlp/up/w", Linear()),
    Row(IN_MLP + "down_proj.weight", "mlp/down/w", Linear()),
    Row(IN_MLP + "gate_proj.bias", "mlp/gate/b", Same()),
    Row(IN_MLP + "up_proj.bias", "mlp/up/b", Same()),
    Row(IN_MLP + "down_proj.bias", "mlp/down/b", Same()),
)
EXPERTS = (
    Row(IN_MLP + "gate.weight", "moe/router/w", Linear()),
    Row(IN_MLP + "experts.{e}.gate_proj.weight", "moe/gate/w", Linear()),
    Row(IN_MLP + "experts.{e}.up_proj.weight", "moe/up/w", Linear()),
    Row(IN_MLP + "experts.{e}.down_proj.weight", "moe/down/w", Linear()),
)


def predictors(table: tuple[Row, ...]) -> tuple[Row, ...]:
    """Rows of multi-token prediction as DeepSeek-V3 has it: layers that go on counting."""
    at = "model.layers.{n}."
    inner = tuple(
        Row(row.disk.replace("{l}", "{n}"), tuple(f"layer_0/{p}" for p in row.paths), row.op)
        for row in table
        if "{l}" in row.disk
    )
    return (
        Row(at + "enorm.weight", "embed_norm/scale", Same()),
        Row(at + "hnorm.weight", "hidden_norm/scale", Same()),
        Row(at + "eh_proj.weight", "proj/w", Linear()),
        *inner,
        Row(at + "shared_head.norm.weight", "norm/scale", Same()),
    )


PREDICTOR_COPIES = {
    "model.layers.{n}.embed_tokens.weight": "model.embed_tokens.weight",
    "model.layers.{n}.shared_head.head.weight": "lm_head.weight",
}


def decoder(keys: Keys, layers: tuple[Layer, ...], norm: Norm) -> Config:
    """A Config from the keys that all families share."""
    return Config(
        vocab_size=keys.integer("vocab_size"),
        embed_dim=keys.integer("hidden_size"),
        stacks=stack_layers(layers),
        norm=norm,
        tie_embeddings=bool(keys["tie_word_embeddings"]),
        max_length=keys.integer("max_position_embeddings"),
        family=keys.family,
    )


def attention(keys: Keys, o_bias: bool, **fields) -> Attention:
    """Attention from the keys that families with q, k and v projections share."""
    n = keys.integer("num_attention_heads")
    k, h = keys["num_key_value_heads"], keys["head_dim"]
    h = keys.integer("hidden_size") // n if h is None else keys.integer("head_dim")
    return Attention(
        heads=n,
        kv_heads=n if k is None else keys.integer("num_key_value_heads"),
        head_dim=h,
        rope=read_rope(keys, h),
        qkv_bias=bool(keys["attention_bias"]),
        o_bias=bool(o_bias),
        **fields,
    )


def common(cfg: Config) -> dict:
    """The config keys that all families share."""
    return {
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.embed_dim,
        "num_hidden_layers": len(cfg.layers),
        "rms_norm_eps": cfg.norm.eps,
        "tie_word_embeddings": cfg.tie_embeddings,
        "max_position_embeddings": cfg.max_length,
        "attention_dropout": 0.0,
    }


def heads(a: Attention) -> dict:
    """The config keys of `attention`."""
    return {
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.kv_heads,
        "head_dim": a.head_dim,
        "attention_bias": a.qkv_bias,
        **write_rope(a.rope),
    }
