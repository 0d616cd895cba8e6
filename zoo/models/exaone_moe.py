"""K-EXAONE (LG AI Research, 2026): 236B-A23B.

Differs from GLM-4.5: no biases, a norm on each head of q and k, and three layers of four see a
window; the others see all and have no positions. `mlp_layer_types` may place dense layers anywhere.
The layer of multi-token prediction is dense and, as `mtp_layer_types` says, sees all. Released
configs say some things twice (`is_moe_layer`, `sliding_windows`), which must agree.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Attention, Config, Layer, MoE, Norm, Rope, stack_layers
from zoo.hf.keys import Keys
from zoo.hf.table import Row, Same
from zoo.models import exaone4, parts, tables
from zoo.models.family import INV_FREQ, Family
from zoo.models.glm4_moe import MOE_DEFAULTS, ROUTED, ROUTER, mixture, mixture_keys
from zoo.models.parts import FULL, LOCAL, common, decoder

DEFAULTS = {
    **exaone4.DEFAULTS,
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
BIAS = Row(tables.IN_MLP + "e_score_correction_bias", "moe/bias/b", Same())


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type exaone_moe."""
    keys = Keys(hf, DEFAULTS, UNUSED)
    norm = Norm(keys.number("rms_norm_eps"))
    moe = mixture(keys, keys.alias("num_experts", "num_local_experts"), "num_shared_experts")
    dense = MLP(keys.integer("intermediate_size"), moe.act)

    def layers(windows: list[int | None], ffns: list[MLP | MoE]) -> tuple[Layer, ...]:
        mixers = parts.unturned(keys, windows, qkv_bias=False, qk_norm=norm)
        return tuple(Layer(*each, norm) for each in zip(mixers, ffns, strict=True))

    found = parts.layer_windows(keys, exaone4.kinds(keys))
    sparse = parts.sparse_layers(keys, keys.integer("first_k_dense_replace", 0))
    keys.agree("sliding_windows", [window or 0 for window in found], "layer_types")
    keys.agree("is_moe_layer", sparse, "mlp_layer_types or first_k_dense_replace")
    ffns = [moe if routed else dense for routed in sparse]
    mtp = parts.one_predictor(
        keys, "num_nextn_predict_layers", lambda: layers([_predictor_window(keys)], [dense])[0]
    )
    return decoder(keys, layers(found, ffns), norm, mtp=mtp)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type exaone_moe."""
    a = next(la.mixer for la in cfg.layers if la.mixer.rope is not None)
    moe, dense = parts.ffns(cfg)
    return {
        **common(cfg),
        **parts.heads(a, bias=None),
        **parts.windows(cfg),
        "intermediate_size": dense.hidden,
        **parts.mlp_layer_types(cfg),
        **mixture_keys(moe, "num_experts", "num_shared_experts"),
        **_predictor_keys(cfg),
    }


def _predictor_window(keys: Keys) -> int | None:
    """The window of the layer that predicts further; None, where it sees all."""
    kinds, windows = keys["mtp_layer_types"] or [FULL], keys["mtp_sliding_windows"]
    if kinds == [FULL]:
        keys.agree("mtp_sliding_windows", [0], "mtp_layer_types")
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
    local = Attention(64, 8, 128, Rope(128, 1e6), 128, qk_norm=norm)
    full = Attention(64, 8, 128, None, qk_norm=norm)
    moe = MoE(128, 8, 2048, scale=2.5, shared=MLP(2048), **ROUTER)
    layers = tuple(
        Layer(full if i % 4 == 3 else local, moe if i else MLP(18432), norm) for i in range(48)
    )
    stacks, further = stack_layers(layers), (Layer(full, MLP(18432), norm),)
    length, family = 262144, "exaone_moe"
    return Config(153600, 6144, stacks, norm, max_length=length, family=family, mtp=further)


_TABLE = (*tables.LLAMA, *tables.QK_NORM, BIAS, *ROUTED)

FAMILY = Family(
    model_type="exaone_moe",
    architecture="ExaoneMoeForCausalLM",
    table=(*_TABLE, *tables.named_predictor(_TABLE)),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={"k-exaone-236b-a23b": _k_exaone()},
    extras=(INV_FREQ, r"mtp\..*"),
    other_architectures=("ExaoneMoEForCausalLM",),  # as it was named before transformers had it
)
