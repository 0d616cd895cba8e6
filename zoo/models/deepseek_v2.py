"""DeepSeek-V2 (arXiv:2405.04434), V2-Lite, and DeepSeek-Coder-V2 (arXiv:2406.11931).

Differs from DeepSeek-V3: the router is a softmax in float32 over all experts, without a selection
bias and without renormalisation; of groups, those with the best single expert are kept
("group_limited_greedy"), or there are none ("greedy"). Rotation is in float32. V2-Lite projects
queries directly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from zoo.config import MLA, MLP, Config, Layer, MoE, Norm, Rope, YarnScaling, stack_layers
from zoo.hf.keys import Keys
from zoo.models import latent
from zoo.models.family import Family

DEFAULTS = {
    **latent.DEFAULTS,
    "vocab_size": 102400,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "moe_intermediate_size": 1407,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "q_lora_rank": 1536,
    "n_shared_experts": 2,
    "n_routed_experts": 64,
    "num_experts_per_tok": None,
    "n_group": None,
    "topk_group": None,
    "topk_method": "greedy",
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
    "first_k_dense_replace": 0,
    "max_position_embeddings": 2048,
    "mlp_bias": False,
    "moe_layer_freq": 1,
    "scoring_func": "softmax",
}
ROUTER = dict(renormalize=False, group_score="max", fp32_router=True, fp32_weights=True)
"""DeepSeek-V2's router, as fields of `MoE`."""


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type deepseek_v2."""
    keys = Keys(hf, DEFAULTS, latent.UNUSED)
    sparse = latent.first_dense(keys)
    mixer = latent.attention(keys, replace(latent.rotation(keys), wide=True))
    moe = latent.mixture(keys, **ROUTER, **_groups(keys))
    return latent.model(keys, [mixer] * len(sparse), moe, sparse)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type deepseek_v2."""
    moe = next(la.ffn for la in cfg.layers if isinstance(la.ffn, MoE))
    return {
        **latent.keys_of(cfg),
        **latent.dense_first(cfg),
        "topk_method": "group_limited_greedy" if moe.groups > 1 else "greedy",
        "mlp_bias": moe.shared.bias,
    }


def _groups(keys: Keys) -> dict:
    method = keys["topk_method"]
    count, kept = keys["n_group"], keys["topk_group"]
    if method == "group_limited_greedy":
        return dict(groups=keys.integer("n_group"), top_groups=keys.integer("topk_group"))
    if method != "greedy":
        raise keys.error("topk_method", "known are greedy and group_limited_greedy")
    if (count or 1, kept or 1) != (1, 1):
        raise keys.error("topk_method", "greedy has no groups: remove n_group and topk_group")
    return {}


def _preset(layers, d, heads, q_rank, dense, moe) -> Config:
    norm, yarn = Norm(1e-6), YarnScaling(40.0, 4096, 32.0, 1.0, 0.707, 0.707)
    rope = Rope(64, 1e4, interleaved=True, scaling=yarn, wide=True)
    mixer = MLA(heads, q_rank, 512, 128, 64, 128, rope, scale=latent.softmax_scale(rope, 128))
    first, rest = Layer(mixer, MLP(dense), norm), (Layer(mixer, moe, norm),) * (layers - 1)
    stacks = stack_layers((first, *rest))
    return Config(102400, d, stacks, norm, max_length=163840, family="deepseek_v2")


_V2_MOE = MoE(160, 6, 1536, scale=16.0, groups=8, top_groups=3, shared=MLP(3072), **ROUTER)
_LITE_MOE = MoE(64, 6, 1408, shared=MLP(2816), **ROUTER)
_V2 = _preset(60, 5120, 128, 1536, 12288, _V2_MOE)
_LITE = _preset(27, 2048, 16, None, 10944, _LITE_MOE)

FAMILY = Family(
    model_type="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    table=latent.TABLE,
    from_hf=from_hf,
    to_hf=to_hf,
    presets={
        "deepseek-v2": _V2,
        "deepseek-v2-lite": _LITE,
        "deepseek-coder-v2": _V2,
        "deepseek-coder-v2-lite": _LITE,
    },
)
