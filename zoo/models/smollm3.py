"""SmolLM3 (Hugging Face, 2025).

Differs from Llama: every `no_rope_layer_interval`-th layer has no positions (arXiv:2501.18795), and
such layers may see a window (in no release).
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Attention, Config, Layer, Norm, Rope, stack_layers
from zoo.hf.keys import Keys
from zoo.hf.ropes import read_rope
from zoo.models import llama, parts
from zoo.models.family import Family

DEFAULTS = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "rope_theta": 2e6,
    "use_sliding_window": False,
    "sliding_window": None,
    "layer_types": None,
    "no_rope_layers": None,
    "no_rope_layer_interval": 4,
}
UNUSED = frozenset({"max_window_layers"})  # in released files; the class has no such key


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type smollm3."""
    keys = Keys(hf, DEFAULTS, UNUSED)
    norm, bias = Norm(keys.number("rms_norm_eps")), keys["attention_bias"]
    ffn = MLP(keys.integer("intermediate_size"), keys.activation(), bool(keys["mlp_bias"]))
    turned, rope = parts.turned(keys, keys["no_rope_layers"]), read_rope(keys, parts.head_dim(keys))
    on = bool(keys["use_sliding_window"] and keys["sliding_window"])
    kinds = ["sliding_attention" if on and not turn else "full_attention" for turn in turned]
    mixers = (
        parts.attention(keys, bias, window=window, rope=rope if turn else None)
        for window, turn in zip(parts.layer_windows(keys, kinds, on), turned, strict=True)
    )
    return parts.decoder(keys, tuple(Layer(mixer, ffn, norm) for mixer in mixers), norm)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type smollm3."""
    windows = parts.windows(cfg)
    return {
        **llama.to_hf(cfg),
        **parts.write_first_rope(cfg),
        **windows,
        "use_sliding_window": windows["sliding_window"] is not None,
        **parts.write_turned(cfg),
    }


def _preset(layers, d, n, k, f) -> Config:
    norm = Norm(1e-6)
    turned, plain = (
        Layer(Attention(n, k, 128, rope), MLP(f), norm) for rope in (Rope(128, 5e6), None)
    )
    stacks = stack_layers(tuple(plain if i % 4 == 3 else turned for i in range(layers)))
    return Config(128256, d, stacks, norm, True, 65536, "smollm3")


FAMILY = Family(
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    table=llama.FAMILY.table,
    from_hf=from_hf,
    to_hf=to_hf,
    presets={
        "smollm3-3b": _preset(36, 2048, 16, 4, 11008),
    },
)
