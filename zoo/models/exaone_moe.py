"""K-EXAONE (LG AI Research, 2026): 236B-A23B.

Differs from GLM-4.5: no biases, a norm on each head of q and k, and three layers of four see a
window; the others see all and have no positions. `mlp_layer_types` may place dense layers anywhere.
The layer of multi-token prediction is dense and, as `mtp_layer_types` says, sees all. Released
configs say some things twice (`is_moe_layer`, `sliding_windows`), which must agree.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Attention, Config, Layer, MoE, Norm, Rope, stack_layers
from zoo.hf.keys import Keys, read_rope, write_rope
from zoo.hf.table import Row, Same
from zoo.models import parts
from zoo.models.family import INV_FREQ, Family
from zoo.models.glm4_moe import MOE_DEFAULTS, ROUTED, ROUTER, mixture, mixture_keys
from zoo.models.parts import attention, common, decoder, every, head_dim, layer_windows, windows

DEFAULTS = {
    "vocab_size": 102400,
    "hidden_size": 4096,
    "intermediate_size": 16384,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
    "layer_types": None,
    "mlp_layer_types": None,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 1024,
    "num_experts": 64,
    "num_shared_experts": 1,
    **MOE_DEFAULTS,
    "routed_scaling_factor": 2.5,
    # The class has no such keys.
    "num_nextn_predict_layers": 0,
    "mtp_layer_types": None,
    "mtp_sliding_windows": None,
    "is_moe_layer": None,
    "sliding_windows": None,
}
UNUSED = frozenset({"first_last_k_dense_replace", "mtp_loss_scaling_factor", "mtp_share_layers"})
FULL, LOCAL = "full_attention", "sliding_attention"
BIAS = Row(parts.IN_MLP + "e_score_correction_bias", "moe/bias/b", Same())


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type exaone_moe."""
    keys = Keys(hf, DEFAULTS, UNUSED)
    norm, rope = Norm(float(keys["rms_norm_eps"])), read_rope(keys, head_dim(keys))
    moe = mixture(keys, keys.alias("num_experts", "num_local_experts"), "num_shared_experts")
    dense = MLP(keys.integer("intermediate_size"), moe.act)
    hybrid = keys["sliding_window"] is not None

    def layer(window: int | None, ffn: MLP | MoE) -> Layer:
        seen = rope if window or not hybrid else None
        mixer = attention(keys, qkv_bias=False, qk_norm=norm, window=window, rope=seen)
        return Layer(mixer, ffn, norm)

    found = layer_windows(keys, _kinds(keys))
    sparse = parts.sparse_layers(keys, keys.integer("first_k_dense_replace"))
    _agree(keys, "sliding_windows", [window or 0 for window in found], "layer_types")
    _agree(keys, "is_moe_layer", sparse, "mlp_layer_types or first_k_dense_replace")
    layers = tuple(
        layer(window, moe if routed else dense)
        for window, routed in zip(found, sparse, strict=True)
    )
    mtp = parts.one_predictor(
        keys, "num_nextn_predict_layers", lambda: layer(_predictor_window(keys), dense)
    )
    cfg = decoder(keys, layers, norm, mtp=mtp)
    keys.close()
    return cfg


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type exaone_moe."""
    a = next(la.mixer for la in cfg.layers if la.mixer.rope is not None)
    moe = next(la.ffn for la in cfg.layers if isinstance(la.ffn, MoE))
    dense = [la.ffn for la in cfg.layers if isinstance(la.ffn, MLP)]
    return {
        **common(cfg),
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.kv_heads,
        "head_dim": a.head_dim,
        **write_rope(a.rope),
        **windows(cfg),
        "intermediate_size": dense[0].hidden if dense else moe.hidden,
        **parts.mlp_layer_types(cfg),
        **mixture_keys(moe, "num_experts", "num_shared_experts"),
        **_predictor_keys(cfg),
    }


def _kinds(keys: Keys) -> list[str]:
    """Kinds of layers by sliding_window_pattern: a period, or a letter per layer of it."""
    pattern, layers = keys["sliding_window_pattern"], keys.integer("num_hidden_layers")
    if keys["sliding_window"] is None:
        return ["full_attention"] * layers
    if isinstance(pattern, int):
        return every(pattern, keys)
    if isinstance(pattern, str) and pattern and set(pattern) <= {"L", "G"}:
        return [LOCAL if pattern[i % len(pattern)] == "L" else FULL for i in range(layers)]
    raise keys.error("sliding_window_pattern", "it is a period as a number, or letters L and G")


def _agree(keys: Keys, name: str, wanted: list, others: str) -> None:
    """Raises ValueError if a key that says again what `others` say differs from that."""
    if keys[name] is not None and list(keys[name]) != wanted:
        raise keys.error(name, f"{others} say {wanted}")


def _predictor_window(keys: Keys) -> int | None:
    """The window of the layer that predicts further; None, where it sees all."""
    kinds, windows = keys["mtp_layer_types"] or [FULL], keys["mtp_sliding_windows"]
    if kinds == [FULL]:
        _agree(keys, "mtp_sliding_windows", [0], "mtp_layer_types")
        return None
    if kinds == [LOCAL] and (windows is None or len(windows) == 1):
        return (windows or [keys.integer("sliding_window")])[0]
    raise keys.error("mtp_layer_types", f"it must be one kind, {FULL} or {LOCAL} with its window")


def _predictor_keys(cfg: Config) -> dict:
    """The config keys of the layer that predicts further."""
    found = [la.mixer.window for la in cfg.mtp]
    return {
        "num_nextn_predict_layers": len(found),
        **({"mtp_layer_types": [LOCAL if w else FULL for w in found]} if found else {}),
        **({"mtp_sliding_windows": [w or 0 for w in found]} if found else {}),
    }


def _k_exaone() -> Config:
    norm = Norm(1e-5)
    local, full = (
        Attention(64, 8, 128, rope, window, qk_norm=norm)
        for rope, window in ((Rope(128, 1e6), 128), (None, None))
    )
    moe = MoE(128, 8, 2048, scale=2.5, shared=MLP(2048), **ROUTER)
    layers = tuple(
        Layer(full if i % 4 == 3 else local, moe if i else MLP(18432), norm) for i in range(48)
    )
    stacks, further = stack_layers(layers), (Layer(full, MLP(18432), norm),)
    length, family = 262144, "exaone_moe"
    return Config(153600, 6144, stacks, norm, max_length=length, family=family, mtp=further)


_TABLE = (
    *parts.TOP, *parts.NORMS, *parts.ATTENTION, *parts.QK_NORM, *parts.FFN, BIAS, *ROUTED,
)  # fmt: skip

FAMILY = Family(
    model_type="exaone_moe",
    architecture="ExaoneMoeForCausalLM",
    table=(*_TABLE, *parts.named_predictor(_TABLE)),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={"k-exaone-236b-a23b": _k_exaone()},
    extras=(INV_FREQ, r"mtp\..*"),
    other_architectures=("ExaoneMoEForCausalLM",),  # as it was named before transformers had it
)
