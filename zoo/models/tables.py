"""Rows of weight tables that families share: where Llama and its descendants keep tensors."""

from __future__ import annotations

from zoo.hf.table import Flat, Linear, Row, Same, Split

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
NORM_BIASES = (  # of LayerNorms
    Row("model.norm.bias", "final_norm/b", Same()),
    Row(IN_LAYER + "input_layernorm.bias", "attn_norm/b", Same()),
    Row(IN_LAYER + "post_attention_layernorm.bias", "ffn_norm/b", Same()),
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
SANDWICH_NORMS = (  # or "post", where a layer has no norms before its parts
    Row(IN_LAYER + "input_layernorm.weight", "attn_norm/scale", Same()),
    Row(IN_LAYER + "post_attention_layernorm.weight", "attn_post_norm/scale", Same()),
    Row(IN_LAYER + "pre_feedforward_layernorm.weight", "ffn_norm/scale", Same()),
    Row(IN_LAYER + "post_feedforward_layernorm.weight", "ffn_post_norm/scale", Same()),
)
QK_NORM = (  # of a head, or of all heads of a token
    Row(IN_ATTENTION + "q_norm.weight", "attn/q_norm/scale", Flat()),
    Row(IN_ATTENTION + "k_norm.weight", "attn/k_norm/scale", Flat()),
)


def gated_mlp(at: str, ours: str) -> tuple[Row, ...]:
    """The rows of an MLP whose names on disk begin with `at`, and ours with `ours`."""
    return tuple(
        Row(f"{at}{part}_proj.{leaf}", f"{ours}/{part}/{name}", op)
        for leaf, name, op in (("weight", "w", Linear()), ("bias", "b", Same()))
        for part in ("gate", "up", "down")
    )


FFN = gated_mlp(IN_MLP, "mlp")
LLAMA = (*TOP, *NORMS, *ATTENTION, *FFN)
"""All that Llama and its next of kin have."""

FUSED_QKV = (
    Row(IN_ATTENTION + "qkv_proj.weight", ("attn/q/w", "attn/k/w", "attn/v/w"), Split(1, Linear())),
)
FUSED_GATE_UP = (
    Row(IN_MLP + "gate_up_proj.weight", ("mlp/gate/w", "mlp/up/w"), Split(-1, Linear())),
)
# Experts side by side, as transformers 5 holds them and `save_original_format=False` writes them.
FUSED_EXPERTS = (
    Row(IN_MLP + "experts.gate_up_proj", ("moe/gate/w", "moe/up/w"), Split(-1, Linear(lead=1))),
    Row(IN_MLP + "experts.down_proj", "moe/down/w", Linear(lead=1)),
)
EXPERTS = (
    Row(IN_MLP + "gate.weight", "moe/router/w", Linear()),
    Row(IN_MLP + "experts.{e}.gate_proj.weight", "moe/gate/w", Linear()),
    Row(IN_MLP + "experts.{e}.up_proj.weight", "moe/up/w", Linear()),
    Row(IN_MLP + "experts.{e}.down_proj.weight", "moe/down/w", Linear()),
    *FUSED_EXPERTS,
)


def shared_expert(name: str, at: str = IN_MLP) -> tuple[Row, ...]:
    """The MLP beside the routed experts, whose name on disk differs."""
    return gated_mlp(f"{at}{name}.", "moe/shared")


def numbered_experts(at: str) -> tuple[Row, ...]:
    """Router and experts as Mixtral names them: w1 gates, w3 goes up, w2 down."""
    return (
        Row(at + "gate.weight", "moe/router/w", Linear()),
        *(
            Row(f"{at}experts.{{e}}.{name}.weight", f"moe/{part}/w", Linear())
            for name, part in (("w1", "gate"), ("w3", "up"), ("w2", "down"))
        ),
    )


def predictors(table: tuple[Row, ...], norm: str = "shared_head.norm") -> tuple[Row, ...]:
    """Rows of multi-token prediction as DeepSeek-V3 has it: layers that go on counting.

    `norm` is what the family calls the norm that a layer ends with.
    """
    at = "model.layers.{n}."
    return (
        Row(at + "enorm.weight", "embed_norm/scale", Same()),
        Row(at + "hnorm.weight", "hidden_norm/scale", Same()),
        Row(at + "eh_proj.weight", "proj/w", Linear()),
        *predictor_layer(table, at),
        Row(f"{at}{norm}.weight", "norm/scale", Same()),
    )


def named_predictor(table: tuple[Row, ...]) -> tuple[Row, ...]:
    """Rows of multi-token prediction as Qwen has it: one layer, whose tensors begin with `mtp.`."""
    return (
        Row("mtp.pre_fc_norm_embedding.weight", "mtp_0/embed_norm/scale", Same()),
        Row("mtp.pre_fc_norm_hidden.weight", "mtp_0/hidden_norm/scale", Same()),
        Row("mtp.fc.weight", "mtp_0/proj/w", Linear()),
        *predictor_layer(table, "mtp.layers.{m}."),
        Row("mtp.norm.weight", "mtp_0/norm/scale", Same()),
    )


def predictor_layer(table: tuple[Row, ...], at: str) -> tuple[Row, ...]:
    """The rows of a layer, for one that predicts further and whose names begin with `at`."""
    return tuple(
        Row(row.disk.replace(IN_LAYER, at), tuple(f"layer_0/{p}" for p in row.paths), row.op)
        for row in table
        if IN_LAYER in row.disk
    )


PREDICTOR_COPIES = {
    "model.layers.{n}.embed_tokens.weight": "model.embed_tokens.weight",
    "model.layers.{n}.shared_head.head.weight": "lm_head.weight",
}
