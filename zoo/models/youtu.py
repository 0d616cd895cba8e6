"""Youtu-LLM (arXiv:2512.24618): DeepSeek-V3's latent attention in a small dense model.

Differs from Llama: multi-head latent attention with interleaved rotary positions, and embeddings
are tied by default.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLA, MLP, Config, Layer, Norm, Rope, Stack
from zoo.hf.keys import Keys, activation_name
from zoo.models import latent, parts, tables
from zoo.models.family import Family

DEFAULTS = {
    **latent.DEFAULTS,
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "q_lora_rank": 1536,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
    "mlp_bias": False,
}
UNUSED = latent.UNUSED | {"embedding_initializer_range"}


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type youtu."""
    keys = Keys(hf, DEFAULTS, UNUSED)
    norm = Norm(keys.number("rms_norm_eps"))
    mixer = latent.attention(keys, latent.rotation(keys))
    layer = Layer(mixer, MLP(keys.integer("intermediate_size"), keys.activation()), norm)
    return parts.decoder(keys, (layer,) * keys.integer("num_hidden_layers"), norm)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type youtu."""
    layer = cfg.layers[0]
    return {
        **parts.common(cfg),
        **latent.attention_keys(layer.mixer),
        "hidden_act": activation_name(layer.ffn.act),
        "intermediate_size": layer.ffn.hidden,
    }


def _2b() -> Config:
    norm = Norm(1e-6)
    mixer = MLA(16, 1536, 512, 128, 64, 128, Rope(64, 1.6e6, interleaved=True))
    stacks = (Stack(32, (Layer(mixer, MLP(6144), norm),)),)
    return Config(128256, 2048, stacks, norm, True, 131072, "youtu")


FAMILY = Family(
    model_type="youtu",
    architecture="YoutuForCausalLM",
    table=(*tables.TOP, *tables.NORMS, *latent.LATENT, *tables.FFN),
    from_hf=from_hf,
    to_hf=to_hf,
    presets={"youtu-llm-2b": _2b()},
)
