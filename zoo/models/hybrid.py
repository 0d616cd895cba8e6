"""What hybrids of Gated DeltaNets and gated attention share: Qwen3-Next's and Qwen3.5's layers.

Three layers of four are Gated DeltaNets (arXiv:2412.06464), the fourth attends with an output gate
and rotates a quarter of each head; all norms but the DeltaNet's are stored less one; a shared
expert has a gate.
"""

from __future__ import annotations

from zoo.config import MLP, Attention, Config, GatedDelta, Layer, MoE, Norm, Rope, stack_layers
from zoo.hf.keys import Keys, activation_name
from zoo.hf.ropes import read_rope
from zoo.hf.table import Depthwise, Flat, Linear, Row, Rows, Same, Split
from zoo.models import parts, tables
from zoo.models.family import INV_FREQ
from zoo.models.parts import attention, common, decoder
from zoo.models.tables import IN_ATTENTION, IN_LAYER

LINEAR, FULL = "linear_attention", "full_attention"
IN_LINEAR = IN_LAYER + "linear_attn."
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
TABLE = (*tables.TOP, *tables.NORMS, *GATED_ATTENTION, *tables.QK_NORM, *DELTA)
EXTRAS = (INV_FREQ, r"mtp\..*")


def mixture(keys: Keys, renormalize: bool = True) -> MoE:
    """Experts beside a gated shared one."""
    shared = MLP(keys.integer("shared_expert_intermediate_size"), keys.activation())
    return parts.experts(keys, renormalize=renormalize, shared=shared, shared_gate=True)


def mixture_keys(moe: MoE) -> dict:
    """The config keys of `mixture`."""
    shared = {"shared_expert_intermediate_size": moe.shared.hidden}
    return parts.write_experts(moe) | shared


def model(keys: Keys, ffn, take=lambda fields: None) -> Config:
    """A Config of DeltaNets and gated attention; `ffn(i)` is layer i's feed-forward network.

    `take` removes what only the family understands from the dict of its rotation.
    """
    eps = keys.number("rms_norm_eps")
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
    period, count = keys.integer("full_attention_interval"), keys.integer("num_hidden_layers")
    every = [LINEAR if i % period else FULL for i in range(1, count + 1)]
    kinds = parts.kinds(keys, "layer_types", (LINEAR, FULL), every)
    layers = tuple(Layer(mixers[kind], ffn(i), norm) for i, kind in enumerate(kinds))
    further = Layer(full, ffn(len(kinds) - 1), norm)
    mtp = parts.one_predictor(keys, "mtp_num_hidden_layers", lambda: further)
    return decoder(keys, layers, norm, mtp=mtp)


def keys_of(cfg: Config) -> dict:
    """The config keys of `model`; the sizes of a kind of mixer that no layer has are left out."""
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


def preset(family, vocab, layers, d, heads, kv, v_heads, ffn, tied=False) -> Config:
    """A Config as released: a full layer after three DeltaNets of 16 key heads, all of size 128."""
    norm = Norm(1e-6, offset=1.0, wide=True)
    full = Attention(heads, kv, 256, Rope(64, 1e7), qk_norm=norm, gated=True)
    delta = Layer(GatedDelta(16, v_heads, 128, 128), ffn, norm)
    pattern = (delta, delta, delta, Layer(full, ffn, norm))
    stacks = stack_layers(pattern * (layers // 4))
    return Config(vocab, d, stacks, norm, tied, 262144, family, mtp=pattern[-1:])
