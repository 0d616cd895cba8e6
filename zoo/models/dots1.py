"""dots.llm1 (arXiv:2506.05767): 142B-A14B, base and instructed.

Differs from Qwen3: DeepSeek-V3's mixtures of experts, after the first layers, and windows, if any,
in the last ones.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Attention, Config, Layer, MoE, Norm, Rope, stack_layers
from zoo.hf.keys import Keys
from zoo.models import latent, parts, tables
from zoo.models.family import Family
from zoo.models.parts import FULL, LOCAL

DEFAULTS = {
    **parts.DEFAULTS,
    "vocab_size": 152064,
    "hidden_size": 4608,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 62,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": None,
    "n_shared_experts": None,
    "n_routed_experts": None,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": None,
    "first_k_dense_replace": 0,
    "norm_topk_prob": False,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "routed_scaling_factor": 1.0,
    "sliding_window": 4096,
    "max_window_layers": 62,
    "layer_types": None,
    # Keys of released files that name what this family always does.
    "moe_layer_freq": 1,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
}
UNUSED = frozenset({"aux_loss_alpha", "ep_size", "seq_aux", "use_sliding_window"})


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type dots1."""
    keys = Keys(hf, DEFAULTS, UNUSED)
    norm, first = Norm(keys.number("rms_norm_eps")), keys.integer("max_window_layers", 0)
    layers = range(keys.integer("num_hidden_layers"))
    kinds = [LOCAL if keys["sliding_window"] and i >= first else FULL for i in layers]
    mixers = [
        parts.attention(keys, keys["attention_bias"], qk_norm=norm, window=window)
        for window in parts.layer_windows(keys, kinds)
    ]
    groups, top_groups = keys.count("n_group") or 1, keys.count("topk_group") or 1
    moe = latent.mixture(
        keys, renormalize=bool(keys["norm_topk_prob"]), groups=groups, top_groups=top_groups,
        **latent.NOAUX,
    )  # fmt: skip
    found = latent.layers(keys, mixers, moe, latent.first_dense(keys), norm)
    return parts.decoder(keys, found, norm)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type dots1."""
    moe, dense = parts.ffns(cfg)
    return {
        **parts.common(cfg),
        **parts.heads(cfg.layers[0].mixer),
        **parts.windows(cfg),
        "intermediate_size": dense.hidden,
        **latent.dense_first(cfg),
        **latent.mixture_keys(moe),
    }


def _llm1() -> Config:
    norm = Norm(1e-5)
    mixer = Attention(32, 32, 128, Rope(128, 1e7), qk_norm=norm)
    moe = MoE(128, 6, 1408, scale=2.5, shared=MLP(2 * 1408), **latent.NOAUX)
    stacks = stack_layers((Layer(mixer, MLP(10944), norm), *(Layer(mixer, moe, norm),) * 61))
    return Config(152064, 4096, stacks, norm, max_length=32768, family="dots1")


FAMILY = Family(
    model_type="dots1",
    architecture="Dots1ForCausalLM",
    table=(*tables.LLAMA, *tables.QK_NORM, *latent.ROUTED),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={"dots.llm1": _llm1()},
)
