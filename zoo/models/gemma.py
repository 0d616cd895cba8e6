"""Gemma (arXiv:2403.08295): 2B with one kv head, 7B.

Differs from Llama: norms multiply by 1 + scale in float32, embeddings are multiplied by
sqrt(embed_dim), GeGLU instead of SwiGLU, heads of 256 elements, tied embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.config import MLP, Activation, Attention, Config, Layer, Norm, Rope, stack_layers
from zoo.hf.keys import Keys, activation_name
from zoo.models.family import Family
from zoo.models.parts import attention, common, decoder, dense, heads
from zoo.models.tables import LLAMA

DEFAULTS = {
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": None,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "use_bidirectional_attention": None,
}


def from_hf(hf: Mapping) -> Config:
    """Reads a config of model_type gemma."""
    keys = Keys(hf, DEFAULTS)
    check_causal(keys)
    norm = gemma_norm(keys.number("rms_norm_eps"))
    mixer = attention(keys, o_bias=keys["attention_bias"])
    layer = Layer(mixer, MLP(keys.integer("intermediate_size"), _activation(keys)), norm)
    layers = (layer,) * keys.integer("num_hidden_layers")
    return decoder(keys, layers, norm, embed_scale=keys.integer("hidden_size") ** 0.5)


def to_hf(cfg: Config) -> dict:
    """The config keys of model_type gemma; transformers 4 reads `hidden_activation` first."""
    layer = cfg.layers[0]
    return {
        **common(cfg),
        **heads(layer.mixer),
        **dense(layer.ffn),
        "hidden_activation": activation_name(layer.ffn.act),
    }


def gemma_norm(eps: float = 1e-6) -> Norm:
    """The norm of all Gemmas."""
    return Norm(float(eps), offset=1.0, wide=True)


def check_causal(keys: Keys) -> None:
    """Raises ValueError for encoders made of Gemma, whose tokens see later ones."""
    if keys["use_bidirectional_attention"]:
        raise keys.error("use_bidirectional_attention", "only causal attention is implemented")


def _activation(keys: Keys) -> Activation:
    """The first releases say "gelu" and mean its tanh approximation (`GemmaConfig`)."""
    names = [name for name in ("hidden_act", "hidden_activation") if keys[name] is not None]
    found = {name: keys.activation(name) for name in names}
    acts = {"gelu_tanh" if act == "gelu" else act for act in found.values()}
    if len(acts) != 1:
        raise keys.error("hidden_activation", f"hidden_act={keys['hidden_act']!r} says otherwise")
    return acts.pop()


def _preset(layers, d, n, k, f) -> Config:
    norm = gemma_norm()
    layer = Layer(Attention(n, k, 256, Rope(256)), MLP(f, "gelu_tanh"), norm)
    return Config(
        256000, d, stack_layers((layer,) * layers), norm, True, 8192, "gemma", embed_scale=d**0.5
    )


FAMILY = Family(
    model_type="gemma",
    architecture="GemmaForCausalLM",
    table=LLAMA,
    from_hf=from_hf,
    to_hf=to_hf,
    presets={
        "gemma-2b": _preset(18, 2048, 8, 1, 16384),
        "gemma-7b": _preset(28, 3072, 16, 16, 24576),
    },
)
