"""A sketch of the architecture of Yi-Lightning (arXiv:2412.01253): sizes are invented.

Neither the weights nor the sizes of Yi-Lightning were published, and no file of it can be read, so
there is nothing to be equal to. The report names the ideas, and these are here, in one arrangement
that fits them: blocks of layers with a window and one that sees all, keys and values that a block
takes over from the block before it, and many small experts beside a shared one. How wide the window
is, which layers share and how experts are weighed are guesses.

`save_hf` writes such a model under a model_type of our own, which zoo reads and transformers does
not know. Caches hold every token for layers with a window too: sharing halves them, windows do not
shrink them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from zoo.config import MLP, Attention, Config, Layer, MoE, Norm, Rope, stack_layers
from zoo.hf.keys import Keys, activation_name
from zoo.hf.table import Linear, Row
from zoo.models import parts, tables
from zoo.models.family import Family

DEFAULTS = {
    **parts.DEFAULTS,
    "vocab_size": 100352,
    "hidden_size": 3072,
    "num_hidden_layers": 32,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 65536,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e6,
    "sliding_window": 4096,
    "layer_types": None,
    "kv_layers": None,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 1024,
    "shared_expert_intermediate_size": 1024,
    "norm_topk_prob": True,
}

SHARED_EXPERT = tuple(
    Row(f"{tables.IN_MLP}shared_expert.{part}_proj.weight", f"moe/shared/{part}/w", Linear())
    for part in ("gate", "up", "down")
)


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type yi_lightning_sketch.

    `kv_layers` has, for each layer, the index of the layer whose keys and values it uses; without
    it, each layer has its own.
    """
    keys = Keys(hf, DEFAULTS)
    norm, act = Norm(keys.number("rms_norm_eps")), keys.activation()
    moe = MoE(
        experts=keys.integer("num_experts"),
        top_k=keys.integer("num_experts_per_tok"),
        hidden=keys.integer("moe_intermediate_size"),
        act=act,
        renormalize=bool(keys["norm_topk_prob"]),
        shared=MLP(keys.integer("shared_expert_intermediate_size"), act),
    )
    windows = parts.layer_windows(keys, parts.every(4, keys))
    sources = range(len(windows)) if keys["kv_layers"] is None else keys["kv_layers"]
    if len(sources) != len(windows):
        raise keys.error("kv_layers", f"it must have an entry for each of {len(windows)} layers")
    mixer = parts.attention(keys, o_bias=keys["attention_bias"])
    layers = tuple(
        Layer(replace(mixer, window=window, share_kv=i - source or None), moe, norm)
        for i, (window, source) in enumerate(zip(windows, sources, strict=True))
    )
    return parts.decoder(keys, layers, norm)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type yi_lightning_sketch."""
    layer, moe = cfg.layers[0], cfg.layers[0].ffn
    return {
        **parts.common(cfg),
        **parts.heads(layer.mixer),
        **parts.windows(cfg),
        "kv_layers": [i - la.shares for i, la in enumerate(cfg.layers)],
        "hidden_act": activation_name(moe.act),
        "num_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": moe.hidden,
        "norm_topk_prob": moe.renormalize,
        "shared_expert_intermediate_size": moe.shared.hidden,
    }


def sketch(
    pairs: int, dim: int, heads: int, kv_heads: int, head_dim: int, window: int, moe: MoE,
    vocab_size: int, max_length: int, block: int = 4,
) -> Config:  # fmt: skip
    """Pairs of blocks of layers, of which the last of a block sees all and the others a window.

    The second block of a pair uses the keys and values of the first, layer by layer.

    Args:
        pairs: of blocks; the model has 2 * pairs * block layers.
        dim: of the embedding.
        heads: of queries.
        kv_heads: of keys and values.
        head_dim: of a head.
        window: in tokens.
        moe: the feed-forward network of every layer.
        vocab_size: of the tokenizer.
        max_length: the longest context in tokens.
        block: layers of a block.
    """
    norm, rope = Norm(1e-5), Rope(head_dim, 5e6)
    pattern = tuple(
        Layer(Attention(heads, kv_heads, head_dim, rope, seen, share_kv=share), moe, norm)
        for share in (None, block)
        for seen in (*[window] * (block - 1), None)
    )
    stacks = stack_layers(pattern * pairs)
    return Config(
        vocab_size, dim, stacks, norm, max_length=max_length, family="yi_lightning_sketch"
    )


FAMILY = Family(
    model_type="yi_lightning_sketch",
    architecture="YiLightningSketchForCausalLM",
    table=(
        *tables.TOP,
        *tables.NORMS,
        *tables.ATTENTION,
        *tables.EXPERTS,
        *SHARED_EXPERT,
    ),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={},
    sketches={
        "yi-lightning-sketch": sketch(
            4, 3072, 24, 8, 128, 4096, MoE(64, 8, 1024, shared=MLP(1024)), 100352, 65536
        )
    },
)
