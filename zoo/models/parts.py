"""What families share: rows of the weight table, and the keys of configs that they agree on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from zoo.config import MLP, Attention, Config, Layer, MoE, Norm, Rope, stack_layers
from zoo.hf.keys import Keys, activation_name, read_rope, write_rope
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


def one_predictor(keys: Keys, number: str, layer: Callable[[], Layer]) -> tuple[Layer, ...]:
    """`Config.mtp` of families whose files hold at most one layer: `number` is the key of how many.

    Raises:
        ValueError: there are more.
    """
    depths = keys[number] or 0
    if depths > 1:
        raise keys.error(number, "no file has more than 1")
    return tuple(layer() for _ in range(depths))


def decoder(keys: Keys, layers: tuple[Layer, ...], norm: Norm, **fields) -> Config:
    """A Config from the keys that all families share, and further `fields`; closes `keys`."""
    if "max_length" not in fields:
        fields["max_length"] = keys.integer("max_position_embeddings")
    cfg = Config(
        vocab_size=keys.integer("vocab_size"),
        embed_dim=keys.integer("hidden_size"),
        stacks=stack_layers(layers),
        norm=norm,
        tie_embeddings=bool(keys["tie_word_embeddings"]),
        family=keys.family,
        **fields,
    )
    keys.close()
    return cfg


def head_dim(keys: Keys) -> int:
    """The size of a head; where the config has none, heads share hidden_size."""
    if keys["head_dim"] is None:
        return keys.integer("hidden_size") // keys.integer("num_attention_heads")
    return keys.integer("head_dim")


def attention(keys: Keys, o_bias: bool = False, **fields) -> Attention:
    """Attention from the keys that families with q, k and v projections share.

    `fields` are those of `Attention` that the family decides; `qkv_bias` is otherwise the key
    attention_bias, and `rope` the config's rotation of whole heads.
    """
    n, k, h = keys.integer("num_attention_heads"), keys["num_key_value_heads"], head_dim(keys)
    if "qkv_bias" not in fields:
        fields["qkv_bias"] = bool(keys["attention_bias"])
    if "rope" not in fields:
        fields["rope"] = read_rope(keys, h)
    return Attention(
        heads=n,
        kv_heads=n if k is None else keys.integer("num_key_value_heads"),
        head_dim=h,
        o_bias=bool(o_bias),
        **fields,
    )


def experts(
    keys: Keys,
    count: str = "num_experts",
    hidden: str = "moe_intermediate_size",
    other: str | None = "num_local_experts",
    **fields,
) -> MoE:
    """A mixture of experts; `count`, also called `other`, and `hidden` are keys of its sizes.

    `fields` are those of `MoE` that the family decides.
    """
    return MoE(
        experts=keys.integer(count if other is None else keys.alias(count, other)),
        top_k=keys.integer("num_experts_per_tok"),
        hidden=keys.integer(hidden),
        act=keys.activation(),
        **fields,
    )


def layer_windows(keys: Keys, default: Sequence[str], on: bool = True) -> list[int | None]:
    """Each layer's window: sliding_window for layers of sliding_attention, None for others.

    Args:
        keys: the config.
        default: kinds, full_attention or sliding_attention, of a config without layer_types.
        on: whether windows are in use at all.

    Raises:
        ValueError: layer_types is not one of these per layer, or there is no window to have.
    """
    kinds, layers, window = (
        keys[k] for k in ("layer_types", "num_hidden_layers", "sliding_window")
    )
    kinds = default if kinds is None else kinds
    if len(kinds) != layers:
        raise keys.error("layer_types", f"it must name all {layers} layers")
    if not set(kinds) <= {"full_attention", "sliding_attention"}:
        raise keys.error("layer_types", "known are full_attention and sliding_attention")
    if "sliding_attention" in kinds and not (on and window):
        raise keys.error("layer_types", "sliding layers need a sliding_window that is in use")
    return [window if kind == "sliding_attention" else None for kind in kinds]


def late_windows(keys: Keys) -> list[int | None]:
    """`layer_windows` of Qwen2 and 3: layers from max_window_layers on, if use_sliding_window."""
    on, window, first = (
        keys[k] for k in ("use_sliding_window", "sliding_window", "max_window_layers")
    )
    layers = range(keys.integer("num_hidden_layers"))
    late = [
        "sliding_attention" if on and window and i >= first else "full_attention" for i in layers
    ]
    return layer_windows(keys, late, on)


def sparse_layers(keys: Keys, dense: int) -> list[bool]:
    """Which layers are mixtures: by mlp_layer_types, or all but the first `dense`.

    Raises:
        ValueError: mlp_layer_types is not dense or sparse per layer.
    """
    kinds, layers = keys["mlp_layer_types"], keys.integer("num_hidden_layers")
    kinds = ["sparse" if i >= dense else "dense" for i in range(layers)] if kinds is None else kinds
    if len(kinds) != layers or not set(kinds) <= {"dense", "sparse"}:
        raise keys.error("mlp_layer_types", f"it needs dense or sparse for each of {layers} layers")
    return [kind == "sparse" for kind in kinds]


def stepped_layers(keys: Keys, default: Sequence[int] = ()) -> list[bool]:
    """Which layers are mixtures as Qwen says it: each `decoder_sparse_step`-th, but none of
    mlp_only_layers, which is `default` where the config has None."""
    step, only = keys.integer("decoder_sparse_step"), keys["mlp_only_layers"]
    only, layers = default if only is None else only, keys.integer("num_hidden_layers")
    return [i not in only and (i + 1) % step == 0 for i in range(layers)]


def every(period: int, keys: Keys) -> list[str]:
    """Kinds of layers of which each `period`-th sees all and the others a window."""
    layers = range(1, keys.integer("num_hidden_layers") + 1)
    return ["sliding_attention" if i % period else "full_attention" for i in layers]


def read_ropes(keys: Keys, local_theta: str, wide: bool = False) -> tuple[Rope, Rope]:
    """The rotations of layers that see all and of layers with a window.

    Old keys: `rope_theta` and `rope_scaling` are those of the former, and the key that
    `local_theta` names is the latter's theta. New: rope_parameters by layer type.

    Raises:
        ValueError: rope_parameters lacks a layer type, or rope_scaling stands beside it.
    """
    kinds = {"full_attention": "rope_theta", "sliding_attention": local_theta}
    new, dim = keys["rope_parameters"], head_dim(keys)
    if not new:
        return read_rope(keys, dim, wide=wide), Rope(dim, float(keys[local_theta]), wide=wide)
    if new.keys() != kinds.keys():
        raise keys.error(
            "rope_parameters", f"it must hold one rotation each for {' and '.join(kinds)}"
        )
    if keys["rope_scaling"]:
        raise keys.error("rope_scaling", "rope_parameters says it by layer type; keep one")
    full, local = (
        read_rope(keys, dim, wide=wide, layer_type=kind, theta_key=theta)
        for kind, theta in kinds.items()
    )
    return full, local


def write_ropes(cfg: Config, local_theta: str) -> dict:
    """The old config keys of `read_ropes`."""
    found = {layer.mixer.window is None: layer.mixer.rope for layer in cfg.layers}
    keys = write_rope(found[True]) if True in found else {}
    return keys | ({local_theta: found[False].theta} if False in found else {})


def ropes_by_kind(keys: Keys) -> dict[str, Rope]:
    """The rotation, perhaps of a part of the head, of each kind of layer in rope_parameters."""
    return {
        kind: read_rope(keys, head_dim(keys), layer_type=kind, partial=True)
        for kind in keys["rope_parameters"]
    }


def write_ropes_by_kind(cfg: Config, default: Mapping[str, Mapping]) -> dict:
    """The config key of `ropes_by_kind`; a kind that no layer has gets the default."""
    found = dict(default)
    for a in (layer.mixer for layer in cfg.layers):
        old = write_rope(a.rope)
        found["full_attention" if a.window is None else "sliding_attention"] = {
            "rope_theta": old["rope_theta"],
            "partial_rotary_factor": a.rope.dim / a.head_dim,
            **(old["rope_scaling"] or {"rope_type": "default"}),
        }
    return {"rope_parameters": found}


def uniform(keys: Keys, mixer: Attention, ffn: MLP | MoE, norm: Norm, **fields) -> Config:
    """`decoder` of equal layers without more than these parts."""
    layers = (Layer(mixer, ffn, norm),) * keys.integer("num_hidden_layers")
    return decoder(keys, layers, norm, **fields)


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


def heads(a: Attention, bias: str | None = "attention_bias") -> dict:
    """The config keys of `attention`; `bias` is the family's key for that of q, k and v, if any."""
    return {
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.kv_heads,
        "head_dim": a.head_dim,
        **({} if bias is None else {bias: a.qkv_bias}),
        **({} if a.rope is None else write_rope(a.rope)),
    }


def write_experts(
    moe: MoE, count: str = "num_experts", hidden: str = "moe_intermediate_size"
) -> dict:
    """The config keys of `experts`."""
    return {
        count: moe.experts,
        "num_experts_per_tok": moe.top_k,
        hidden: moe.hidden,
        "hidden_act": activation_name(moe.act),
    }


def ffns(cfg: Config) -> tuple[MoE, MLP]:
    """The mixture of the layers that have one, and the MLP of the others, if any of its size."""
    moe = next(la.ffn for la in cfg.layers if isinstance(la.ffn, MoE))
    dense = (la.ffn for la in cfg.layers if isinstance(la.ffn, MLP))
    return moe, next(dense, MLP(moe.hidden))


def write_first_rope(cfg: Config) -> dict:
    """The config keys of the first layer's rotation that has one, where layers have none."""
    ropes = (layer.mixer.rope for layer in cfg.layers)
    rope = next(filter(None, ropes), None)
    return {} if rope is None else write_rope(rope)


def ffn_types(cfg: Config) -> dict:
    """The config key of `sparse_layers`."""
    kinds = ["dense" if isinstance(la.ffn, MLP) else "sparse" for la in cfg.layers]
    return {"mlp_layer_types": kinds}


def mlp_layer_types(cfg: Config) -> dict:
    """`ffn_types`, and what it is called by classes that know first_k_dense_replace."""
    found = ffn_types(cfg)
    return found | {"first_k_dense_replace": found["mlp_layer_types"].index("sparse")}


def write_stepped_layers(cfg: Config) -> dict:
    """The config keys of `stepped_layers`."""
    dense = [i for i, la in enumerate(cfg.layers) if isinstance(la.ffn, MLP)]
    return {"decoder_sparse_step": 1, "mlp_only_layers": dense}


def windows(cfg: Config) -> dict:
    """The config keys of `layer_windows`."""
    found = [la.mixer.window for la in cfg.layers]
    kinds = ["full_attention" if w is None else "sliding_attention" for w in found]
    return {"sliding_window": next(filter(None, found), None), "layer_types": kinds}


def write_late_windows(cfg: Config) -> dict:
    """The config keys of `late_windows`."""
    found = windows(cfg)
    return found | {
        "use_sliding_window": found["sliding_window"] is not None,
        "max_window_layers": found["layer_types"].count("full_attention"),
    }


def dense(ffn: MLP) -> dict:
    """The config keys of a feed-forward network without biases."""
    return {"intermediate_size": ffn.hidden, "hidden_act": activation_name(ffn.act)}
