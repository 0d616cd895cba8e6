"""Keys of configs that families agree on: read into parts of a Config, and written from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from zoo.config import MLP, Attention, Config, Layer, MoE, Norm, Rope, stack_layers
from zoo.hf.keys import Keys, activation_name
from zoo.hf.ropes import read_rope, write_rope

KINDS = FULL, LOCAL = "full_attention", "sliding_attention"
DEFAULTS = {
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
}
"""What most config classes agree on."""


def float32s(*decimals: float) -> tuple[float, ...]:
    """Decimals as in configs whose numbers once were float32: 1.02 -> 1.0199999809265137."""
    return tuple(map(float, np.float32(decimals)))


def one_predictor(keys: Keys, number: str, layer: Callable[[], Layer]) -> tuple[Layer, ...]:
    """`Config.mtp` of families whose files hold at most one layer: `number` is the key of how many.

    Raises:
        ValueError: there are more.
    """
    depths = keys.count(number)
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
        width, count = keys.integer("hidden_size"), keys.integer("num_attention_heads")
        if width % count:
            raise keys.error("num_attention_heads", f"it must divide hidden_size={width}")
        return width // count
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


def unturned(keys: Keys, windows: Sequence[int | None], **fields) -> list[Attention]:
    """Attention of each layer where those that see all have no positions beside those with windows.

    `windows` are the layers', and `fields` those that `attention` gets.
    """
    rope, alone = read_rope(keys, head_dim(keys)), keys["sliding_window"] is None
    return [
        attention(keys, rope=rope if window or alone else None, window=window, **fields)
        for window in windows
    ]


def turned(keys: Keys, given: Sequence[int] | None) -> list[bool]:
    """Whether each layer has positions: `given` (no_rope_layers) says 1 where it has, despite its
    name; where it is None, all have but each no_rope_layer_interval-th.

    Raises:
        ValueError: `given` does not reach the last layer.
    """
    layers, period = keys.integer("num_hidden_layers"), keys.integer("no_rope_layer_interval")
    if given is None:
        return [i % period != 0 for i in range(1, layers + 1)]
    if len(given) < layers:
        raise keys.error("no_rope_layers", f"it must have an entry for each of {layers} layers")
    return [bool(turn) for turn in given[:layers]]


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


def kinds(keys: Keys, name: str, known: Sequence[str], default: Sequence[str]) -> list[str]:
    """What the key `name` says each layer is, one of `known`; `default` where it is None.

    Raises:
        ValueError: it does not name one of them for each layer.
    """
    found, layers = keys[name], keys.integer("num_hidden_layers")
    found = default if found is None else found
    if len(found) != layers or not set(found) <= set(known):
        raise keys.error(name, f"it must name {' or '.join(known)} for all {layers} layers")
    return list(found)


def layer_windows(keys: Keys, default: Sequence[str], on: bool = True) -> list[int | None]:
    """Each layer's window: sliding_window for layers of sliding_attention, None for others.

    Args:
        keys: the config.
        default: kinds, full_attention or sliding_attention, of a config without layer_types.
        on: whether windows are in use at all.

    Raises:
        ValueError: layer_types is not one of these per layer, or there is no window to have.
    """
    found, window = kinds(keys, "layer_types", KINDS, default), keys["sliding_window"]
    if LOCAL in found and not (on and window):
        raise keys.error("layer_types", "sliding layers need a sliding_window that is in use")
    return [window if kind == LOCAL else None for kind in found]


def late_windows(keys: Keys) -> list[int | None]:
    """`layer_windows` of Qwen2 and 3: layers from max_window_layers on, if use_sliding_window."""
    on, first = keys["use_sliding_window"], keys["max_window_layers"]
    layers = keys.integer("num_hidden_layers")
    first = keys.integer("max_window_layers", 0) if on and keys["sliding_window"] else layers
    return layer_windows(keys, [LOCAL if i >= first else FULL for i in range(layers)], on)


def sparse_layers(keys: Keys, dense: int) -> list[bool]:
    """Which layers are mixtures: by mlp_layer_types, or all but the first `dense`.

    Raises:
        ValueError: mlp_layer_types is not dense or sparse per layer.
    """
    layers = range(keys.integer("num_hidden_layers"))
    default = ["sparse" if i >= dense else "dense" for i in layers]
    return [k == "sparse" for k in kinds(keys, "mlp_layer_types", ("dense", "sparse"), default)]


def stepped_layers(keys: Keys, default: Sequence[int] = ()) -> list[bool]:
    """Which layers are mixtures as Qwen says it: each `decoder_sparse_step`-th, but none of
    mlp_only_layers, which is `default` where the config has None."""
    step, only = keys.integer("decoder_sparse_step"), keys["mlp_only_layers"]
    only, layers = default if only is None else only, keys.integer("num_hidden_layers")
    return [i not in only and (i + 1) % step == 0 for i in range(layers)]


def every(period: int, keys: Keys) -> list[str]:
    """Kinds of layers of which each `period`-th sees all and the others a window."""
    layers = range(1, keys.integer("num_hidden_layers") + 1)
    return [LOCAL if i % period else FULL for i in layers]


def read_ropes(keys: Keys, local_theta: str, wide: bool = False) -> tuple[Rope, Rope]:
    """The rotations of layers that see all and of layers with a window.

    Old keys: `rope_theta` and `rope_scaling` are those of the former, and the key that
    `local_theta` names is the latter's theta. New: rope_parameters by layer type.

    Raises:
        ValueError: rope_parameters lacks a layer type, or rope_scaling stands beside it.
    """
    new, dim = keys["rope_parameters"], head_dim(keys)
    if not new:
        return read_rope(keys, dim, wide=wide), Rope(dim, keys.number(local_theta), wide=wide)
    _check_kinds(keys)
    if keys["rope_scaling"]:
        raise keys.error("rope_scaling", "rope_parameters says it by layer type; keep one")
    full, local = (
        read_rope(keys, dim, wide=wide, layer_type=kind, theta_key=theta)
        for kind, theta in zip(KINDS, ("rope_theta", local_theta), strict=True)
    )
    return full, local


def write_ropes(cfg: Config, local_theta: str) -> dict:
    """The old config keys of `read_ropes`."""
    found = {layer.mixer.window is None: layer.mixer.rope for layer in cfg.layers}
    keys = write_rope(found[True]) if True in found else {}
    return keys | ({local_theta: found[False].theta} if False in found else {})


def default_ropes(full: float, local: float, **fields) -> dict:
    """rope_parameters by kind of layer: two thetas, and what else both have."""
    return {
        kind: {"rope_type": "default", "rope_theta": theta, **fields}
        for kind, theta in zip(KINDS, (full, local), strict=True)
    }


def ropes_by_kind(keys: Keys, partial: bool = True) -> dict[str, Rope]:
    """The rotation, perhaps of a part of the head, of each kind of layer in rope_parameters."""
    _check_kinds(keys)
    dim = head_dim(keys)
    return {kind: read_rope(keys, dim, layer_type=kind, partial=partial) for kind in KINDS}


def _check_kinds(keys: Keys) -> None:
    if (keys["rope_parameters"] or {}).keys() != set(KINDS):
        fix = f"it must hold one rotation each for {FULL} and {LOCAL}"
        raise keys.error("rope_parameters", fix)


def write_ropes_by_kind(cfg: Config, default: Mapping[str, Mapping]) -> dict:
    """The config key of `ropes_by_kind`; a kind that no layer has gets the default."""
    found = dict(default)
    for a in (layer.mixer for layer in (*cfg.layers, *cfg.mtp)):
        kind, old, part = FULL if a.window is None else LOCAL, write_rope(a.rope), {}
        if "partial_rotary_factor" in default[kind]:
            part = {"partial_rotary_factor": a.rope.dim / a.head_dim}
        scaling = old["rope_scaling"] or {"rope_type": "default"}
        found[kind] = {"rope_theta": old["rope_theta"], **part, **scaling}
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
    return head_sizes(a, bias) | ({} if a.rope is None else write_rope(a.rope))


def head_sizes(a: Attention, bias: str | None = "attention_bias") -> dict:
    """`heads` without the rotation."""
    return {
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.kv_heads,
        "head_dim": a.head_dim,
        **({} if bias is None else {bias: a.qkv_bias}),
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


def write_turned(cfg: Config) -> dict:
    """The config key of `turned`."""
    return {"no_rope_layers": [int(layer.mixer.rope is not None) for layer in cfg.layers]}


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
    types = [FULL if w is None else LOCAL for w in found]
    return {"sliding_window": next(filter(None, found), None), "layer_types": types}


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
