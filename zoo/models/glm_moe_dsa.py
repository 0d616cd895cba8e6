"""GLM-5: GLM's mixtures with DeepSeek-V3.2's sparse attention.

Differs from DeepSeek-V3.2: the indexer rotates neighbours, as the attention does; layers of
`indexer_types` "shared" take over the choice of the last "full" one (arXiv:2603.12201), which
`index_topk_pattern`, or index_topk_freq and index_skip_topk_offset, say more briefly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from zoo.config import MLA, MLP, Config, Indexer, Layer, MoE, Norm, Rope, stack_layers
from zoo.hf.keys import Keys
from zoo.models import deepseek_v32, latent, parts, tables
from zoo.models.family import Family

DEFAULTS = {
    **deepseek_v32.DEFAULTS,
    "vocab_size": 154880,
    "hidden_size": 6144,
    "intermediate_size": 12288,
    "num_hidden_layers": 78,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "q_lora_rank": 2048,
    "v_head_dim": 256,
    "qk_nope_head_dim": 192,
    "n_group": 1,
    "topk_group": 1,
    "max_position_embeddings": 202752,
    "rms_norm_eps": 1e-5,
    "index_n_heads": 32,
    "indexer_types": None,
    "index_topk_pattern": None,
    "index_topk_freq": 1,
    "index_skip_topk_offset": 2,
    # In released files; the class takes them for granted.
    "indexer_rope_interleave": True,
    "moe_router_dtype": "float32",
}
UNUSED = latent.UNUSED | {"index_share_for_mtp_iteration"}  # of drafting several tokens
_LETTERS = {"F": "full", "S": "shared"}


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type glm_moe_dsa."""
    keys = Keys(hf, DEFAULTS, UNUSED)
    keys.integer("q_lora_rank")
    sparse = parts.sparse_layers(keys, keys.integer("first_k_dense_replace", 0))
    deepseek_v32.check_layer_types(keys)
    own = deepseek_v32.indexer(keys, interleaved=True)
    full = latent.attention(keys, latent.rotation(keys), indexer=own)
    shared = replace(full, indexer=None, follows=True)
    mixers = [full if kind == "full" else shared for kind in _indexer_types(keys)]
    moe = latent.mixture(keys, **latent.NOAUX, **latent.groups(keys))
    keys.agree("num_experts", moe.experts, "other keys")
    return latent.model(keys, mixers, moe, sparse)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type glm_moe_dsa."""
    kinds = ["shared" if la.mixer.follows else "full" for la in cfg.layers]
    hf = {**latent.keys_of(cfg), **parts.ffn_types(cfg), **latent.depths(cfg)}
    own = deepseek_v32.indexer_keys(cfg.layers[0].mixer.indexer)
    return {**hf, **latent.dense_first(cfg), **own, "indexer_types": kinds}


def _indexer_types(keys: Keys) -> list[str]:
    """Whether each layer has an indexer of its own ("full") or not ("shared")."""
    types, pattern = keys["indexer_types"], keys["index_topk_pattern"]
    step, skip = keys.integer("index_topk_freq", 0), keys.integer("index_skip_topk_offset", 0)
    count = keys.integer("num_hidden_layers")
    if types is None and pattern is not None:
        types = [_LETTERS.get(kind, kind) for kind in pattern]
    if types is None:
        later = (max(i - skip + 1, 0) for i in range(count))
        types = ["shared" if i % max(step, 1) else "full" for i in later]
    if len(types) != count or not {*types} <= {"full", "shared"} or types[0] != "full":
        raise keys.error(
            "indexer_types", f"it needs full or shared for each of {count} layers, full first"
        )
    return list(types)


def _preset(theta=1e6, length=202752, step=1) -> Config:
    """A GLM-5, of which each `step`-th layer from the third on has an indexer of its own."""
    norm, own = Norm(1e-5), Indexer(32, 128, 2048, interleaved=True)
    rope, family = Rope(64, theta, interleaved=True), "glm_moe_dsa"
    full = MLA(64, 2048, 512, 192, 64, 256, rope, indexer=own)
    mixers = {True: full, False: replace(full, indexer=None, follows=True)}
    moe = MoE(256, 8, 2048, scale=2.5, shared=MLP(2048), **latent.NOAUX)
    stacks = stack_layers(
        tuple(
            Layer(mixers[i < 3 or (i - 2) % step == 0], moe if i >= 3 else MLP(12288), norm)
            for i in range(78)
        )
    )
    further = (Layer(full, moe, norm),)
    return Config(154880, 6144, stacks, norm, max_length=length, family=family, mtp=further)


_5 = _preset()
FAMILY = Family(
    model_type="glm_moe_dsa",
    architecture="GlmMoeDsaForCausalLM",
    table=deepseek_v32.TABLE,
    from_hf=from_hf,
    to_hf=to_hf,
    presets={"glm-5": _5, "glm-5.1": _5, "glm-5.2": _preset(8e6, 1048576, step=4)},
    extras=latent.PREDICTORS,
    copies=tables.PREDICTOR_COPIES,
)
