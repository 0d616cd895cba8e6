"""ERNIE 4.5 21B-A3B and 300B-A47B (ERNIE 4.5 technical report, 2025).

Differs from Llama: neighbours are rotated as pairs, in float32 throughout; every
`moe_layer_interval`-th layer from `moe_layer_start_index` to `moe_layer_end_index` (inclusive) is a
mixture of experts, with a softmax router and a selection bias in float32, and shared experts (one
MLP of their width). `use_bias` is for all matrices but the experts' and the router's. The layer of
multi-token prediction is dense and ends with the model's final norm, as in Baidu's FastDeploy.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Attention, Config, Layer, MoE, Norm, Rope, stack_layers
from zoo.hf.keys import Keys, activation_name
from zoo.hf.ropes import read_rope
from zoo.hf.table import Linear, Row, Same, Shaped
from zoo.models import parts, tables
from zoo.models.family import INV_FREQ, Family
from zoo.models.parts import attention, common, decoder, head_dim, heads

DEFAULTS = {
    "vocab_size": 103424,
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "num_hidden_layers": 28,
    "num_attention_heads": 20,
    "num_key_value_heads": 4,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "tie_word_embeddings": True,
    "attention_dropout": 0.0,
    "use_bias": False,
    "moe_intermediate_size": 1536,
    "moe_k": 6,
    "moe_num_experts": 64,
    "moe_num_shared_experts": 2,
    "moe_layer_start_index": 1,
    "moe_layer_end_index": -1,
    "moe_layer_interval": 1,
    "moe_norm_min": 1e-12,
    # Keys of the original files that name what this family always does.
    "moe_gate": "topk",
    "moe_use_aux_free": True,
    "num_nextn_predict_layers": 0,
}
# How the released models were trained and served.
UNUSED = frozenset({"moe_capacity", "moe_use_hard_gate"})

BIAS = "moe_statics.e_score_correction_bias"
ROUTED = (
    *tables.EXPERTS,
    Row(tables.IN_MLP + BIAS, "moe/bias/b", Shaped((1, None))),
    Row(tables.IN_MLP + "gate." + BIAS, "moe/bias/b", Shaped((1, None))),  # as in memory
    *tables.shared_expert("shared_experts"),
)
HEAD_BIAS = Row("lm_head.bias", "head/b", Same())


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type ernie4_5_moe."""
    keys = Keys(hf, DEFAULTS, UNUSED)
    norm, act, bias = Norm(keys.number("rms_norm_eps")), keys.activation(), bool(keys["use_bias"])
    rope = read_rope(keys, head_dim(keys), interleaved=True, wide=True)
    mixer = attention(keys, bias, qkv_bias=bias, rope=rope)
    dense = MLP(keys.integer("intermediate_size"), act, bias)
    hidden, shared = keys.integer("moe_intermediate_size"), keys.count("moe_num_shared_experts")
    moe = MoE(
        experts=keys.integer("moe_num_experts"),
        top_k=keys.integer("moe_k"),
        hidden=hidden,
        act=act,
        select_bias=True,
        fp32_router=True,
        shared=MLP(hidden * shared, act, bias) if shared else None,
    )
    layers = tuple(Layer(mixer, moe if sparse else dense, norm) for sparse in _sparse(keys))
    further = Layer(mixer, dense, norm)
    mtp = parts.one_predictor(keys, "num_nextn_predict_layers", lambda: further)
    if mtp and bias:
        raise keys.error("use_bias", "only layers of multi-token prediction without biases are")
    return decoder(keys, layers, norm, head_bias=bias, mtp=mtp, mtp_norm=False)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type ernie4_5_moe."""
    sparse = [i for i, la in enumerate(cfg.layers) if isinstance(la.ffn, MoE)]
    dense = [la.ffn for la in cfg.layers if isinstance(la.ffn, MLP)]
    moe, first, last = cfg.layers[sparse[0]].ffn, sparse[0], sparse[-1]
    return {
        **common(cfg),
        **heads(cfg.layers[0].mixer, bias="use_bias"),
        "intermediate_size": dense[0].hidden if dense else moe.hidden,
        "hidden_act": activation_name(moe.act),
        "moe_num_experts": moe.experts,
        "moe_k": moe.top_k,
        "moe_intermediate_size": moe.hidden,
        "moe_num_shared_experts": 0 if moe.shared is None else moe.shared.hidden // moe.hidden,
        "moe_layer_start_index": first,
        "moe_layer_end_index": last,
        "moe_layer_interval": 1 if len(sparse) == 1 else sparse[1] - first,
        "num_nextn_predict_layers": len(cfg.mtp),
    }


def _sparse(keys: Keys) -> list[bool]:
    """Which layers are mixtures."""
    layers, step = keys.integer("num_hidden_layers"), keys.integer("moe_layer_interval")
    first, last = keys.integer("moe_layer_start_index", 0), keys.integer("moe_layer_end_index", -1)
    last = layers - 1 if last == -1 else last
    return [first <= i <= last and (i + 1) % step == 0 for i in range(layers)]


def _preset(layers, d, n, k, f, experts, top_k, hidden, shared, first, tied) -> Config:
    norm, rope = Norm(1e-5), Rope(128, 5e5, interleaved=True, wide=True)
    mixer, both = Attention(n, k, 128, rope), dict(select_bias=True, fp32_router=True)
    moe = MoE(experts, top_k, hidden, shared=MLP(shared) if shared else None, **both)
    kinds = (Layer(mixer, MLP(f), norm),) * first + (Layer(mixer, moe, norm),) * (layers - first)
    stacks, mtp = stack_layers(kinds), kinds[:1]
    return Config(
        103424, d, stacks, norm, tied, 131072, "ernie4_5_moe", mtp=mtp, mtp_norm=False
    )  # fmt: skip


AT = "model.mtp_block.{m}."
PREDICTOR = (
    Row("model.mtp_emb_norm.{m}.weight", "embed_norm/scale", Same()),
    Row("model.mtp_hidden_norm.{m}.weight", "hidden_norm/scale", Same()),
    Row("model.mtp_linear_proj.{m}.weight", "proj/w", Linear()),
    *tables.predictor_layer((*tables.NORMS, *tables.ATTENTION, *tables.FFN), AT),
)
FAMILY = Family(
    model_type="ernie4_5_moe",
    architecture="Ernie4_5_MoeForCausalLM",
    table=(*tables.LLAMA, HEAD_BIAS, *ROUTED, *PREDICTOR),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={
        "ernie-4.5-21b-a3b": _preset(28, 2560, 20, 4, 12288, 64, 6, 1536, 3072, 1, True),
        "ernie-4.5-300b-a47b": _preset(54, 8192, 64, 8, 28672, 64, 8, 3584, 0, 3, False),
    },
    extras=(INV_FREQ, r"model\.mtp_.*"),
)
