"""Reading a Hugging Face config so that nothing in it is dropped silently.

Every key must be used by the family's reader, be known not to change the model, or equal the value
that the family's config class has by default. Anything else is an error that names the key: a key
ignored is how ports go wrong without a warning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from zoo.config import Activation, LinearScaling, Llama3Scaling, LongRope, Rope, YarnScaling
from zoo.rope import yarn_mscale

# Keys that describe files, training, generation or classification heads, not the decoder.
# (`zoo.hf.quantization` reads quantization_config: how tensors are stored, not what they mean.)
IRRELEVANT = frozenset({
    "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_name_or_path",
    "architectures", "attn_implementation", "auto_map", "bos_token_id", "chunk_size_feed_forward",
    "dtype", "eos_token_id", "id2label", "initializer_range", "label2id", "model_type",
    "name_or_path", "num_labels", "output_attentions", "output_hidden_states",
    "output_router_logits", "output_scores", "pad_token_id", "pretraining_tp", "problem_type",
    "quantization_config", "return_dict", "return_dict_in_generate", "router_aux_loss_coef",
    "sep_token_id", "task_specific_params", "tokenizer_class", "torch_dtype", "torchscript",
    "transformers_version", "transformers.js_config", "use_bfloat16", "use_cache",
    "bad_words_ids", "begin_suppress_tokens", "decoder_start_token_id", "diversity_penalty",
    "do_sample", "early_stopping", "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id",
    "forced_eos_token_id", "length_penalty", "max_length", "min_length", "no_repeat_ngram_size",
    "num_beam_groups", "num_beams", "num_return_sequences", "prefix", "pruned_heads",
    "remove_invalid_values", "repetition_penalty", "suppress_tokens", "temperature",
    "tf_legacy_loss", "tie_encoder_decoder", "top_k", "top_p", "typical_p",
})  # fmt: skip
# What every family takes for granted; another value is an error.
COMMON = {
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "partial_rotary_factor": None,
    "per_layer_config": None,
    "rope_parameters": None,
    "rope_scaling": None,
    "rope_theta": 10_000.0,
}
_HINTS = {
    "attention_dropout": "dropout is not implemented; set it to 0.0 if it was for training only",
}
_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


class Keys:
    """A config dict that remembers which keys were read.

    `keys["hidden_size"]` is the config's value, or the class's default if the key is absent.
    """

    def __init__(self, hf: Mapping, defaults: Mapping, irrelevant: frozenset[str] = frozenset()):
        self.family = str(hf.get("model_type"))
        self._hf = hf
        self._defaults = {**COMMON, **defaults}
        self._done = IRRELEVANT | irrelevant
        self._used: set[str] = set()

    def __getitem__(self, name: str):
        self._used.add(name)
        return self._hf[name] if name in self._hf else self._defaults[name]

    def __contains__(self, name: str) -> bool:
        return name in self._hf

    def get(self, name: str):
        """A key that the class may not have, or None."""
        self._used.add(name)
        return self._hf.get(name, self._defaults.get(name))

    def alias(self, name: str, other: str) -> str:
        """Which of two names for one key the config gives; `name` if neither."""
        if name in self and other in self:
            raise self.error(other, f"{name} says the same; keep one")
        return other if other in self else name

    def integer(self, name: str) -> int:
        """A size: a whole number, which JSON may hold as 32.0."""
        value = self[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
            raise self.error(name, "it must be a whole number")
        return int(value)

    def activation(self, name: str = "hidden_act") -> Activation:
        if self[name] not in _ACTIVATIONS:
            raise self.error(name, f"known are {', '.join(_ACTIVATIONS)}")
        return _ACTIVATIONS[self[name]]

    def error(self, name: str, fix: str) -> ValueError:
        value = self._hf.get(name, self._defaults.get(name))
        return ValueError(f"{self.family} config: {name}={value!r} is not understood: {fix}")

    def close(self) -> None:
        """Raises ValueError for the first key that was neither read nor harmless."""
        for name, value in self._hf.items():
            if name in self._used or name in self._done:
                continue
            if name not in self._defaults:
                fix = "remove it from the config if the model's output does not depend on it"
            elif value != self._defaults[name]:
                fix = f"only {self._defaults[name]!r} is implemented"
            else:
                continue
            raise self.error(name, _HINTS.get(name, fix))


def activation_name(act: Activation) -> str:
    """The name that transformers has for an activation."""
    return "gelu_pytorch_tanh" if act == "gelu_tanh" else act


def read_rope(
    keys: Keys,
    dim: int,
    interleaved: bool = False,
    wide: bool = False,
    layer_type: str | None = None,
    theta_key: str = "rope_theta",
    partial: bool = False,
    take: Callable[[dict], None] = lambda left: None,
) -> Rope:
    """The rotation of a config, by old keys (rope_theta, rope_scaling) or new (rope_parameters).

    Follows `modeling_rope_utils.py` of transformers: `rope_scaling` wins over `rope_parameters`,
    theta inside the dict wins over `rope_theta`.

    Args:
        keys: the config.
        dim: of a head; `partial` families rotate `partial_rotary_factor` of it.
        interleaved: as in `Rope`, and so `wide`.
        layer_type: which to read where rope_parameters holds one rotation per layer type.
        theta_key: the key of theta outside of the dict.
        partial: whether the family's modelling code reads `partial_rotary_factor`.
        take: removes what only the family itself understands from the dict.
    """
    new, old, theta = keys["rope_parameters"], keys["rope_scaling"], keys[theta_key]
    name = "rope_scaling" if old else "rope_parameters"
    left = dict(old or new or {})
    if layer_type is not None and isinstance(left.get(layer_type), Mapping):
        left = dict(left[layer_type])
    for key, value in left.items():
        if isinstance(value, Mapping):
            raise keys.error(name, f"a rotation per layer type ({key}) is not implemented")
    take(left)
    theta = left.pop("rope_theta", theta)
    kinds = {left.pop(k) for k in ("rope_type", "type") if k in left}
    if len(kinds) > 1:
        raise keys.error(name, "rope_type and type differ; keep one")
    kind = kinds.pop() if kinds else "default"
    outside = keys["partial_rotary_factor"]
    fraction = left.pop("partial_rotary_factor", None) or outside or 1.0
    if fraction != 1.0 and not partial:
        raise keys.error("partial_rotary_factor", "this family rotates whole heads")
    dim = int(dim * fraction)
    scaling = _scaling(keys, name, kind, left)
    if left:
        raise keys.error(name, f"{kind} rope does not use {', '.join(sorted(left))}; remove it")
    return Rope(dim, float(theta), interleaved, scaling, wide)


def _scaling(keys: Keys, name: str, kind: str, left: dict):
    """Takes what a kind of scaling uses out of `left`."""
    longest = keys["max_position_embeddings"]

    def need(key: str):
        if left.get(key) is None:
            raise keys.error(name, f"{kind} rope needs {key}")
        return left.pop(key)

    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(float(need("factor")))
    if kind == "longrope":
        return _longrope(keys, need, left)
    if kind == "llama3":
        return Llama3Scaling(
            float(need("factor")),
            float(need("low_freq_factor")),
            float(need("high_freq_factor")),
            int(left.pop("original_max_position_embeddings", None) or longest),
        )
    if kind == "yarn":
        original = int(left.pop("original_max_position_embeddings", None) or longest)
        factor = left.pop("factor", None)
        attention_factor = left.pop("attention_factor", None)
        return YarnScaling(
            factor=float(longest / original if factor is None else factor),
            original_length=original,
            beta_fast=float(left.pop("beta_fast", None) or 32.0),
            beta_slow=float(left.pop("beta_slow", None) or 1.0),
            mscale=_number(left.pop("mscale", None)),
            mscale_all_dim=_number(left.pop("mscale_all_dim", None)),
            attention_factor=None if attention_factor is None else float(attention_factor),
            truncate=left.pop("truncate", True),
        )
    raise keys.error(
        name, f"rope_type {kind!r} is not implemented; use default, linear, llama3, yarn, longrope"
    )


def _longrope(keys: Keys, need: Callable, left: dict) -> LongRope:
    """`_compute_longrope_parameters`: the factor comes from how much longer the context became."""
    longest = keys["max_position_embeddings"]
    original = left.pop("original_max_position_embeddings", None)
    original = int(original or keys.get("original_max_position_embeddings") or longest)
    short, far = (tuple(map(float, need(key))) for key in ("short_factor", "long_factor"))
    factor, given = left.pop("factor", None), left.pop("attention_factor", None)
    if given is None:
        given = longrope_factor(longest / original if factor is None else factor, original)
    return LongRope(short, far, original, float(given), float(given))


def longrope_factor(ratio: float, original: int) -> float:
    """LongRoPE's factor on cos and sin, for `ratio` times the context of `original` tokens."""
    return 1.0 if ratio <= 1.0 else math.sqrt(1 + math.log(ratio) / math.log(original))


def write_rope(rope: Rope) -> dict:
    """`rope_theta` and `rope_scaling`: keys that transformers 4 and 5 both read."""
    s = rope.scaling
    if s is None:
        scaling = None
    elif isinstance(s, LinearScaling):
        scaling = {"rope_type": "linear", "type": "linear", "factor": s.factor}
    elif isinstance(s, LongRope):
        scaling = {
            "rope_type": "longrope",
            "type": "longrope",
            "short_factor": list(s.short),
            "long_factor": list(s.long),
            "original_max_position_embeddings": s.original_length,
            "attention_factor": s.short_factor,
        }
    elif isinstance(s, Llama3Scaling):
        scaling = {
            "rope_type": "llama3",
            "factor": s.factor,
            "low_freq_factor": s.low_freq_factor,
            "high_freq_factor": s.high_freq_factor,
            "original_max_position_embeddings": s.original_length,
        }
    else:
        scaling = {
            "rope_type": "yarn",
            "type": "yarn",
            "factor": s.factor,
            "original_max_position_embeddings": s.original_length,
            "beta_fast": s.beta_fast,
            "beta_slow": s.beta_slow,
        }
        optional = {
            "mscale": s.mscale,
            "mscale_all_dim": s.mscale_all_dim,
            "attention_factor": s.attention_factor,
            "truncate": None if s.truncate else False,
        }
        scaling |= {k: v for k, v in optional.items() if v is not None}
    return {"rope_theta": rope.theta, "rope_scaling": scaling}


def yarn_softmax_factor(rope: Rope) -> float:
    """What DeepSeek multiplies its softmax scale by under YaRN, m(mscale_all_dim)**2.

    `yarn_apply_mscale` in transformers' modeling_deepseek_v3.py.
    """
    s = rope.scaling
    if not isinstance(s, YarnScaling) or not s.mscale_all_dim:
        return 1.0
    return yarn_mscale(s.factor, s.mscale_all_dim) ** 2


def _number(value) -> float | None:
    """transformers treats 0 as absent here."""
    return float(value) if value else None
