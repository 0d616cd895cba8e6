"""Qwen3-Next (Qwen3-Next-80B-A3B), and what Qwen3.5 shares with it.

Differs from Qwen3-MoE: three layers of four are Gated DeltaNets (arXiv:2412.06464), the fourth
attends with an output gate and rotates a quarter of each head; all norms but the DeltaNet's are
stored less one; a shared expert has a gate. On disk the DeltaNet's projections are grouped by key
head. No key of released configs counts the layer of multi-token prediction that their files have
(mtp.*), which attends like every fourth layer: without mtp_num_hidden_layers there is one, if the
file has it.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Attention, Config, GatedDelta, Layer, MoE, Norm, Rope, stack_layers
from zoo.hf.keys import Keys, activation_name, read_rope
from zoo.hf.table import Depthwise, Flat, Linear, PerHead, Row, Rows, Same, Split
from zoo.models import parts
from zoo.models.family import INV_FREQ, Family
from zoo.models.parts import IN_ATTENTION, IN_LAYER, IN_MLP, attention, common, decoder

LINEAR, FULL = "linear_attention", "full_attention"
DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "partial_rotary_factor": 0.25,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "layer_types": None,
    "full_attention_interval": 4,
    "decoder_sparse_step": 1,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "num_experts_per_tok": 10,
    "num_experts": 512,
    "norm_topk_prob": True,
    "mlp_only_layers": None,
    # The class has no such keys: in released files, and ours.
    "use_sliding_window": False,
    "mtp_num_hidden_layers": 1,
}

IN_LINEAR = IN_LAYER + "linear_attn."
GROUPED = (
    Row(
        IN_LINEAR + "in_proj_qkvz.weight",
        ("delta/q/w", "delta/k/w", "delta/v/w", "delta/gate/w"),
        PerHead(),
    ),
    Row(IN_LINEAR + "in_proj_ba.weight", ("delta/beta/w", "delta/decay/w"), PerHead()),
)
DELTA = (
    Row(
        IN_LINEAR + "conv1d.weight",
        ("delta/q_conv/w", "delta/k_conv/w", "delta/v_conv/w"),
        Rows(Depthwise()),
    ),
    Row(IN_LINEAR + "A_log", "delta/a_log", Flat()),
    Row(IN_LINEAR + "dt_bias", "delta/dt_bias", Flat()),
    Row(IN_LINEAR + "norm.weight", "delta/norm/scale", Same()),
    Row(IN_LINEAR + "out_proj.weight", "delta/o/w", Linear(ins=3)),
)
GATED_ATTENTION = (
    Row(IN_ATTENTION + "q_proj.weight", ("attn/q/w", "attn/gate/w"), Split(-1, Linear())),
    Row(IN_ATTENTION + "k_proj.weight", "attn/k/w", Linear()),
    Row(IN_ATTENTION + "v_proj.weight", "attn/v/w", Linear()),
    Row(IN_ATTENTION + "o_proj.weight", "attn/o/w", Linear(ins=2)),
)
SHARED_EXPERT = (
    Row(IN_MLP + "shared_expert.gate_proj.weight", "moe/shared/gate/w", Linear()),
    Row(IN_MLP + "shared_expert.up_proj.weight", "moe/shared/up/w", Linear()),
    Row(IN_MLP + "shared_expert.down_proj.weight", "moe/shared/down/w", Linear()),
    Row(IN_MLP + "shared_expert_gate.weight", "moe/shared_gate/w", Linear()),
)
HYBRID = (*parts.TOP, *parts.NORMS, *GATED_ATTENTION, *parts.QK_NORM, *DELTA)
EXTRAS = (INV_FREQ, r"mtp\..*")


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type qwen3_next."""
    keys = Keys(hf, DEFAULTS)
    moe = mixture(keys, bool(keys["norm_topk_prob"]))
    dense, step = MLP(keys.integer("intermediate_size"), moe.act), keys["decoder_sparse_step"]
    only = keys["mlp_only_layers"] or ()
    return hybrid(keys, lambda i: dense if i in only or (i + 1) % step else moe)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type qwen3_next."""
    moe = next(la.ffn for la in cfg.layers if isinstance(la.ffn, MoE))
    dense = [i for i, la in enumerate(cfg.layers) if isinstance(la.ffn, MLP)]
    return {
        **hybrid_keys(cfg),
        **mixture_keys(moe),
        "intermediate_size": cfg.layers[dense[0]].ffn.hidden if dense else moe.hidden,
        "decoder_sparse_step": 1,
        "mlp_only_layers": dense,
        "norm_topk_prob": moe.renormalize,
        "mtp_num_hidden_layers": len(cfg.mtp),
    }


def mixture(keys: Keys, renormalize: bool = True) -> MoE:
    """Experts beside a gated shared one."""
    act = keys.activation()
    return MoE(
        experts=keys.integer(keys.alias("num_experts", "num_local_experts")),
        top_k=keys.integer("num_experts_per_tok"),
        hidden=keys.integer("moe_intermediate_size"),
        act=act,
        renormalize=renormalize,
        shared=MLP(keys.integer("shared_expert_intermediate_size"), act),
        shared_gate=True,
    )


def mixture_keys(moe: MoE) -> dict:
    """The config keys of `mixture`."""
    return {
        "num_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": moe.hidden,
        "shared_expert_intermediate_size": moe.shared.hidden,
    }


def hybrid(keys: Keys, ffn, take=lambda left: None) -> Config:
    """A Config of DeltaNets and gated attention; `ffn(i)` is layer i's feed-forward network.

    `take` removes what only the family understands from the dict of its rotation.
    """
    eps = float(keys["rms_norm_eps"])
    norm = Norm(eps, offset=1.0, wide=True)
    rope = read_rope(keys, keys.integer("head_dim"), partial=True, take=take)
    full = attention(keys, qkv_bias=False, rope=rope, qk_norm=norm, gated=True)
    delta = GatedDelta(
        k_heads=keys.integer("linear_num_key_heads"),
        v_heads=keys.integer("linear_num_value_heads"),
        k_dim=keys.integer("linear_key_head_dim"),
        v_dim=keys.integer("linear_value_head_dim"),
        conv=keys.integer("linear_conv_kernel_dim"),
        act=keys.activation(),
        norm=Norm(eps),
    )
    mixers = {LINEAR: delta, FULL: full}
    kinds = layer_kinds(keys)
    layers = tuple(Layer(mixers[kind], ffn(i), norm) for i, kind in enumerate(kinds))
    further = Layer(full, ffn(len(kinds) - 1), norm)
    mtp = parts.one_predictor(keys, "mtp_num_hidden_layers", lambda: further)
    cfg = decoder(keys, layers, norm, mtp=mtp)
    keys.close()
    return cfg


def hybrid_keys(cfg: Config) -> dict:
    """The config keys of `hybrid`; the sizes of a kind of mixer that no layer has are left out."""
    kinds = [LINEAR if isinstance(la.mixer, GatedDelta) else FULL for la in cfg.layers]
    delta, full = (
        next((la.mixer for la, k in zip(cfg.layers, kinds, strict=True) if k == kind), None)
        for kind in (LINEAR, FULL)
    )
    keys = {"layer_types": kinds, "hidden_act": activation_name(cfg.layers[0].ffn.act)}
    if full is not None:
        keys |= parts.heads(full) | {"partial_rotary_factor": full.rope.dim / full.head_dim}
    if delta is not None:
        keys |= {
            "linear_num_key_heads": delta.k_heads,
            "linear_num_value_heads": delta.v_heads,
            "linear_key_head_dim": delta.k_dim,
            "linear_value_head_dim": delta.v_dim,
            "linear_conv_kernel_dim": delta.conv,
        }
    return common(cfg) | keys


def layer_kinds(keys: Keys) -> list[str]:
    """What each layer's mixer is; by default each `full_attention_interval`-th attends."""
    layers, period = keys.integer("num_hidden_layers"), keys.integer("full_attention_interval")
    kinds = keys["layer_types"]
    if kinds is None:
        return [LINEAR if (i + 1) % period else FULL for i in range(layers)]
    if len(kinds) != layers or not set(kinds) <= {LINEAR, FULL}:
        raise keys.error("layer_types", f"it must name {LINEAR} or {FULL} for all {layers} layers")
    return list(kinds)


def hybrid_preset(family, vocab, layers, d, heads, kv, v_heads, ffn, tied=False) -> Config:
    """A Config as released: a full layer after three DeltaNets of 16 key heads, all of size 128."""
    norm = Norm(1e-6, offset=1.0, wide=True)
    full = Attention(heads, kv, 256, Rope(64, 1e7), qk_norm=norm, gated=True)
    delta = Layer(GatedDelta(16, v_heads, 128, 128), ffn, norm)
    pattern = (delta, delta, delta, Layer(full, ffn, norm))
    stacks = stack_layers(pattern * (layers // 4))
    return Config(vocab, d, stacks, norm, tied, 262144, family, mtp=pattern[-1:])


_MOE = MoE(512, 10, 512, shared=MLP(512), shared_gate=True)
_80B = hybrid_preset("qwen3_next", 151936, 48, 2048, 16, 2, 32, _MOE)
_TABLE = (*HYBRID, *GROUPED, *parts.FFN, *parts.EXPERTS, *SHARED_EXPERT)

FAMILY = Family(
    model_type="qwen3_next",
    architecture="Qwen3NextForCausalLM",
    table=(*_TABLE, *parts.named_predictor(_TABLE)),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={"qwen3-next-80b-a3b": _80B},
    extras=EXTRAS,
)
