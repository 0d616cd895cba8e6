"""DeepSeek-V3.2 (arXiv:2512.02556): DeepSeek-V3 with sparse attention.

Differs from DeepSeek-V3: an indexer in each layer chooses the `index_topk` tokens that a query
sees; queries always have a latent; `mlp_layer_types` may say which layers are mixtures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from zoo.config import Config, Indexer, Layer
from zoo.hf.keys import Keys
from zoo.hf.table import Linear, Row, Same
from zoo.models import deepseek_v3, latent, parts, tables
from zoo.models.family import Family
from zoo.models.tables import IN_ATTENTION

DEFAULTS = {
    **deepseek_v3.DEFAULTS,
    "max_position_embeddings": 163840,
    "mlp_layer_types": None,
    "layer_types": None,
    "mlp_bias": False,
    "index_topk": 2048,
    "index_head_dim": 128,
    "index_n_heads": 64,
}

IN_INDEXER = IN_ATTENTION + "indexer."
INDEXER = (
    Row(IN_INDEXER + "wq_b.weight", "attn/indexer/q/w", Linear()),
    Row(IN_INDEXER + "wk.weight", "attn/indexer/k/w", Linear()),
    Row(IN_INDEXER + "k_norm.weight", "attn/indexer/k_norm/scale", Same()),
    Row(IN_INDEXER + "k_norm.bias", "attn/indexer/k_norm/b", Same()),
    Row(IN_INDEXER + "weights_proj.weight", "attn/indexer/weigh/w", Linear()),
)
_TABLE = (*latent.TABLE, *INDEXER)
TABLE = (*_TABLE, *tables.predictors(_TABLE))


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type deepseek_v32."""
    keys = Keys(hf, DEFAULTS, latent.UNUSED)
    keys.integer("q_lora_rank")
    sparse = parts.sparse_layers(keys, keys.integer("first_k_dense_replace", 0))
    check_layer_types(keys)
    mixer = latent.attention(keys, latent.rotation(keys), indexer=indexer(keys))
    moe = latent.mixture(keys, **latent.NOAUX, **latent.groups(keys))
    return latent.model(keys, [mixer] * len(sparse), moe, sparse)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type deepseek_v32."""
    hf = {**latent.keys_of(cfg), **parts.ffn_types(cfg), **latent.depths(cfg)}
    return {**hf, **latent.dense_first(cfg), **indexer_keys(cfg.layers[0].mixer.indexer)}


def indexer(keys: Keys, interleaved: bool = False) -> Indexer:
    """The indexer of every layer that has one."""
    if not keys["rope_interleave"]:
        raise keys.error("rope_interleave", "this family rotates neighbours")
    sizes = (keys.integer(f"index_{name}") for name in ("n_heads", "head_dim", "topk"))
    return Indexer(*sizes, interleaved)


def check_layer_types(keys: Keys) -> None:
    """Raises ValueError for layers that attend in another way."""
    known = {"indexed_attention", "deepseek_sparse_attention"}  # the latter of transformers 5.11
    if {*(keys["layer_types"] or ())} - known:
        raise keys.error("layer_types", "every layer must be indexed_attention")


def indexer_keys(spec: Indexer) -> dict:
    """The config keys of `indexer`."""
    return {
        "index_n_heads": spec.heads,
        "index_head_dim": spec.dim,
        "index_topk": spec.top_k,
    }


def _preset() -> Config:
    """DeepSeek-V3 with an indexer in each layer, also in that of multi-token prediction."""

    def indexed(layer: Layer) -> Layer:
        return replace(layer, mixer=replace(layer.mixer, indexer=Indexer(64, 128, 2048)))

    v3 = deepseek_v3.FAMILY.presets["deepseek-v3"]
    stacks = tuple(replace(s, layers=tuple(map(indexed, s.layers))) for s in v3.stacks)
    mtp = tuple(map(indexed, v3.mtp))
    return replace(v3, stacks=stacks, mtp=mtp, family="deepseek_v32")


FAMILY = Family(
    model_type="deepseek_v32",
    architecture="DeepseekV32ForCausalLM",
    table=TABLE,
    from_hf=from_hf,
    to_hf=to_hf,
    presets={"deepseek-v3.2": _preset()},
    extras=latent.PREDICTORS,
    copies=tables.PREDICTOR_COPIES,
)
